"""Ops that fit no family here: an exact rule, or pinned by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.graph.ops.test_fused import fused, model
from tests.graph.ops.test_matmul import attend, heads
from tests.graph.oracle import exact, finish, reasons, start, units_at
from tests.model_builder import Builder


@pytest.mark.parametrize("axis", [1, 2])
def test_cumulative_products_pass_and_pin(axis: int) -> None:
    b, x = start(4, opset=14)
    graph = exact(finish(b, b.like("CumSum", x, b.constant(np.int64(axis)))))
    assert graph.unit_count == (0 if axis == 1 else 4)


@pytest.mark.parametrize("axis", [1, 3])
@pytest.mark.parametrize("opset", [10, 11])
def test_the_greatest_along_an_axis(axis: int, opset: int) -> None:
    b, x = start(5, opset=opset)
    shape = [1, 5, 6, 6]
    shape[axis] = 2
    values, _ = b.node("TopK", [x, b.ints([2])], 2, axis=axis)
    graph = exact(finish(b, b.shaped(values, *shape)))
    assert graph.unit_count == (0 if axis == 1 else 5)
    assert axis == 3 or "TopK" in reasons(graph)


def test_a_triangle_over_positions_and_over_channels() -> None:
    b, x = start(4, opset=14)
    assert exact(finish(b, b.like("Trilu", x, upper=0))).unit_count == 4
    b, x = start(4, opset=14)
    turned = b.transpose(x, 0, 2, 3, 1)
    graph = exact(finish(b, b.transpose(b.like("Trilu", turned), 0, 3, 1, 2)))
    assert graph.unit_count == 0 and "its triangle lies over channels" in reasons(graph)


def test_channels_are_sampled_each_by_itself() -> None:
    b, x = start(4, opset=16)
    grid = b.constant(b.random.uniform(-1, 1, (1, 3, 5, 2)).astype(np.float32))
    y = b.shaped(b.node("GridSample", [x, grid]), 1, 4, 3, 5)
    boxes = b.constant(np.array([[0, 0, 3, 2], [1, 0, 2, 2]], np.float32))
    y = b.node("RoiAlign", [y, boxes, b.ints([0, 0])], output_height=2, output_width=2, sampling_ratio=2)
    assert exact(finish(b, b.shaped(y, 2, 4, 2, 2))).unit_count == 4
    b, x = start(4, opset=16)
    boxes = b.constant(np.array([[0, 0, 0, 3, 2], [0, 1, 0, 2, 2]], np.float32))
    y = b.shaped(b.node("MaxRoiPool", [x, boxes], pooled_shape=[2, 2]), 2, 4, 2, 2)
    assert exact(finish(b, y)).unit_count == 4


def test_positions_that_the_model_computes_stay() -> None:
    b, x = start(4, opset=16)
    grid = b.like("Tanh", b.transpose(b.conv("x", 2, 3), 0, 2, 3, 1))
    graph = exact(finish(b, b.shaped(b.node("GridSample", [x, grid]), 1, 4, 6, 6)))
    assert graph.unit_count == 4 and "it gives positions" in reasons(graph)


@pytest.mark.parametrize(
    ("indices", "batch"),
    [
        (np.array([[0, 4], [0, 1], [0, -2]]), 0),
        (np.array([[4], [1], [-2], [0]])[None], 1),
        (np.array([[0, 4, 2], [0, 0, 1]]), 0),
    ],
)
def test_channels_picked_by_tuples(
    indices: np.ndarray[tuple[int, ...], np.dtype[np.int64]], batch: int
) -> None:
    b, x = start(6)
    y = b.node("GatherND", [x, b.constant(indices)], batch_dims=batch)
    left = (*indices.shape[:-1], *b.shapes[x][batch + indices.shape[-1] :])
    y = b.reshape(b.relu(b.shaped(y, *left)), 1, -1)
    graph = exact(b.model(b.gemm(y, 2), b.conv(x, 2)), plans=4)
    assert graph.unit_count == 6


def test_computed_tuples_pick_along_axes_without_channels() -> None:
    b, x = start(4)
    y = b.node("GatherND", [b.transpose(x, 0, 2, 3, 1), places(b, 1, 3, 2)], batch_dims=1)
    graph = exact(b.model(b.matmul(b.shaped(y, 1, 3, 4), 2)))
    assert graph.unit_count == 4
    b, x = start(4)
    y = b.node("GatherND", [x, places(b, 1, 3, 1)], batch_dims=1)
    graph = exact(finish(b, b.shaped(y, 1, 3, 6, 6)))
    assert graph.unit_count == 0 and "picks channels by computed indices" in reasons(graph)


def places(b: Builder, *shape: int) -> str:
    """An input of indices."""
    b.dtype = np.int64
    name = b.input(shape, "places")
    b.dtype = np.float32
    return name


def test_rotated_heads() -> None:
    b = Builder(opset=23)
    x = b.input((1, 5, 6))
    parts = [heads(b, b.matmul(x, 16), 4, 4) for _ in range(3)]
    angles = [b.weight(1, 5, 2), b.weight(1, 5, 2)]
    for index in range(2):
        parts[index] = b.like("RotaryEmbedding", parts[index], *angles)
    graph = exact(b.model(b.matmul(attend(b, *parts), 3)))
    assert graph.unit_count == 4


def test_a_fused_encoder_with_its_embedding_and_padding_mask() -> None:
    """BERT as onnxruntime's optimizer leaves it."""
    b = Builder()
    b.dtype = np.int32
    ids, mask = b.input((1, 5), "ids"), b.input((1, 5), "mask")
    b.dtype = np.float32
    tables = [b.weight(7, 8), b.weight(6, 8), "", b.weight(8), b.weight(8)]
    inputs = [ids, "", *tables]
    name = fused(b, "EmbedLayerNormalization", inputs, 1, 5, 8)
    b.nodes[-1].output.append(b.name("mask_index"))
    width, hidden = 8, 9
    y = fused(b, "Attention", [name, b.weight(width, 24), b.weight(24), mask], 1, 5, 8, num_heads=4)
    y = b.like("Add", b.matmul(y, width), b.weight(width))
    y = fused(b, "SkipLayerNormalization", [y, name, b.weight(8), b.weight(8)], 1, 5, 8)
    z = fused(b, "BiasGelu", [b.matmul(y, hidden), b.weight(hidden)], 1, 5, hidden)
    z = fused(b, "SkipLayerNormalization", [b.matmul(z, width), y, b.weight(8), b.weight(8)], 1, 5, 8)
    graph = exact(model(b, b.matmul(z, 3)))
    assert [len(group.units) for group in graph.groups] == [4, hidden]


