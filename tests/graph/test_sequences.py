"""Lists that are taken apart at constant places; onnxruntime is the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from onnxprune.graph.prepare import prepare
from tests.graph.oracle import exact
from tests.model_builder import Builder
from tests.plain import run


def taken_apart(opset: int, sizes: int | Sequence[int] | None, places: Sequence[int]) -> onnx.ModelProto:
    """Conv with 7 channels, split into a list, some parts of it put side by side again, Conv."""
    b = Builder(opset=opset)
    x = b.conv(b.input((1, 3, 4, 4)), 7, 3)
    stated = [] if sizes is None else [b.constant(np.asarray(sizes, np.int64))]
    parts = b.node("SplitToSequence", [x, *stated], axis=-3)
    whole = [min(sizes, 7 - at) for at in range(0, 7, sizes)] if isinstance(sizes, int) else sizes or [1] * 7
    names = []
    for place in places:
        part = b.node("SequenceAt", [parts, b.constant(np.int64(place))])
        names.append(b.relu(b.shaped(part, 1, whole[place], 4, 4)))
    return b.model(b.conv(b.concat(*names), 3))


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("sizes", [3, [2, 5], [3, 3, 1]])
@pytest.mark.parametrize("places", [[0, 1], [1, 0, -1], [-1]])
def test_becomes_a_split(opset: int, sizes: int | list[int], places: list[int]) -> None:
    model = taken_apart(opset, sizes, places)
    prepared = prepare(model)
    assert {node.op_type for node in prepared.graph.node} <= {"Conv", "Split", "Identity", "Relu", "Concat"}
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)
    names = [value.name for value in model.graph.output]
    assert np.array_equal(run(model, {"x": x}, names)[names[0]], run(prepared, {"x": x}, names)[names[0]])
    assert exact(model).unit_count > 0


def test_parts_without_the_axis_stay_a_list() -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 4, 4)), 2, 3)
    parts = b.node("SplitToSequence", [x], axis=1, keepdims=0)
    y = b.shaped(b.node("SequenceAt", [parts, b.constant(np.int64(1))]), 1, 4, 4)
    model = b.model(b.relu(y))
    assert [node.op_type for node in prepare(model).graph.node][1:3] == ["SplitToSequence", "SequenceAt"]


def test_a_list_read_at_a_computed_place_stays() -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 4, 4)), 4, 3)
    parts = b.node("SplitToSequence", [x, b.constant(np.int64(2))], axis=1)
    last = b.node("Sub", [b.node("SequenceLength", [parts]), b.constant(np.int64(1))])
    y = b.shaped(b.node("SequenceAt", [parts, last]), 1, 2, 4, 4)
    model = b.model(b.conv(y, 3))
    assert "SplitToSequence" in [node.op_type for node in prepare(model).graph.node]
    assert exact(model).unit_count == 0
