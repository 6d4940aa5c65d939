"""QuantizeLinear and DequantizeLinear: of activations element by element, of constants part of these."""

from __future__ import annotations

from math import prod

from onnxprune.graph.labels import Labels
from onnxprune.graph.ops.context import Context, State
from onnxprune.graph.ops.elementwise import narrow
from onnxprune.graph.ops.registry import NoRule, rule
from onnxprune.graph.stored import quantized_axis


@rule("DequantizeLinear", "QuantizeLinear")
@rule("DequantizeLinear", "QuantizeLinear", domain="com.microsoft")
def quantize(ctx: Context) -> None:
    """Pass the labels; scales and zero points of several elements go along one axis."""
    if ctx.attribute("block_size", 0):
        raise NoRule("it has a scale for each block")
    parameters = [index for index in (1, 2) if ctx.has(index)]
    if not all(ctx.is_constant(index) for index in parameters):
        raise NoRule("its scale is computed")
    labels = ctx.labels(0)
    several = [index for index in parameters if prod(ctx.shape(index)) > 1]
    view = _view(ctx, len(labels.shape)) if several else ()
    if ctx.is_constant(0):
        ctx.state.stored[ctx.node.output[0]] = ctx.node
        return
    for index in several:
        ctx.bind_broadcast(index, labels, view)
    ctx.emit(0, labels)


def settle_stored(state: State) -> None:
    """Label what constants are stored as like the constants, and their scales like the scaled axis."""
    for name, node in reversed(state.stored.items()):
        ctx = Context(node, state)
        rank = len(ctx.shape(0))
        several = [index for index in (1, 2) if ctx.has(index) and prod(ctx.shape(index)) > 1]
        if name in state.weights:
            axes = state.weights[name]
            state.weights[node.input[0]] = axes
            axis = quantized_axis(node, rank)
            for index in several:
                state.weights[node.input[index]] = {0: axes[axis]} if axis in axes else {}
        else:
            labels = state.labels[name]
            ctx.bind(0, labels)
            for index in several:
                core = narrow(labels, _view(ctx, rank)).core
                ctx.bind(index, Labels(ctx.shape(index), core.reshape(-1)))


def _view(ctx: Context, rank: int) -> tuple[int, ...]:
    """The shape in which several scales or zero points meet a tensor of that rank."""
    axis = ctx.axis(quantized_axis(ctx.node, rank), rank)
    return tuple(prod(ctx.shape(1)) if position == axis else 1 for position in range(rank))
