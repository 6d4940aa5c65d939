from __future__ import annotations

import numpy as np
import pytest

from tests.graph.ops.test_matmul import heads
from tests.graph.oracle import exact, reasons, units_at
from tests.model_builder import Builder


@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("mask", [None, (5, 5), (1, 4, 5, 5)])
def test_whole_heads_go_with_the_keys_that_they_share(shared: int, mask: tuple[int, ...] | None) -> None:
    b = Builder(opset=23)
    x = b.input((1, 5, 6))
    query, key, value = b.matmul(x, 12), b.matmul(x, shared * 3), b.matmul(x, shared * 2)
    inputs = [heads(b, query, 4, 3), heads(b, key, shared, 3), heads(b, value, shared, 2)]
    if mask:
        inputs.append(b.weight(*mask))
    y = b.shaped(b.node("Attention", inputs), 1, 4, 5, 2)
    y = b.reshape(b.transpose(y, 0, 2, 1, 3), 1, 5, -1)
    graph = exact(b.model(b.matmul(y, 3)))
    assert graph.unit_count == shared
    assert np.array_equal(units_at(graph, query, 2), np.repeat(np.arange(shared), 12 // shared))
    assert np.array_equal(units_at(graph, value, 2), np.repeat(np.arange(shared), 2))


@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("mask", [None, (5, 5), (1, 4, 5, 5)])
def test_heads_folded_into_the_last_axis_go_with_their_number(
    shared: int, mask: tuple[int, ...] | None
) -> None:
    b = Builder(opset=23)
    x = b.input((1, 5, 6))
    inputs = [b.matmul(x, 12), b.matmul(x, shared * 3), b.matmul(x, shared * 2)]
    if mask:
        inputs.append(b.weight(*mask))
    y = b.shaped(b.node("Attention", inputs, q_num_heads=4, kv_num_heads=shared, is_causal=1), 1, 5, 8)
    graph = exact(b.model(b.matmul(y, 3)))
    assert graph.unit_count == shared
    assert np.array_equal(units_at(graph, y, 2), np.repeat(np.arange(shared), 8 // shared))


def test_a_mask_that_the_graph_computes_for_each_head() -> None:
    b = Builder(opset=23)
    x = b.input((1, 5, 6))
    parts = [b.matmul(x, 8) for _ in range(3)]
    bias = b.reshape(b.matmul(b.input((1, 5, 5, 2), "pairs"), 4), 1, 5, 5, 4)
    inputs = [*parts, b.transpose(bias, 0, 3, 1, 2)]
    y = b.shaped(b.node("Attention", inputs, q_num_heads=4, kv_num_heads=4), 1, 5, 8)
    graph = exact(b.model(b.matmul(y, 3)))
    assert graph.unit_count == 4
    assert np.array_equal(units_at(graph, bias, 3), np.arange(4))


def test_caches_are_left_alone() -> None:
    b = Builder(opset=23)
    x = b.input((1, 5, 6))
    parts = [heads(b, b.matmul(x, 8), 2, 4) for _ in range(3)]
    caches = [b.input((1, 2, 3, 4), name) for name in ("past_key", "past_value")]
    y = b.shaped(b.node("Attention", [*parts, "", *caches], outputs=3)[0], 1, 2, 5, 4)
    graph = exact(b.model(b.matmul(b.reshape(b.transpose(y, 0, 2, 1, 3), 1, 5, -1), 3)))
    assert graph.unit_count == 0 and "it keeps a cache" in reasons(graph)


@pytest.mark.parametrize("shape", [(3, 5), (1, 4, 3, 5)])
@pytest.mark.parametrize("axis", [-1, -2])
def test_channels_of_a_mask_that_are_not_heads_stay(shape: tuple[int, ...], axis: int) -> None:
    b = Builder(opset=23)
    mask = b.matmul(b.input(shape, "m"), 5)
    if axis == -2:
        wide = b.matmul(b.input((*shape[:-2], 5, shape[-2]), "n"), shape[-2])
        mask = b.transpose(wide, *range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    key = b.weight(1, 4, 5, 6)
    inputs = [b.like("Relu", b.input((1, 4, 3, 6))), key, b.weight(1, 4, 5, 6), mask]
    y = b.shaped(b.node("Attention", inputs), 1, 4, 3, 6)
    assert exact(b.model(b.matmul(y, 3))).unit_count == 0


def test_channels_on_the_batch_axis_stay() -> None:
    b = Builder(opset=23)
    key = b.transpose(b.matmul(b.input((4, 5, 6, 2)), 3), 3, 0, 1, 2)
    query = b.relu(b.input((3, 4, 5, 6), "q"))
    y = b.shaped(b.node("Attention", [query, key, key]), 3, 4, 5, 6)
    assert exact(b.model(b.matmul(y, 3))).unit_count == 0
