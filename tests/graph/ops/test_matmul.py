from __future__ import annotations

import numpy as np
import pytest

from tests.graph.oracle import exact, reasons, units_at
from tests.model_builder import Builder


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [(), (1,), (4,), (1, 4), (1, 1), None])
def test_gemm(trans_a: int, trans_b: int, bias: tuple[int, ...] | None) -> None:
    b = Builder()
    x = b.relu(b.gemm(b.input((1, 5)), 6))
    source = b.transpose(x, 1, 0) if trans_a else x
    inputs = [source, b.weight(4, 6) if trans_b else b.weight(6, 4)]
    if bias is not None:
        inputs.append(b.constant(b.random.standard_normal(bias).astype(np.float32)))
    y = b.node("Gemm", inputs, transA=trans_a, transB=trans_b, alpha=0.5, beta=-2.0)
    graph = exact(b.model(b.gemm(b.relu(b.shaped(y, 1, 4)), 3)))
    assert [len(group.units) for group in graph.groups] == [6, 4]
    layer = graph.layers[1]
    assert layer.channel_axis == (0 if trans_a else 1)
    assert (layer.weight_in_axis, layer.weight_out_axis) == ((1, 0) if trans_b else (0, 1))


def test_a_computed_addend_of_gemm_is_merged() -> None:
    b = Builder()
    x = b.gemm(b.input((1, 5)), 4)
    y = b.shaped(b.node("Gemm", [b.relu(x), b.weight(4, 4), x]), 1, 4)
    graph = exact(b.model(b.gemm(y, 3)))
    assert np.array_equal(units_at(graph, x), units_at(graph, y)) and graph.unit_count == 4


@pytest.mark.parametrize("shape", [(1, 5), (1, 4, 5), (1, 2, 4, 5)])
def test_matmul_with_a_matrix_on_the_right(shape: tuple[int, ...]) -> None:
    b = Builder()
    x = b.like("Add", b.matmul(b.input(shape), 6), b.weight(6))
    graph = exact(b.model(b.matmul(b.relu(x), 3)))
    assert graph.unit_count == 6
    assert graph.layers[1].channel_axis == len(shape) - 1
    assert np.array_equal(units_at(graph, x, len(shape) - 1), graph.layers[1].in_units)


def test_matmul_with_a_matrix_on_the_left() -> None:
    b = Builder()
    x = b.shaped(b.node("MatMul", [b.weight(6, 4), b.input((1, 4, 5))]), 1, 6, 5)
    y = b.shaped(b.node("MatMul", [b.weight(3, 6), b.relu(x)]), 1, 3, 5)
    graph = exact(b.model(y))
    assert graph.unit_count == 6
    layer = graph.layers[1]
    assert (layer.weight_in_axis, layer.weight_out_axis, layer.channel_axis) == (1, 0, 1)


def test_channels_pass_a_matmul_over_another_axis() -> None:
    b = Builder()
    x = b.relu(b.matmul(b.input((1, 4, 5)), 6))
    mixed = b.matmul(b.transpose(x, 0, 2, 1), 4)
    graph = exact(b.model(b.matmul(b.transpose(mixed, 0, 2, 1), 3)))
    assert graph.unit_count == 6
    assert np.array_equal(units_at(graph, mixed, 1), units_at(graph, x, 2))
    assert (graph.layers[1].in_units == -1).all() and (graph.layers[1].out_units == -1).all()


def test_a_stack_of_matrices_pins() -> None:
    b = Builder()
    x = b.matmul(b.input((1, 2, 4, 5)), 6)
    graph = exact(b.model(b.shaped(b.node("MatMul", [x, b.weight(2, 6, 3)]), 1, 2, 4, 3)))
    assert graph.unit_count == 0
    assert "its weight is not one matrix" in reasons(graph)


def heads(b: Builder, x: str, count: int, each: int) -> str:
    """(1, T, count * each) -> (1, count, T, each)."""
    return b.transpose(b.reshape(x, 1, -1, count, each), 0, 2, 1, 3)


