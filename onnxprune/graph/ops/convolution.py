"""Conv and ConvTranspose: plain, grouped and depthwise."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.labels import Labels
from onnxprune.graph.ops.context import Context
from onnxprune.graph.ops.registry import NoRule, rule
from onnxprune.graph.structure import IntArray


@rule("Conv", "ConvTranspose")
def convolution(ctx: Context) -> None:
    """Consume the input's channels on the weight's input axis; start an atom for each output channel.

    Depthwise, output j carries on input channel j // multiplier. With other groups, channel p of
    every group is removed together (inputs and outputs alike), so that the groups stay equal.
    """
    if not ctx.is_constant(1):
        raise NoRule("its weight is computed")
    transposed = ctx.node.op_type == "ConvTranspose"
    in_axis, out_axis = (0, 1) if transposed else (1, 0)
    source, weight, out_shape = ctx.labels(0), ctx.shape(1), ctx.out_shape()
    groups = int(ctx.attribute("group", 1))
    incoming = ctx.channels(source, 1, "its input's channels are not on axis 1")
    outgoing_count = out_shape[1]

    if groups > 1 and groups == len(incoming):
        outgoing = np.repeat(incoming, outgoing_count // groups)
        ctx.bind_axis(1, 0, incoming if transposed else outgoing)
    else:
        if groups > 1:
            incoming = _couple_groups(ctx, incoming, groups)
        fresh = ctx.atoms.fresh(outgoing_count // groups, removable=True)
        outgoing = np.tile(fresh, groups)
        ctx.bind_axis(1, in_axis, incoming if transposed else incoming[: weight[1]])
        ctx.bind_axis(1, out_axis, fresh if transposed else outgoing)
    if ctx.is_constant(2):
        ctx.bind_axis(2, 0, outgoing)
    elif ctx.has(2):
        ctx.pin(outgoing, "its bias is computed")
        ctx.pin(ctx.labels(2).core, "it is a computed bias")
    ctx.add_layer(
        data=0,
        weight=1,
        bias=2,
        weight_axes=(in_axis, out_axis),
        channel_axis=1,
        groups=groups,
        ids=(incoming, outgoing),
    )
    ctx.emit(0, Labels.along(out_shape, 1, outgoing))


def _couple_groups(ctx: Context, incoming: IntArray, groups: int) -> IntArray:
    rows = incoming.reshape(groups, -1).T
    ctx.atoms.couple(rows, ctx.reason("the same channel of another group stays"))
    merged = np.where((rows < 0).any(axis=1, keepdims=True), -1, rows).T.ravel()
    return ctx.atoms.find(merged)
