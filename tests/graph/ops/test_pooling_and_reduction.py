from __future__ import annotations

import numpy as np
import pytest

from onnxprune.graph.reduced import REDUCTIONS
from tests.graph.oracle import exact, finish, reasons, start, units_at
from tests.model_builder import Builder


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool", "LpPool"])
def test_pools(op: str) -> None:
    b, x = start(4)
    assert exact(finish(b, b.pool(op, x))).unit_count == 4


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pools(op: str) -> None:
    b, x = start(4)
    y = b.shaped(b.node(op, [x]), 1, 4, 1, 1)
    assert exact(finish(b, y)).unit_count == 4


def test_a_pool_over_channels_pins() -> None:
    b, x = start(4)
    y = b.pool("MaxPool", b.transpose(x, 0, 2, 1, 3))
    graph = exact(finish(b, y))
    assert graph.unit_count == 0 and "not on axis 1" in reasons(graph)


def test_the_indices_of_a_pool_pin() -> None:
    b, x = start(4)
    y, indices = b.node("MaxPool", [x], 2, kernel_shape=[2, 2])
    value = b.node("Cast", [indices], to=1)
    y = b.node("Add", [y, value])
    graph = exact(finish(b, b.shaped(y, 1, 4, 5, 5)))
    assert graph.unit_count == 0 and "indices" in reasons(graph)


@pytest.mark.parametrize("by_sizes", [False, True])
def test_resize(by_sizes: bool) -> None:
    b, x = start(4, size=3)
    if by_sizes:
        y = b.node("Resize", [x, "", "", b.ints([1, 4, 6, 9])], mode="linear")
    else:
        y = b.node("Resize", [x, "", b.constant(np.array([1, 1, 2, 3], np.float32))], mode="linear")
    assert exact(finish(b, b.shaped(y, 1, 4, 6, 9))).unit_count == 4


def test_resizing_the_channels_pins() -> None:
    b, x = start(4, size=3)
    y = b.node("Resize", [x, "", b.constant(np.array([1, 2, 1, 1], np.float32))], mode="nearest")
    graph = exact(finish(b, b.shaped(y, 1, 8, 3, 3)))
    assert graph.unit_count == 0 and "it resizes the channels' axis" in reasons(graph)


@pytest.mark.parametrize("opset", [12, 18])
@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_over_positions_pass(op: str, keep: int, opset: int) -> None:
    b, x = start(4, opset=opset, size=3)
    positive = b.like("Softplus", x)
    y = b.reduce(op, positive, 2, -1, keep=keep)
    graph = exact(finish(b, y) if keep else b.model(b.gemm(y, 3)), plans=2)
    assert graph.unit_count == 4


def test_the_winner_among_positions_passes() -> None:
    b = Builder()
    x = b.matmul(b.input((1, 4, 5)), 6)
    y = b.shaped(b.node("Cast", [b.node("ArgMax", [x], axis=1, keepdims=0)], to=1), 1, 6)
    graph = exact(b.model(b.gemm(y, 3)))
    assert graph.unit_count == 6
    assert np.array_equal(units_at(graph, y), units_at(graph, x, 2))


def test_a_running_sum() -> None:
    for axis, units in ((2, 4), (1, 0)):
        b, x = start(4)
        y = b.like("CumSum", x, b.constant(np.int64(axis)))
        assert exact(finish(b, y)).unit_count == units