Last = Callable[[Builder, str], str]


def recurrent(op: str, gates: int) -> Last:
    def build(b: Builder, x: str) -> str:
        steps = b.reshape(b.transpose(x, 2, 0, 1, 3), 6, 1, -1)
        width = b.shapes[steps][2]
        y = b.node(op, [steps, b.weight(1, gates * 4, width), b.weight(1, gates * 4, 4)], hidden_size=4)
        return b.shaped(y, 6, 1, 1, 4)

    return build


def compressed(b: Builder, x: str) -> str:
    chosen = b.constant(np.array([True, False, True, False, True]))
    return b.shaped(b.node("Compress", [x, chosen], axis=1), 1, 3, 6, 6)


def scattered(b: Builder, x: str) -> str:
    return b.like("ScatterND", x, b.constant(np.array([[0, 1]])), b.weight(1, 6, 6))


def scattered_elements(b: Builder, x: str) -> str:
    return b.like("ScatterElements", x, b.constant(np.zeros((1, 1, 1, 1), np.int64)), b.weight(1, 1, 1, 1))


def picked_elements(b: Builder, x: str) -> str:
    return b.shaped(
        b.node("GatherElements", [x, b.constant(np.ones((1, 2, 6, 6), np.int64))], axis=1), 1, 2, 6, 6
    )


def reversed_channels(b: Builder, x: str) -> str:
    return b.like("ReverseSequence", x, b.ints([4]), batch_axis=0, time_axis=1)


def counted(b: Builder, x: str) -> str:
    return b.like("Mul", x, b.node("Cast", [b.node("Size", [x])], to=1))


def unpooled(b: Builder, x: str) -> str:
    y, places = b.node("MaxPool", [x], 2, kernel_shape=[2, 2], strides=[2, 2])
    y = b.node("MaxUnpool", [y, places], kernel_shape=[2, 2], strides=[2, 2])
    return b.shaped(y, 1, 5, 6, 6)


def unique(b: Builder, x: str) -> str:
    return b.shaped(b.node("ReduceSum", [b.node("Unique", [x])], keepdims=1), 1)


def found(b: Builder, x: str) -> str:
    places = b.node("Cast", [b.node("NonZero", [b.relu(x)])], to=1)
    return b.shaped(b.node("ReduceSum", [places, b.ints([1])], keepdims=0), 4)


def hot(b: Builder, x: str) -> str:
    whole = b.node("Cast", [b.node("Clip", [x, b.constant(np.float32(0)), b.constant(np.float32(2))])], to=7)
    y = b.node("OneHot", [whole, b.constant(np.int64(3)), b.constant(np.array([0, 1], np.float32))])
    return b.reshape(b.shaped(y, 1, 5, 6, 6, 3), 1, 5, 6, 18)


def determinant(b: Builder, x: str) -> str:
    return b.shaped(b.node("Det", [x]), 1, 5)


PINNED: dict[str, Last] = {
    "Compress": compressed,
    "Det": determinant,
    "GRU": recurrent("GRU", 3),
    "GatherElements": picked_elements,
    "LSTM": recurrent("LSTM", 4),
    "MaxPool": unpooled,
    "NonZero": found,
    "OneHot": hot,
    "RNN": recurrent("RNN", 1),
    "ReverseSequence": reversed_channels,
    "ScatterElements": scattered_elements,
    "ScatterND": scattered,
    "Size": counted,
    "Unique": unique,
}


@pytest.mark.parametrize("op", sorted(PINNED))
def test_ops_without_a_rule_pin_by_name_what_reaches_them_and_nothing_before(op: str) -> None:
    b, first = start(4)
    y = PINNED[op](b, b.conv(b.relu(first), 5, 3))
    size = int(np.prod(b.shapes[y]))
    graph = exact(b.model(b.gemm(b.reshape(y, 1, size), 2)), plans=2)
    assert np.array_equal(units_at(graph, first), np.arange(4))
    assert graph.layers[1].out_units.max() == -1
    assert f"{op} 'n_{op}_" in reasons(graph)
