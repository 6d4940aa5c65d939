"""Reductions over channels: those that go count as zeros, as if they were still there."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph.edits import Array, Edits, attribute

SUMS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSum", "ReduceSumSquare")
"""Reductions to which a zero adds nothing."""

BEHIND = {"ReduceMax": "Max", "ReduceMean": "Mul", "ReduceMin": "Min"}
"""Reductions that a zero changes, and the op that does the same to the result of the others."""

REDUCTIONS = tuple(sorted((*SUMS, *BEHIND, "ReduceLogSumExp", "ReduceProd")))


def reduced_axes(node: onnx.NodeProto, rank: int, stated: Array | None) -> list[int]:
    """The axes that a reduction of a tensor of that rank drops; ``stated`` is the value of its input 1."""
    axes = attribute(node, "axes", ()) if stated is None else stated.ravel()
    if not len(axes):
        axes = () if attribute(node, "noop_with_empty_axes", 0) else range(rank)
    return [int(axis) % rank for axis in axes] if rank else []


def count_zeros(node: onnx.NodeProto, edits: Edits) -> None:
    """Put behind ``node`` what the zeros would do that are no longer there.

    A mean over n channels, k of which stay, is k/n of the mean over these. A maximum is at least 0.
    """
    source = node.input[0]
    shape, stated = edits.kept.shape(source), edits.constant(node, 1)
    gone = [axis for axis in reduced_axes(node, len(shape), stated) if edits.kept.pruned(source, axis)]
    if gone:
        share = math.prod(edits.kept.size(source, axis) / shape[axis] for axis in gone)
        value = share if node.op_type == "ReduceMean" else 0.0
        dtype = helper.tensor_dtype_to_np_dtype(edits.types[source])
        edits.insert_after(node, BEHIND[node.op_type], "zeros", np.asarray(value, dtype))
