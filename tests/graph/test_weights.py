"""Affine steps and shifts against the nodes themselves, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.joins import Targets
from onnxprune.graph.structure import PruningGraph
from onnxprune.graph.weights import Affine, Constants, add_shift, affine_step, can_shift
from onnxprune.profile.session import open_session
from tests.model_builder import Builder
from tests.plain import finished, samples, tap

Build = Callable[[Builder], str]
SHAPE = (1, 3, 4, 5)


def constant(b: Builder, *shape: int) -> str:
    return b.constant(b.random.uniform(0.5, 2, shape).astype(np.float32))


def one_node(op: str, *shape: int, first: bool = False) -> Build:
    """A node of two inputs, its constant of ``shape`` as the first or the second one."""

    def build(b: Builder) -> str:
        x, other = b.input(SHAPE, dynamic=True), constant(b, *shape)
        return str(b.node(op, [other, x] if first else [x, other]))

    return build


def dropout(b: Builder) -> str:
    return str(b.node("Dropout", [b.input(SHAPE, dynamic=True)]))


def idle_dropout(b: Builder) -> str:
    x = b.input(SHAPE, dynamic=True)
    return str(b.node("Dropout", [x, b.constant(np.float32(0.5)), b.constant(np.array(False))]))


STEPS: dict[str, Build] = {
    "batch normalization": lambda b: b.batch_norm(b.input(SHAPE, dynamic=True)),
    "identity": lambda b: b.like("Identity", b.input(SHAPE, dynamic=True)),
    "dropout": dropout,
    "dropout that is told to idle": idle_dropout,
    "add": one_node("Add", 3, 1, 1),
    "add, constant first": one_node("Add", 1, 3, 1, 1, first=True),
    "subtract": one_node("Sub", 3, 1, 1),
    "multiply": one_node("Mul", 1, 3, 1, 1),
    "multiply by a scalar": one_node("Mul"),
    "divide": one_node("Div", 3, 1, 1),
    "add a scalar": one_node("Add", 1, first=True),
}


def step_of(build: Build, axis: int = 1, opset: int = 17) -> tuple[PruningGraph, Any]:
    b = Builder(opset=opset)
    graph = analyze_graph(finished(b, build(b)))
    node = graph.model.graph.node[0]
    return graph, affine_step(Constants(graph.model), node, "x", axis, len(SHAPE))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_what_the_node_computes(name: str) -> None:
    graph, step = step_of(STEPS[name])
    scale, shift = (np.broadcast_to(part, 3).reshape(3, 1, 1) for part in step)
    x = samples(graph, 2)
    (output,) = tap(graph, x, [graph.model.graph.output[0].name]).values()
    assert np.allclose(scale * x + shift, output, atol=1e-6)


def trained_norm(b: Builder) -> str:
    x = b.input(SHAPE, dynamic=True)
    weights = [constant(b, 3) for _ in range(4)]
    y = b.node("BatchNormalization", [x, *weights], outputs=3, training_mode=1)[0]
    return str(y)


def computed_addend(b: Builder) -> str:
    x = b.input(SHAPE, dynamic=True)
    return b.shaped(b.node("Add", [x, x]), *SHAPE)


NO_STEPS: dict[str, Build] = {
    "constant minus channels": one_node("Sub", 3, 1, 1, first=True),
    "constant over channels": one_node("Div", 3, 1, 1, first=True),
    "constant along another axis": one_node("Add", 4, 1),
    "constant along two axes": one_node("Mul", 3, 4, 1),
    "sum with itself": computed_addend,
    "normalization in training": trained_norm,
    "not affine": lambda b: b.relu(b.input(SHAPE, dynamic=True)),
}


@pytest.mark.parametrize("name", NO_STEPS)
def test_no_step(name: str) -> None:
    assert step_of(NO_STEPS[name])[1] is None


def test_a_normalization_with_several_outputs_was_in_training_before_opset_14() -> None:
    def build(b: Builder) -> str:
        x = b.input(SHAPE, dynamic=True)
        return str(b.node("BatchNormalization", [x, *(constant(b, 3) for _ in range(4))], outputs=5)[0])

    assert step_of(build, opset=13)[1] is None


def test_a_normalization_of_another_axis_is_no_step() -> None:
    assert step_of(STEPS["batch normalization"], axis=3)[1] is None


def test_division_by_zero_is_no_step() -> None:
    def build(b: Builder) -> str:
        zero = b.constant(np.array([1, 0, 2], np.float32).reshape(3, 1, 1))
        return str(b.node("Div", [b.input(SHAPE, dynamic=True), zero]))

    assert step_of(build)[1] is None


def test_chained_maps_and_their_selection() -> None:
    random = np.random.default_rng(0)
    parts = random.standard_normal((4, 5))
    affine = Affine.identity(5).then(parts[0], parts[1], "a").then(parts[2], parts[3], "b")
    x = random.standard_normal((7, 5))
    assert np.allclose(affine.scale * x + affine.shift, (x * parts[0] + parts[1]) * parts[2] + parts[3])
    mask = np.array([True, False, True, True, False])
    some = affine.select(mask)
    assert np.array_equal(some.scale, affine.scale[mask]) and np.array_equal(some.shift, affine.shift[mask])
    assert some.chain == ("a", "b")
    assert Affine(np.array([1.0, 1e-9, -1.0]), np.zeros(3)).dead.tolist() == [False, True, False]
    # A filter that never varies has the scale 1 / sqrt(epsilon), and says nothing about the others.
    assert not Affine(np.array([0.05, 316.0, 0.04]), np.zeros(3)).dead.any()
    assert Affine(np.zeros(3), np.zeros(3)).dead.all()


def image(b: Builder) -> str:
    return b.input((1, 3, 4, 4), dynamic=True)


def gemm(*bias: int, beta: float = -0.5, **attributes: Any) -> Build:
    def build(b: Builder) -> str:
        x = b.input((1, 5), dynamic=True)
        return str(b.node("Gemm", [x, b.weight(5, 4), constant(b, *bias)], beta=beta, **attributes))

    return build


def gemm_without_bias(b: Builder) -> str:
    return str(b.node("Gemm", [b.input((1, 5), dynamic=True), b.weight(5, 4)]))


def rows(b: Builder) -> str:
    return b.matmul(b.input((1, 3, 5), dynamic=True), 4)


def columns(b: Builder) -> str:
    x = b.input((1, 5, 3), dynamic=True)
    return b.shaped(b.node("MatMul", [b.weight(4, 5), x]), 1, 4, 3)


def deconvolution(b: Builder) -> str:
    return str(b.node("ConvTranspose", [image(b), b.weight(3, 4, 2, 2)]))


SHIFTS: dict[str, Build] = {
    "conv with bias": lambda b: b.conv(image(b), 4, 3),
    "conv without bias": lambda b: b.conv(image(b), 4, 3, bias=False),
    "conv without bias before a normalization": lambda b: b.batch_norm(b.conv(image(b), 4, 3, bias=False)),
    "conv with bias before a normalization": lambda b: b.batch_norm(b.conv(image(b), 4, 3)),
    "conv before a factor": lambda b: b.like("Mul", b.conv(image(b), 4, bias=False), b.weight(4, 1, 1)),
    "grouped conv": lambda b: b.conv(b.input((1, 4, 4, 4), dynamic=True), 4, 3, groups=2, bias=False),
    "deconvolution": deconvolution,
    "gemm": gemm(4),
    "gemm, scalar bias": gemm(),
    "gemm, one bias for all": gemm(1),
    "gemm, 2-d bias": gemm(1, 4),
    "gemm without bias": gemm_without_bias,
    "matmul, add": lambda b: b.like("Add", rows(b), b.weight(4)),
    "matmul, add, constant first": lambda b: b.shaped(b.node("Add", [b.weight(4), rows(b)]), 1, 3, 4),
    "matmul, subtract": lambda b: b.like("Sub", rows(b), b.weight(4)),
    "matmul, identity, add": lambda b: b.like("Add", b.like("Identity", rows(b)), b.weight(1, 4)),
    "matmul, weight on the left, add": lambda b: b.like("Add", columns(b), b.weight(4, 1)),
    "matmul, weight on the left, normalization": lambda b: b.batch_norm(columns(b)),
}


@pytest.mark.parametrize("name", SHIFTS)
def test_the_layer_shifts_as_asked(name: str) -> None:
    """What follows the layer affinely moves by scale * shift, everywhere."""
    b = Builder()
    graph = analyze_graph(finished(b, SHIFTS[name](b)))
    (layer,) = graph.layers
    target = Targets(graph).of(layer)
    constants = Constants(graph.model)
    assert can_shift(constants, layer, target.affine)
    x = samples(graph, 2)
    before = tap(graph, x, [target.tensor])[target.tensor]
    shift = np.random.default_rng(1).standard_normal(before.shape[layer.channel_axis])
    add_shift(constants, layer, target.affine, shift)
    after = open_session(graph.model, outputs=[target.tensor]).run({"x": x})[target.tensor]
    expected = np.zeros_like(before) + np.reshape(
        target.affine.scale * shift, [-1 if axis == layer.channel_axis else 1 for axis in range(before.ndim)]
    )
    assert np.allclose(after - before, expected, atol=1e-5)


def conv_with_computed_bias(b: Builder) -> str:
    x = b.input((1, 3, 4, 4), dynamic=True)
    bias = b.node("Reshape", [b.node("ReduceMean", [x], axes=[0, 2, 3], keepdims=0), b.ints([3])])
    return str(b.node("Conv", [x, b.weight(3, 3, 1, 1), bias]))


NO_SHIFTS: dict[str, Build] = {
    "gemm whose bias is switched off": gemm(4, beta=0.0),
    "matmul alone": rows,
    "matmul before a factor": lambda b: b.like("Add", b.like("Mul", rows(b), b.weight(4)), b.weight(4)),
    "matmul before a scalar": lambda b: b.like("Add", rows(b), b.weight(1)),
    "conv with a computed bias": conv_with_computed_bias,
}


@pytest.mark.parametrize("name", NO_SHIFTS)
def test_no_place_for_a_shift(name: str) -> None:
    b = Builder()
    graph = analyze_graph(finished(b, NO_SHIFTS[name](b)))
    (layer,) = graph.layers
    assert not can_shift(Constants(graph.model), layer, Targets(graph).of(layer).affine)


def test_a_new_bias_takes_no_name_that_exists() -> None:
    b = Builder()
    y = b.conv(image(b), 4, bias=False)
    b.nodes[0].name = "c"
    z = b.relu(y)
    b.nodes[-1].output[0] = "c.bias"
    b.shapes["c.bias"] = b.shapes[z]
    graph = analyze_graph(b.model("c.bias"))
    constants = Constants(graph.model)
    add_shift(constants, graph.layers[0], Affine.identity(4), np.ones(4))
    assert graph.model.graph.node[0].input[2] not in ("c.bias", "")
    open_session(graph.model)
