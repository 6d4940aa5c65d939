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
