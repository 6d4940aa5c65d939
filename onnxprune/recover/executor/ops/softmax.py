"""Softmax and its relatives, in both readings of the axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.recover.executor.registry import Call, op


@op("Softmax", "LogSoftmax", "Hardmax", until=13)
def flattened_softmax(call: Call, x: Tensor) -> Tensor:
    """Before opset 13: over all axes from ``axis`` on, as one."""
    axis = call.integer("axis", 1) % max(1, x.dim())
    return _apply(call.op, x.flatten(axis) if axis < x.dim() else x, axis).reshape(x.shape)


@op("Softmax", "LogSoftmax", "Hardmax", since=13)
def softmax(call: Call, x: Tensor) -> Tensor:
    """From opset 13 on: along the one axis."""
    return _apply(call.op, x, call.integer("axis", -1))


def _apply(name: str, x: Tensor, axis: int) -> Tensor:
    if name == "Hardmax":
        return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)
    return F.softmax(x, axis) if name == "Softmax" else F.log_softmax(x, axis)
