"""Shape: reading a size that pruning would change pins it; the other sizes may be read freely."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.labels import Labels
from onnxprune.graph.ops.context import Context
from onnxprune.graph.ops.registry import rule


@rule("Shape")
def shape(ctx: Context) -> None:
    """Pin the channels along the axes whose size is read."""
    labels = ctx.labels(0)
    for axis in _axes_read(ctx, len(labels.shape)):
        if axis in labels.varying:
            ctx.pin(labels.core, "it reads the number of channels")
    ctx.emit(0, Labels.data(ctx.out_shape()))


def _axes_read(ctx: Context, rank: int) -> list[int]:
    axes = np.arange(rank)[slice(int(ctx.attribute("start", 0)), ctx.attribute("end"))]
    output = ctx.node.output[0]
    read: set[int] = set()
    for reader in ctx.state.readers.get(output, ()):
        if reader.op_type != "Gather" or reader.input[1] == output:
            return list(axes)
        indices = Context(reader, ctx.state).integers(1)
        if indices is None:
            return list(axes)
        read.update(int(axes[index]) for index in indices if -len(axes) <= index < len(axes))
    return list(axes) if output in ctx.state.outputs else sorted(read)
