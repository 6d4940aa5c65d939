"""Ops that keep the elements' order and change the shape: Reshape, Flatten, Squeeze, Unsqueeze."""

from __future__ import annotations

from onnxprune.graph.labels import Labels
from onnxprune.graph.ops.context import Context
from onnxprune.graph.ops.registry import NoRule, rule


@rule("Flatten", "Squeeze", "Unsqueeze")
def keep_order(ctx: Context) -> None:
    """Read the labels off in the new shape."""
    if ctx.has(1) and not ctx.is_constant(1):
        raise NoRule("its axes are computed")
    reshape_labels(ctx)


@rule("Reshape")
def reshape(ctx: Context) -> None:
    """Read the labels off in the new shape.

    Where that splits channels over two axes, the units are made rectangular at the end of the
    analysis, when it is known what the following ops ask for.
    """
    if ctx.has(1) and not ctx.is_constant(1):
        raise NoRule("its target shape is computed")
    reshape_labels(ctx)


def reshape_labels(ctx: Context) -> None:
    """Emit input 0's labels in the shape of output 0."""
    labels, shape = ctx.labels(0), ctx.out_shape()
    if not labels.varying:
        ctx.emit(0, Labels(shape, labels.core.reshape((1,) * len(shape))))
    else:
        ctx.emit(0, Labels.of(labels.full().reshape(shape)))
