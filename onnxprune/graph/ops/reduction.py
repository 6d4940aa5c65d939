"""Reductions, and what else looks along some axes: channels on the other axes pass."""

from __future__ import annotations

from onnx import TensorProto

from onnxprune.graph.labels import Labels
from onnxprune.graph.ops.context import Context
from onnxprune.graph.ops.registry import NoRule, rule
from onnxprune.graph.reduced import BEHIND, REDUCTIONS, SUMS, reduced_axes

_WHY = "it reduces over channels"
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FIRST_BROADCAST = 8
"""Before it, Max and Min took inputs of one shape."""


@rule(*REDUCTIONS)
def reduce(ctx: Context) -> None:
    """Drop the reduced axes, named by attribute or, from later opsets on, by input 1.

    Channels along these alone are read as a Conv reads them, where those that go can count as zeros.
    """
    labels = ctx.labels(0)
    if ctx.has(1) and not ctx.is_constant(1):
        raise NoRule("its axes are computed")
    rank = len(labels.shape)
    axes = reduced_axes(ctx.node, rank, ctx.value(1))
    normalises = rank - 1 in axes and _is_taken_off(ctx)
    if not normalises and labels.varying and set(labels.varying) <= set(axes) and _counts_zeros(ctx):
        labels = Labels.data(labels.shape)
    why = "it normalises over channels" if normalises else _WHY
    _reduce_axes(ctx, labels, axes, bool(ctx.attribute("keepdims", 1)), why)


@rule("ArgMax", "ArgMin")
def argument(ctx: Context) -> None:
    """The winner's index along one axis."""
    labels = ctx.labels(0)
    axis = ctx.axis(int(ctx.attribute("axis", 0)), len(labels.shape))
    _reduce_axes(ctx, labels, [axis], bool(ctx.attribute("keepdims", 1)))


@rule("CumProd", "CumSum")
def cumulative(ctx: Context) -> None:
    """A running sum or product along one axis, which keeps its shape."""
    axis = ctx.integers(1)
    if axis is None:
        raise NoRule("its axis is computed")
    labels = ctx.labels(0)
    ctx.emit(0, ctx.uniform(labels, [ctx.axis(axis[0], len(labels.shape))], _WHY))


@rule("TopK")
def top(ctx: Context) -> None:
    """The greatest entries along one axis, and where they are."""
    labels = ctx.labels(0)
    axis = ctx.axis(int(ctx.attribute("axis", -1)), len(labels.shape))
    core = ctx.uniform(labels, [axis], "it chooses among channels").core
    for index in range(len(ctx.node.output)):
        ctx.emit(index, Labels(ctx.out_shape(index), core))


@rule("Trilu")
def triangle(ctx: Context) -> None:
    """Clears a triangle of each matrix on the last two axes."""
    labels = ctx.labels(0)
    rank = len(labels.shape)
    ctx.emit(0, ctx.uniform(labels, (rank - 2, rank - 1), "its triangle lies over channels"))


def _counts_zeros(ctx: Context) -> bool:
    """Whether channels that go add nothing, or what they add can be made up for; see `reduced`."""
    op = ctx.node.op_type
    if op in SUMS:
        return True
    broadcasts = ctx.opset >= _FIRST_BROADCAST or op == "ReduceMean"
    return op in BEHIND and broadcasts and ctx.state.types.get(ctx.node.input[0]) in _FLOATS


def _is_taken_off(ctx: Context) -> bool:
    """Whether it is a mean that is taken off what it is the mean of: a LayerNormalization in its parts.

    Runtimes make one op of these over the last axis, but not with a factor in between.
    """
    source, mean = ctx.node.input[0], ctx.node.output[0]
    readers = ctx.state.readers.get(mean, ())
    return ctx.node.op_type == "ReduceMean" and any(
        node.op_type == "Sub" and list(node.input) == [source, mean] for node in readers
    )


def _reduce_axes(ctx: Context, labels: Labels, axes: list[int], keepdims: bool, why: str = _WHY) -> None:
    core = ctx.uniform(labels, axes, why).core
    if not keepdims:
        core = core.reshape([size for axis, size in enumerate(core.shape) if axis not in axes])
    ctx.emit(0, Labels(ctx.out_shape(), core))