def attend(b: Builder, query: str, key: str, value: str) -> str:
    """softmax(Q K') V for (1, H, T, D)."""
    _, count, tokens, each = b.shapes[query]
    turned = b.transpose(key, 0, 1, 3, 2)
    scores = b.shaped(b.node("MatMul", [query, turned]), 1, count, tokens, b.shapes[key][2])
    weights = b.like("Softmax", b.like("Mul", scores, b.constant(np.float32(each**-0.5))), axis=-1)
    result = b.shaped(b.node("MatMul", [weights, value]), 1, count, tokens, b.shapes[value][3])
    return b.reshape(b.transpose(result, 0, 2, 1, 3), 1, tokens, -1)


def test_attention_goes_head_by_head() -> None:
    b = Builder()
    x = b.input((1, 5, 6))
    parts = [b.matmul(x, size) for size in (12, 12, 8)]
    query, key, value = (heads(b, part, 4, b.shapes[part][2] // 4) for part in parts)
    graph = exact(b.model(b.matmul(attend(b, query, key, value), 3)))
    assert graph.unit_count == 4 and len(graph.groups) == 1
    for part in parts:
        assert np.array_equal(units_at(graph, part, 2), np.repeat(np.arange(4), b.shapes[part][2] // 4))


def test_attention_with_one_projection_and_one_bias_for_each_head() -> None:
    b = Builder()
    x = b.matmul(b.input((1, 5, 6)), 36)
    stacked = b.transpose(b.reshape(x, 1, 5, 3, 4, 3), 2, 0, 3, 1, 4)
    parts = []
    for position in range(3):
        one = b.slice(stacked, 0, position, position + 1)
        parts.append(b.shaped(b.node("Squeeze", [one, b.ints([0])]), 1, 4, 5, 3))
    query = b.like("Add", parts[0], b.weight(4, 1, 1))
    graph = exact(b.model(b.matmul(attend(b, query, parts[1], parts[2]), 3)))
    assert graph.unit_count == 4
    assert np.array_equal(units_at(graph, x, 2), np.tile(np.repeat(np.arange(4), 3), 3))


def test_a_single_head_loses_positions() -> None:
    b = Builder()
    x = b.input((1, 5, 6))
    query, key, value = (b.matmul(x, size) for size in (7, 7, 4))
    scores = b.shaped(b.node("MatMul", [query, b.transpose(key, 0, 2, 1)]), 1, 5, 5)
    mixed = b.shaped(b.node("MatMul", [b.like("Softmax", scores, axis=-1), value]), 1, 5, 4)
    graph = exact(b.model(b.matmul(mixed, 3)))
    assert np.array_equal(units_at(graph, query, 2), units_at(graph, key, 2))
    assert [len(group.units) for group in graph.groups] == [7, 4]


def test_fixed_data_pins_what_it_is_multiplied_with() -> None:
    b = Builder()
    x = b.input((1, 5, 6))
    query = b.matmul(x, 6)
    scores = b.shaped(b.node("MatMul", [query, b.transpose(x, 0, 2, 1)]), 1, 5, 5)
    graph = exact(b.model(b.matmul(scores, 3)))
    assert graph.unit_count == 0


def test_an_outer_product_of_activations_keeps_both() -> None:
    b = Builder()
    x = b.input((1, 5))
    left = b.reshape(b.gemm(x, 4), 1, 4, 1)
    right = b.reshape(b.gemm(x, 3), 1, 1, 3)
    product = b.shaped(b.node("MatMul", [left, right]), 1, 4, 3)
    assert exact(b.model(b.matmul(product, 2))).unit_count == 0


def test_fixed_data_for_each_head_pins_the_heads() -> None:
    """When it is met, the head is still many labels; it is one only after the product."""
    b = Builder()
    x, gate = b.input((1, 5, 6)), b.input((1, 4, 1, 1), "gate")
    query, key, value = (heads(b, b.matmul(x, 12), 4, 3) for _ in range(3))
    query = b.like("Mul", query, gate)
    graph = exact(b.model(b.matmul(attend(b, query, key, value), 3)))
    assert graph.unit_count == 0
    assert "its other input has no channels that can go" in reasons(graph)
