from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.ops.elementwise import UNARY
from tests.graph.oracle import exact, finish, reasons, start, units_at
from tests.model_builder import Builder

ELSEWHERE = {"BitwiseNot", "Cast", "CastLike", "IsInf", "IsNaN", "Not", "Swish"}
RUNNABLE = sorted(set(UNARY) - ELSEWHERE)


@pytest.mark.parametrize("op", RUNNABLE)
def test_unary(op: str) -> None:
    b, x = start(4, opset=20, size=3)
    # Inside every op's domain, and signed where the op allows it.
    safe = b.like("Add", b.like("Sigmoid", x), b.constant(np.float32(1 if op == "Acosh" else 0.01)))
    if op in ("Acos", "Asin", "Atanh"):
        safe = b.like("Mul", safe, b.constant(np.float32(-0.5)))
    graph = exact(finish(b, b.like(op, x if op in ("Relu", "Tanh", "Abs", "Neg") else safe)), plans=2)
    assert graph.unit_count == 4


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Mean", "Sum", "PRelu"])
@pytest.mark.parametrize(
    "shape", [(4, 1, 1), (1, 4, 1, 1), (1,), (), (1, 1, 3, 3), (3, 3), (1, 4, 3, 3), (4, 3, 3), (4, 1, 3)]
)
def test_constants_take_the_labels_that_they_meet(op: str, shape: tuple[int, ...]) -> None:
    b, x = start(4, size=3)
    x = b.like("Softplus", x)
    constant = b.constant(b.random.uniform(0.5, 2, shape).astype(np.float32))
    y = b.like(op, x, constant)
    graph = exact(finish(b, y), plans=2)
    assert graph.unit_count == 4
    axis = len(shape) - 3
    axes = [entry is not None for entry in graph.axes[constant]]
    assert axes == [axis >= 0 and position == axis and shape[axis] == 4 for position in range(len(shape))]


def test_the_constant_may_come_first_and_be_wider() -> None:
    b = Builder()
    x = b.gemm(b.input((1, 5)), 4)
    y = b.shaped(b.node("Sub", [b.weight(3, 2, 4), x]), 3, 2, 4)
    graph = exact(b.model(b.matmul(y, 3)))
    assert graph.unit_count == 4


def test_where_and_clip() -> None:
    b, x = start(4)
    z = b.conv("x", 4, 3)
    low = b.like("Clip", x, b.constant(np.float32(-0.3)), b.constant(np.float32(0.4)))
    y = b.like("Where", b.like("Greater", x, z), low, z)
    b.shapes[y] = b.shapes[x]
    graph = exact(finish(b, y))
    assert graph.unit_count == 4 and len(graph.groups) == 1


def test_a_gate_for_each_channel_is_merged() -> None:
    b, x = start(6)
    gate = b.like("Sigmoid", b.conv(b.relu(b.conv(b.global_pool(x), 2)), 6))
    graph = exact(finish(b, b.like("Mul", x, gate)))
    assert [len(group.units) for group in graph.groups] == [6, 2]


def test_a_gate_for_each_position_is_pinned_and_binds_nothing() -> None:
    b, x = start(6)
    gate = b.like("Sigmoid", b.conv(x, 1, 3))
    y = b.shaped(b.node("Mul", [gate, x]), *b.shapes[x])
    graph = exact(finish(b, y))
    assert graph.unit_count == 6
    assert np.array_equal(units_at(graph, x), units_at(graph, y))
    assert "it is spread over several channels" in reasons(graph)


def test_an_outer_product_pins_both() -> None:
    b = Builder()
    source = b.input((1, 5))
    left = b.reshape(b.gemm(source, 4), 1, 4, 1)
    right = b.reshape(b.gemm(source, 3), 1, 1, 3)
    product = b.shaped(b.node("Mul", [left, right]), 1, 4, 3)
    graph = exact(b.model(b.matmul(product, 2)))
    assert graph.unit_count == 0


def test_fixed_data_pins_only_where_it_meets_a_channel() -> None:
    b, x = start(5)
    wide = b.concat("x", x)
    other = b.conv("x", 8, 3)
    graph = exact(finish(b, b.like("Add", wide, other)))
    assert units_at(graph, other)[:3].max() == -1
    assert np.array_equal(units_at(graph, other)[3:], units_at(graph, x)) and graph.unit_count == 5
    assert "its other input has no channels that can go" in reasons(graph)


def test_fixed_data_of_one_channel_binds_nothing() -> None:
    b = Builder()
    mask = b.input((1, 1, 4, 4), "mask")
    x = b.conv(b.input((1, 3, 4, 4)), 6, 3)
    graph = exact(finish(b, b.like("Mul", x, mask)))
    assert graph.unit_count == 6


def test_dropouts_second_output_may_have_no_shape() -> None:
    b, x = start(4)
    y, _ = b.node("Dropout", [x], 2)
    graph = exact(finish(b, b.shaped(y, *b.shapes[x])))
    assert graph.unit_count == 4


def test_casts_pass() -> None:
    b, x = start(4)
    y = b.like("Cast", b.like("Cast", x, to=TensorProto.DOUBLE), to=TensorProto.FLOAT)
    assert exact(finish(b, y)).unit_count == 4


@pytest.mark.parametrize("training", [False, True])
def test_dropout_in_training_stays(training: bool) -> None:
    b, x = start(6)
    y = b.like("Dropout", x, b.constant(np.float32(0.5)), b.constant(np.bool_(training)))
    graph = analyze_graph(finish(b, y))
    assert graph.unit_count == (0 if training else 6)
    assert ("it drops at random" in reasons(graph)) == training
