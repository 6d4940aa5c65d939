"""Pools, resizing and sampling: each channel by itself, along the other axes."""

from __future__ import annotations

from onnxprune.graph.labels import Labels
from onnxprune.graph.ops.context import Context
from onnxprune.graph.ops.registry import NoRule, rule

_WHY = "its input's channels are not on axis 1"


@rule("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
def pool(ctx: Context) -> None:
    """Pass the channels; MaxPool's indices count through all channels, so their use pins."""
    if ctx.used(1):
        raise NoRule("its indices output counts through all channels")
    labels = ctx.labels(0)
    core = ctx.uniform(labels, range(2, len(labels.shape)), _WHY).core
    ctx.emit(0, Labels(ctx.out_shape(), core))


@rule("Resize", "Upsample")
def resize(ctx: Context) -> None:
    """Pass the axes that keep their size."""
    if ctx.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise NoRule("it crops by a region")
    labels, shape = ctx.labels(0), ctx.out_shape()
    scaled = [axis for axis, size in enumerate(shape) if size != labels.shape[axis]]
    core = ctx.uniform(labels, scaled, "it resizes the channels' axis").core
    ctx.emit(0, Labels(shape, core))


@rule("GridSample", "MaxRoiPool", "RoiAlign")
def sample(ctx: Context) -> None:
    """Each channel by itself, at positions that the other inputs give."""
    for index in range(1, len(ctx.node.input)):
        ctx.pin(ctx.labels(index).core, "it gives positions")
    labels = ctx.labels(0)
    core = ctx.uniform(labels, (0, *range(2, len(labels.shape))), _WHY).core
    ctx.emit(0, Labels(ctx.out_shape(), core))
