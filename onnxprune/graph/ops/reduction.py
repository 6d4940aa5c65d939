"""Reductions, and what else looks along some axes: channels on the other axes pass."""

from __future__ import annotations

from onnxprune.graph.labels import Labels
from onnxprune.graph.ops.context import Context
from onnxprune.graph.ops.registry import NoRule, rule

_WHY = "it reduces over channels"
REDUCTIONS = tuple(
    f"Reduce{name}"
    for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
)


@rule(*REDUCTIONS)
def reduce(ctx: Context) -> None:
    """Drop the reduced axes, named by attribute or, from later opsets on, by input 1."""
    labels = ctx.labels(0)
    rank = len(labels.shape)
    if ctx.has(1) and not ctx.is_constant(1):
        raise NoRule("its axes are computed")
    axes = ctx.integers(1) if ctx.has(1) else ctx.attribute("axes")
    if not axes:
        axes = () if ctx.attribute("noop_with_empty_axes", 0) else range(rank)
    _reduce_axes(ctx, labels, [ctx.axis(axis, rank) for axis in axes], bool(ctx.attribute("keepdims", 1)))


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


def _reduce_axes(ctx: Context, labels: Labels, axes: list[int], keepdims: bool) -> None:
    core = ctx.uniform(labels, axes, _WHY).core
    if not keepdims:
        core = core.reshape([size for axis, size in enumerate(core.shape) if axis not in axes])
    ctx.emit(0, Labels(ctx.out_shape(), core))
