"""LRN, which sums over neighbouring channels: those that stay keep their distances to each other."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph.edits import Edits, attribute
from onnxprune.graph.structure import BoolArray, IntArray


def respace(node: onnx.NodeProto, edits: Edits) -> None:
    """Put zeros where channels between two that stay have gone, and take them out again behind the LRN.

    A channel of zeros adds nothing to its neighbours' sums of squares, so each sum runs over the very
    channels that it ran over before, less those that went. The node stays as it is where none lay between.
    """
    mask = edits.kept.mask(node.input[0], 1)
    positions = _positions(mask, attribute(node, "size", 1))
    channels, width = len(positions), int(positions[-1]) + 1
    if width == channels:
        return
    rank = len(edits.kept.shape(node.input[0]))
    source, padded, spread = node.input[0], edits.fresh(f"{node.name}_padded"), edits.fresh(f"{node.name}_in")
    indices = np.full(width, channels, np.int64)  # the channel of zeros that Pad puts last
    indices[positions] = np.arange(channels)
    pad = helper.make_node("Pad", [source], [padded], name=edits.fresh(f"{node.name}_pad"))
    amounts = [int(entry == rank + 1) for entry in range(2 * rank)]
    if edits.opset < 11:
        pad.attribute.append(helper.make_attribute("pads", amounts))
    else:
        pad.input.append(edits.add_constant(node, "pads", np.asarray(amounts, np.int64)))
    spaced = edits.add_constant(node, "spacing", indices)
    gather = helper.make_node(
        "Gather", [padded, spaced], [spread], name=edits.fresh(f"{node.name}_spread"), axis=1
    )
    node.input[0] = spread
    edits.before[node.name] = [pad, gather]
    edits.gather_after(node, 1, positions)


def _positions(mask: BoolArray, size: int) -> IntArray:
    """Where the channels that stay lie (k,), from 0 on: as far apart as before, or too far to meet."""
    reach = size - 1 - (size - 1) // 2
    steps = np.minimum(np.diff(np.flatnonzero(mask)), reach + 1)
    positions: IntArray = np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
    return positions
