"""Ops whose attributes or constants state a size: each function writes one family's anew.

A function takes the node (already a copy) and the edits in progress. It changes something only
where an index of a concerned axis goes; everything else stays as the exporter wrote it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from onnxprune.graph.edits import (
    Array,
    Edits,
    attribute,
    input_name,
    mismatch,
    remove_attribute,
    set_attribute,
)
from onnxprune.graph.fused import DOMAIN
from onnxprune.graph.reduced import BEHIND, count_zeros
from onnxprune.graph.respace import respace
from onnxprune.graph.structure import BoolArray, IntArray


def resize(node: onnx.NodeProto, edits: Edits) -> None:
    """Bring everything in ``node`` that states a size in line with the kept indices."""
    families = _FUSED if node.domain == DOMAIN else _FAMILIES if node.domain in ("", "ai.onnx") else {}
    family = families.get(node.op_type)
    if family is None:
        return
    names = [name for name in (*node.input, *node.output) if name and edits.kept.known(name)]
    if any(edits.kept.any_pruned(name) for name in names):
        family(node, edits)


def _conv(node: onnx.NodeProto, edits: Edits) -> None:
    _set_groups(node, edits.kept.size(node.input[0], 1), edits)
    _check_bias(node, edits.kept.size(node.input[1], 0), edits)


def _conv_transpose(node: onnx.NodeProto, edits: Edits) -> None:
    _set_groups(node, edits.kept.size(node.output[0], 1), edits)
    _check_bias(node, edits.kept.size(node.output[0], 1), edits)


def _set_groups(node: onnx.NodeProto, channels: int, edits: Edits) -> None:
    """Groups that stay: the weight holds the ``channels`` of one group along its axis 1.

    The checker and onnxruntime's loader accept a weight of the wrong width, so it is refused here.
    """
    before, per_group = attribute(node, "group", 1), edits.kept.size(node.input[1], 1)
    groups, rest = divmod(channels, per_group)
    if rest or edits.kept.size(node.input[1], 0) % groups or (before == 1 and groups != 1):
        raise mismatch(node, f"{channels} channels don't split into groups of {per_group}")
    if groups != before:
        set_attribute(node, "group", groups)


def _check_bias(node: onnx.NodeProto, channels: int, edits: Edits) -> None:
    bias = input_name(node, 2)
    if bias and edits.kept.size(bias, 0) != channels:
        raise mismatch(node, f"its bias would not have {channels} entries")


def _attention(node: onnx.NodeProto, edits: Edits) -> None:
    """State the number of heads where they are folded into the last axis."""
    for position, name in ((0, "q_num_heads"), (1, "kv_num_heads")):
        before = attribute(node, name, 0)
        if before:
            set_attribute(node, name, _heads_left(node, position, before, edits))


def _folded_attention(node: onnx.NodeProto, edits: Edits) -> None:
    """The fused form, which states one number for queries, keys and values."""
    set_attribute(node, "num_heads", _heads_left(node, 0, attribute(node, "num_heads", 1), edits))


def _packed_attention(node: onnx.NodeProto, edits: Edits) -> None:
    """The fused form with its projection: the heads are those of the weight's columns, three times."""
    before = attribute(node, "num_heads", 1)
    set_attribute(node, "num_heads", _heads_left(node, 1, 3 * before, edits) // 3)


def _heads_left(node: onnx.NodeProto, position: int, heads: int, edits: Edits) -> int:
    """How many of the heads on the last axis of an input stay; they go as a whole."""
    tensor = node.input[position]
    axis = len(edits.kept.shape(tensor)) - 1
    mask = edits.kept.mask(tensor, axis).reshape(heads, -1)
    if not np.array_equal(mask.any(1), mask.all(1)):
        raise mismatch(node, "a part of a head would go")
    return int(mask.all(1).sum())


def _group_normalization(node: onnx.NodeProto, edits: Edits) -> None:
    groups, before = attribute(node, "num_groups", 1), edits.kept.shape(node.input[0])[1]
    after, each = edits.kept.size(node.input[0], 1), before // groups
    if after == before:
        return
    mask = edits.kept.mask(node.input[0], 1).reshape(groups, each)
    if not np.array_equal(mask.any(1), mask.all(1)):
        raise mismatch(node, "a part of a normalisation group would go")
    set_attribute(node, "num_groups", after // each)


def _reshape(node: onnx.NodeProto, edits: Edits) -> None:
    _edit_shape(node, 1, node.output[0], edits)


def _expand(node: onnx.NodeProto, edits: Edits) -> None:
    _edit_shape(node, 1, node.output[0], edits)


def _edit_shape(node: onnx.NodeProto, position: int, output: str, edits: Edits) -> None:
    """Write the sizes of ``output`` into the shape that input ``position`` states.

    Entries are aligned to the right (Expand may state fewer); 0, -1 and 1 adapt by themselves, and
    so do entries that the graph computes from the shapes of tensors.
    """
    rank = len(edits.kept.shape(output))
    sizes = {axis: edits.kept.size(output, axis) for axis in range(rank) if edits.kept.pruned(output, axis)}
    if not sizes:
        return
    target = edits.constant(node, position)
    if target is not None:
        offset = rank - len(target)
        edits.set_constant(node, position, _with_sizes(target, offset, sizes, node, edits))
        return
    producer = edits.producers.get(input_name(node, position))
    if producer is None or producer.op_type != "Concat":
        return  # computed as a whole: the check of all shapes after rewriting decides
    offset = 0
    for piece, name in enumerate(producer.input):
        value = edits.constant(producer, piece)
        if value is not None:
            edits.set_constant(producer, piece, _with_sizes(value, offset, sizes, node, edits))
        offset += edits.kept.shape(name)[0] if value is None else len(value)


def _with_sizes(
    target: Array, shift: int, sizes: dict[int, int], node: onnx.NodeProto, edits: Edits
) -> Array:
    """``target`` with the entry of axis ``a``, at ``a - shift``, replaced by ``sizes[a]``."""
    target = target.copy()
    for axis, size in sizes.items():
        entry = axis - shift
        if not 0 <= entry < len(target):
            continue
        if target[entry] > 1 or (target[entry] == 0 and not _copies(node, axis, edits)):
            target[entry] = size
    return target


def _copies(node: onnx.NodeProto, axis: int, edits: Edits) -> bool:
    """Whether a 0 in a Reshape's target still gives the right size: it copies the input's axis."""
    source = node.input[0]
    same = axis < len(edits.kept.shape(source))
    return same and edits.kept.size(source, axis) == edits.kept.size(node.output[0], axis)


def _tile(node: onnx.NodeProto, edits: Edits) -> None:
    repeats = edits.constant(node, 1)
    if repeats is None:
        return
    repeats = repeats.copy()
    for axis in range(len(repeats)):
        if edits.kept.pruned(node.output[0], axis):
            repeats[axis], rest = divmod(
                edits.kept.size(node.output[0], axis), edits.kept.size(node.input[0], axis)
            )
            if rest:
                raise mismatch(node, f"the copies along axis {axis} would differ")
    edits.set_constant(node, 1, repeats)


def _split(node: onnx.NodeProto, edits: Edits) -> None:
    outputs = [name for name in node.output if name]
    axis = attribute(node, "axis", 0) % len(edits.kept.shape(node.input[0]))
    if not edits.kept.pruned(node.input[0], axis):
        return
    if len(outputs) != len(node.output):
        raise mismatch(node, "an output without a name has no size")
    sizes = [edits.kept.size(name, axis) for name in outputs]
    if 0 in sizes:
        raise mismatch(node, "an output would be empty")
    total, parts = sum(sizes), len(sizes)
    if edits.opset >= 13:
        if edits.constant(node, 1) is not None:
            edits.set_constant(node, 1, np.asarray(sizes, np.int64))
        elif sizes != _default_split(total, parts, edits.opset):
            remove_attribute(node, "num_outputs")
            del node.input[1:]
            node.input.append(edits.add_constant(node, "sizes", np.asarray(sizes, np.int64)))
    elif attribute(node, "split", None) is not None or sizes != _default_split(total, parts, edits.opset):
        set_attribute(node, "split", sizes)


def _default_split(total: int, parts: int, opset: int) -> list[int]:
    """Sizes of a Split that states none: equal ones, or from opset 18 on a smaller last one; else []."""
    each, rest = divmod(total, parts)
    if rest == 0:
        return [each] * parts
    return [each + 1] * (parts - 1) + [total - (each + 1) * (parts - 1)] if opset >= 18 else []


def _slice(node: onnx.NodeProto, edits: Edits) -> None:
    """Write bounds that select the same kept entries; a Gather follows where no bounds can."""
    shape = edits.kept.shape(node.input[0])
    if not any(edits.kept.pruned(node.input[0], axis) for axis in range(len(shape))):
        return
    bounds = _slice_bounds(node, edits, len(shape))
    if bounds is None:
        return  # computed, so of another axis: the check of all shapes after rewriting decides
    starts, ends, axes, steps = bounds
    for position, axis in enumerate(axes):
        if not edits.kept.pruned(node.input[0], axis):
            continue
        mask = edits.kept.mask(node.input[0], axis)
        selected = slice(starts[position], ends[position], steps[position])
        old = np.arange(shape[axis])[selected]
        new = _renumber(old[mask[old]], mask)
        size = int(mask.sum())
        if np.array_equal(np.arange(size)[selected], new):
            continue
        step = int(new[1] - new[0]) if len(new) > 1 else 1
        if len(new) > 1 and (np.diff(new) != step).any():
            starts[position], ends[position], steps[position] = 0, size, 1
            edits.gather_after(node, axis, new)
        else:
            # A negative step that ends at index 0 needs an end below every index.
            end = int(new[-1]) + (1 if step > 0 else -1)
            starts[position], ends[position] = int(new[0]), end if end >= 0 else -size - 1
            steps[position] = step
    if edits.opset < 10:
        set_attribute(node, "starts", starts)
        set_attribute(node, "ends", ends)
        return
    for position, values in ((1, starts), (2, ends), (4, steps)):
        stated = edits.constant(node, position)
        if stated is not None:
            edits.set_constant(node, position, np.asarray(values, stated.dtype))


def _slice_bounds(
    node: onnx.NodeProto, edits: Edits, rank: int
) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """Starts, ends, axes and steps of a Slice as Python lists; None if they are not constant."""
    if edits.opset < 10:
        starts, ends = list(attribute(node, "starts", [])), list(attribute(node, "ends", []))
        axes = list(attribute(node, "axes", range(len(starts))))
        return starts, ends, [axis % rank for axis in axes], [1] * len(starts)
    values: list[list[int] | None] = []
    for position in range(1, 5):
        value = edits.constant(node, position)
        if value is None and input_name(node, position):
            return None
        values.append(None if value is None else [int(item) for item in value])
    starts_, ends_, axes_, steps_ = values
    if starts_ is None or ends_ is None:
        return None
    axes = axes_ if axes_ is not None else list(range(len(starts_)))
    return starts_, ends_, [axis % rank for axis in axes], steps_ or [1] * len(starts_)


def _renumber(indices: IntArray, mask: BoolArray) -> IntArray:
    """Where kept ``indices`` lie after the axis with ``mask`` (dim,) has lost the others."""
    return (np.cumsum(mask) - 1)[indices]


def _gather(node: onnx.NodeProto, edits: Edits) -> None:
    rank = len(edits.kept.shape(node.input[0]))
    axis = attribute(node, "axis", 0) % rank
    mask = edits.kept.mask(node.input[0], axis)
    if mask.all():
        return
    indices = edits.constant(node, 1)
    if indices is None:
        raise mismatch(node, "its indices are computed")
    wanted = np.where(indices < 0, indices + len(mask), indices).astype(np.int64)
    for position in range(indices.ndim):
        wanted = np.compress(edits.kept.mask(node.output[0], axis + position), wanted, axis=position)
    if not mask[wanted].all():
        raise mismatch(node, "it selects an entry that would go")
    edits.set_constant(node, 1, np.asarray(_renumber(wanted, mask), indices.dtype))


def _gather_nd(node: onnx.NodeProto, edits: Edits) -> None:
    batch, rank = attribute(node, "batch_dims", 0), len(edits.kept.shape(node.input[0]))
    masks = [edits.kept.mask(node.input[0], axis) for axis in range(rank)]
    indices = edits.constant(node, 1)
    if indices is None:
        return  # computed, so of axes that stay: the check of all shapes after rewriting decides
    for position in range(indices.ndim - 1):
        indices = np.compress(edits.kept.mask(node.output[0], position), indices, axis=position)
    new = indices.copy()
    for column in range(indices.shape[-1]):
        mask = masks[batch + column]
        wanted = np.where(indices[..., column] < 0, indices[..., column] + len(mask), indices[..., column])
        if not mask[wanted].all():
            raise mismatch(node, "it selects an entry that would go")
        new[..., column] = _renumber(wanted, mask)
    edits.set_constant(node, 1, new)


def _pad(node: onnx.NodeProto, edits: Edits) -> None:
    rank = len(edits.kept.shape(node.input[0]))
    stated = attribute(node, "pads", None) if edits.opset < 11 else edits.constant(node, 1)
    axes = edits.constant(node, 3) if edits.opset >= 18 else None
    if stated is None:
        raise mismatch(node, "its amounts are computed")
    if axes is None:
        axes = np.arange(rank)
    pads = [int(amount) for amount in stated]
    for position, axis in enumerate(int(item) % rank for item in axes):
        inside, outside = edits.kept.mask(node.input[0], axis), edits.kept.mask(node.output[0], axis)
        before, after = pads[position], pads[position + len(axes)]
        # A negative amount crops: it counts the input's entries, a positive one the output's.
        pads[position] = int(outside[:before].sum()) if before >= 0 else -int(inside[:-before].sum())
        pads[position + len(axes)] = (
            int(outside[len(outside) - after :].sum()) if after >= 0 else -int(inside[after:].sum())
        )
    if edits.opset < 11:
        set_attribute(node, "pads", pads)
    else:
        edits.set_constant(node, 1, np.asarray(pads, np.int64))


def _resize(node: onnx.NodeProto, edits: Edits) -> None:
    sizes = edits.constant(node, 3)
    if sizes is None or not sizes.size:
        return
    rank = len(edits.kept.shape(node.input[0]))
    axes = attribute(node, "axes", range(rank))
    new = sizes.astype(np.int64)
    for position, axis in enumerate(item % rank for item in axes):
        if edits.kept.pruned(node.output[0], axis):
            new[position] = edits.kept.size(node.output[0], axis)
    edits.set_constant(node, 3, new)


_FAMILIES: dict[str, Callable[[onnx.NodeProto, Edits], None]] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Expand": _expand,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GroupNormalization": _group_normalization,
    "LRN": respace,
    "Pad": _pad,
    **dict.fromkeys(BEHIND, count_zeros),
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Tile": _tile,
}
_FUSED: dict[str, Callable[[onnx.NodeProto, Edits], None]] = {
    "Attention": _packed_attention,
    "MultiHeadAttention": _folded_attention,
}
