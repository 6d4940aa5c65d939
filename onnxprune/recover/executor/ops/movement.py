"""Ops that move values and change none: reshape, transpose, concatenate, split, tile."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.recover.executor.ops.arithmetic import aligned
from onnxprune.recover.executor.registry import Call, op


@op("Identity")
def identity(call: Call, x: Tensor) -> Tensor:
    """The tensor itself."""
    return x


@op("Dropout", since=7)
def dropout(call: Call, x: Tensor, *rest: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """Nothing is dropped: the graph is a deployed one, and stays deterministic."""
    return x if call.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


@op("Reshape", since=5)
def reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """A new shape of as many elements; 0 copies a size, -1 is worked out."""
    target = [int(value) for value in shape.tolist()]
    if not call.integer("allowzero", 0):
        target = [x.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return x.reshape(target)


@op("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """A matrix: the axes before ``axis``, and those from it on."""
    axis = call.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


@op("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    """Axes in the order of ``perm``, reversed where it is left out."""
    return x.permute(call.ints("perm") or list(reversed(range(x.dim()))))


@op("Concat", since=4)
def concat(call: Call, *values: Tensor) -> Tensor:
    """Tensors joined along an axis."""
    return torch.cat(aligned(*values), call.integer("axis"))


@op("Split", since=2)
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...] | Tensor:
    """Pieces along an axis: of stated sizes, or equal ones with the last smaller."""
    axis = call.integer("axis", 0)
    chosen = call.ints("split", sizes)
    if chosen is None:
        parts = call.integer("num_outputs", call.outputs)
        each = -(-x.shape[axis] // parts)
        chosen = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
    pieces = torch.split(x, chosen, axis)
    return pieces[0] if len(pieces) == 1 else pieces


@op("Squeeze")
def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without the axes named, or without all of size 1."""
    chosen = call.ints("axes", axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


@op("Unsqueeze")
def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """With axes of size 1 at these places of the result."""
    chosen = call.ints("axes", axes) or []
    rank = x.dim() + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@op("Expand", since=8)
def expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast with a shape, in both directions."""
    target = [int(value) for value in shape.tolist()]
    rank = max(x.dim(), len(target))
    target = [1] * (rank - len(target)) + target
    sizes = [1] * (rank - x.dim()) + list(x.shape)
    return x.expand([have if want == 1 else want for want, have in zip(target, sizes, strict=True)])


@op("Tile", since=6)
def tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """Copies along every axis."""
    return x.repeat([int(value) for value in repeats.tolist()])


@op("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Blocks of channels become blocks of positions; DCR puts the block before the channel, CRD behind."""
    n, c, h, w = x.shape
    size = call.integer("blocksize")
    if call.text("mode", "DCR") == "DCR":
        blocks = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, c // size**2, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // size**2, h * size, w * size)


@op("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Blocks of positions become channels, the block's place before the channel."""
    n, c, h, w = x.shape
    size = call.integer("blocksize")
    blocks = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * size**2, h // size, w // size)


@op("Trilu", since=14)
def triangle(call: Call, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    """Upper or lower triangle of the last two axes; zeros elsewhere."""
    k = 0 if diagonal is None else int(diagonal)
    return x.triu(k) if call.integer("upper", 1) else x.tril(k)
