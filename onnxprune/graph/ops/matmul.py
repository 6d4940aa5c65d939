"""Gemm and MatMul, with a constant weight or of two activations, and their fused forms."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.fused import DOMAIN, factor_axes
from onnxprune.graph.labels import DATA, Labels
from onnxprune.graph.ops.context import Context
from onnxprune.graph.ops.elementwise import combine, lift, meet
from onnxprune.graph.ops.registry import NoRule, rule
from onnxprune.graph.structure import IntArray


@rule("Gemm")
def gemm(ctx: Context) -> None:
    """Y = alpha A' B' + beta C: consume A's columns on B, start an atom for each column of Y."""
    if not ctx.is_constant(1):
        raise NoRule("its weight is computed")
    in_axis, out_axis = (1, 0) if ctx.attribute("transB", 0) else (0, 1)
    channel_axis = 0 if ctx.attribute("transA", 0) else 1
    out_shape = ctx.out_shape()
    incoming = ctx.channels(ctx.labels(0), channel_axis, "its input's rows carry channels")
    outgoing = ctx.atoms.fresh(out_shape[1], removable=True)
    ctx.bind_axis(1, in_axis, incoming)
    ctx.bind_axis(1, out_axis, outgoing)
    result = Labels.along(out_shape, 1, outgoing)
    if ctx.has(2):
        result = combine(ctx, [2], result)
    ctx.add_layer(
        data=0,
        weight=1,
        bias=2,
        weight_axes=(in_axis, out_axis),
        channel_axis=channel_axis,
        groups=1,
        ids=(incoming, outgoing),
    )
    ctx.emit(0, result)


@rule("MatMul")
@rule("FusedMatMul", domain=DOMAIN)
def matmul(ctx: Context) -> None:
    """Consume the contracted axis on the constant side, start atoms on the axis it brings.

    Channels on an axis that is not contracted pass, and no new atoms start. The fused form may
    transpose the last two axes of its factors.
    """
    if not ctx.is_constant(0) and not ctx.is_constant(1):
        return multiply_activations(ctx)
    if ctx.is_constant(0) and ctx.is_constant(1):
        raise NoRule("it multiplies two constants")
    data, weight = (1, 0) if ctx.is_constant(0) else (0, 1)
    source, matrix, out_shape = ctx.labels(data), ctx.shape(weight), ctx.out_shape()
    rank = len(source.shape)
    if len(matrix) < 2 or len(matrix) > rank or any(size != 1 for size in matrix[:-2]):
        raise NoRule("its weight is not one matrix")
    if rank < 2 and data == 1:
        raise NoRule("its input is a vector on the right")
    if factor_axes(ctx.node, data, rank) != list(range(rank)):
        raise NoRule("it transposes its input")
    *batch, rows, columns = factor_axes(ctx.node, weight, len(matrix))
    if batch != list(range(len(batch))):
        raise NoRule("it transposes its weight's batch axes")
    in_axis, out_axis = (rows, columns) if data == 0 else (columns, rows)
    channel_axis = rank - 1 if data == 0 else rank - 2
    if source.varying and channel_axis not in source.varying:
        incoming = np.full(matrix[in_axis], -1, np.int64)
        outgoing = np.full(matrix[out_axis], -1, np.int64)
        result = Labels(out_shape, source.core)
    else:
        incoming = ctx.channels(source, channel_axis, "its input carries channels on another axis")
        outgoing = ctx.atoms.fresh(matrix[out_axis], removable=True)
        ctx.bind_axis(weight, in_axis, incoming)
        ctx.bind_axis(weight, out_axis, outgoing)
        result = Labels.along(out_shape, channel_axis, outgoing)
    ctx.add_layer(
        data=data,
        weight=weight,
        bias=None,
        weight_axes=(in_axis, out_axis),
        channel_axis=channel_axis,
        groups=1,
        ids=(incoming, outgoing),
    )
    return ctx.emit(0, result)


def multiply_activations(ctx: Context) -> None:
    """A product of two activations (..., M, K) and (..., K, N), as in attention; or of their transposes.

    Where channels lie on an axis that counts matrices (attention heads), whole matrices go: their
    rows and columns are merged, and the operands' with each other. Else what meets along K is
    merged (position k leaves both operands), and the channels of M or N pass.
    """
    left, right = ctx.labels(0), ctx.labels(1)
    rank = max(len(left.shape), len(right.shape))
    if min(len(left.shape), len(right.shape)) < 2:
        raise NoRule("it multiplies an activation by a vector")
    left, right = _turned(ctx, 0, left), _turned(ctx, 1, right)
    left, right = lift(left, rank), lift(right, rank)
    rows, columns = rank - 2, rank - 1
    if any(axis < rows for axis in (*left.varying, *right.varying)):
        why = "it mixes what is not split into heads alike"
        left, right = ctx.uniform(left, (rows, columns), why), ctx.uniform(right, (rows, columns), why)
    else:
        why = "its rows carry other channels"
        if columns in left.varying:
            left = ctx.uniform(left, (rows,), why)
        if rows in right.varying:
            right = ctx.uniform(right, (columns,), why)
        meet(ctx, _part(left, columns), Labels(*_swapped(_part(right, rows))))
    ctx.emit(0, meet(ctx, _part(left, rows), _part(right, columns)))


def _turned(ctx: Context, position: int, labels: Labels) -> Labels:
    axes = factor_axes(ctx.node, position, len(labels.shape))
    return Labels(tuple(labels.shape[axis] for axis in axes), labels.core.transpose(axes))


def _part(labels: Labels, axis: int) -> Labels:
    """The labels without the other one of the last two axes, which then has size 1."""
    other = 2 * len(labels.shape) - 3 - axis
    shape = tuple(1 if a == other else size for a, size in enumerate(labels.shape))
    core = labels.core
    if core.shape[other] > 1:
        core = np.full((1,) * core.ndim, DATA, np.int64)
    return Labels(shape, core)


def _swapped(labels: Labels) -> tuple[tuple[int, ...], IntArray]:
    core = labels.core.swapaxes(-1, -2)
    return (*labels.shape[:-2], labels.shape[-1], labels.shape[-2]), core
