"""Normalisations: statistics of one channel pass its label, statistics over channels pin it."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.graph.fused import DOMAIN
from onnxprune.graph.labels import Labels, other_axes
from onnxprune.graph.ops.context import Context
from onnxprune.graph.ops.elementwise import meet
from onnxprune.graph.ops.registry import NoRule, rule


def scale_channels(ctx: Context, labels: Labels, parameters: Sequence[int]) -> Labels:
    """Tie inputs of shape (C,) to axis 1 of ``labels``: constants take its labels, others are merged."""
    rank = len(labels.shape)
    view = (labels.shape[1],) + (1,) * (rank - 2)
    for index in parameters:
        if ctx.is_constant(index):
            ctx.bind_broadcast(index, labels, view)
        else:
            parameter = ctx.labels(index)
            core = parameter.core.reshape((-1,) + (1,) * (rank - 2))
            labels = meet(ctx, labels, Labels(view, core))
    return labels


@rule("BatchNormalization")
def batch_normalization(ctx: Context) -> None:
    """With fixed statistics: a scale and a shift of each channel."""
    if ctx.attribute("training_mode", 0) or any(ctx.used(index) for index in range(1, len(ctx.node.output))):
        raise NoRule("it is in training mode")
    if not ctx.attribute("spatial", 1):
        raise NoRule("it has statistics for each position")
    ctx.emit(0, scale_channels(ctx, ctx.labels(0), range(1, 5)))


@rule("InstanceNormalization")
def instance_normalization(ctx: Context) -> None:
    """Statistics of each channel over its positions, then a scale and a shift of each channel."""
    labels = ctx.labels(0)
    labels = ctx.uniform(labels, range(2, len(labels.shape)), "it normalises over channels")
    ctx.emit(0, scale_channels(ctx, labels, (1, 2)))


@rule("GroupNormalization", since=21)
def group_normalization(ctx: Context) -> None:
    """Statistics over a group's channels and positions: whole groups go.

    Before opset 21 the op was withdrawn: its scale was one for each group.
    """
    labels, groups = ctx.labels(0), int(ctx.attribute("num_groups", 1))
    channels = labels.shape[1]
    if channels % groups:
        raise NoRule("its channels don't split into its groups")
    labels = ctx.uniform(labels, range(2, len(labels.shape)), "it normalises over channels")
    if 1 in labels.varying:
        if labels.core.shape[0] > 1:
            raise NoRule("its batch axis carries channels")
        by_group = Labels.of(labels.core.reshape(groups, channels // groups))
        merged = ctx.uniform(by_group, [1], "it normalises over channels").full()
        labels = Labels.along(labels.shape, 1, merged.reshape(-1))
    ctx.emit(0, scale_channels(ctx, labels, (1, 2)))


@rule("LRN")
def local_response_normalization(ctx: Context) -> None:
    """Each channel is divided by a sum over its neighbours on axis 1; those that go add nothing to it.

    Rewriting keeps the distances between the channels that stay, see `respace`.
    """
    labels = ctx.labels(0)
    if 1 in labels.varying:
        labels = ctx.uniform(labels, other_axes(len(labels.shape), [1]), "its positions carry channels")
    ctx.emit(0, labels)


@rule("LayerNormalization", "RMSNormalization")
def layer_normalization(ctx: Context) -> None:
    """Statistics over all axes from ``axis`` on: channels on an earlier axis pass."""
    labels = ctx.labels(0)
    rank = len(labels.shape)
    first = ctx.axis(int(ctx.attribute("axis", -1)), rank)
    labels = ctx.uniform(labels, range(first, rank), "it normalises over channels")
    for index in (1, 2):
        if ctx.is_constant(index):
            ctx.bind_broadcast(index, labels)
        elif ctx.has(index):
            labels = meet(ctx, labels, ctx.labels(index))
    ctx.emit(0, labels)
    for index in (1, 2):
        if ctx.emits(index):
            ctx.emit(index, Labels(ctx.out_shape(index), labels.core))


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=DOMAIN)
def skip_layer_normalization(ctx: Context) -> None:
    """Statistics over the last axis of the sum of two inputs, which the fourth output gives."""
    labels = meet(ctx, ctx.labels(0), ctx.labels(1))
    labels = ctx.uniform(labels, [len(labels.shape) - 1], "it normalises over channels")
    for index in (0, 3):
        if ctx.emits(index):
            ctx.emit(index, labels)


@rule("LogSoftmax", "Softmax", "Hardmax")
def softmax(ctx: Context) -> None:
    """Normalises along one axis; before opset 13 over all axes from ``axis`` on."""
    labels = ctx.labels(0)
    rank = len(labels.shape)
    axis = ctx.axis(int(ctx.attribute("axis", -1 if ctx.opset >= 13 else 1)), rank)
    axes = [axis] if ctx.opset >= 13 else range(axis, rank)
    ctx.emit(0, ctx.uniform(labels, axes, "it normalises over channels"))


@rule("LpNormalization")
def lp_normalization(ctx: Context) -> None:
    """Each entry is divided by the norm along one axis, to which channels that go add nothing."""
    labels = ctx.labels(0)
    axis = ctx.axis(int(ctx.attribute("axis", -1)), len(labels.shape))
    if axis in labels.varying:
        labels = ctx.uniform(labels, other_axes(len(labels.shape), [axis]), "its positions carry channels")
    ctx.emit(0, labels)


@rule("MeanVarianceNormalization")
def mean_variance_normalization(ctx: Context) -> None:
    """Normalises over the axes named, (0, 2, 3) unless stated."""
    labels = ctx.labels(0)
    rank = len(labels.shape)
    axes = [ctx.axis(axis, rank) for axis in ctx.attribute("axes", (0, 2, 3))]
    ctx.emit(0, ctx.uniform(labels, axes, "it normalises over channels"))
