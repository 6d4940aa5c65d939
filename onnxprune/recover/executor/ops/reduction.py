"""Reductions over axes that an attribute or, in later opsets, an input names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from onnxprune.recover.executor.registry import Call, op

_Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(x.sum(axes, keepdim=keep), count, rounding_mode="trunc")


_REDUCTIONS: dict[str, _Reduce] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": _mean,
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


@op(*_REDUCTIONS)
def reduce_axes(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Reduce over ``axes``; over all of them where none are named, unless the node says to do nothing."""
    chosen = call.ints("axes", axes)
    if not chosen:
        if call.integer("noop_with_empty_axes", 0):
            return x
        chosen = list(range(x.dim()))
    return _REDUCTIONS[call.op](x, chosen, bool(call.integer("keepdims", 1)))


@op("ArgMax", "ArgMin")
def arg_extreme(call: Call, x: Tensor) -> Tensor:
    """Place of the largest or smallest value along an axis; the first one, or the last one, of equals."""
    axis = call.integer("axis", 0) % x.dim()
    last = call.integer("select_last_index", 0)
    find = torch.argmax if call.op == "ArgMax" else torch.argmin
    place = find(x.flip(axis) if last else x, axis, keepdim=bool(call.integer("keepdims", 1)))
    return x.shape[axis] - 1 - place if last else place
