"""The oracle itself: it must pass what is right, and catch every kind of wrong model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnxprune.errors import ModelError, VerificationError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.check import masked, relative_error, verify
from onnxprune.graph.plan import Plan, keep_all
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph
from tests.model_builder import Builder
from tests.strategies import random_plan


@pytest.fixture(scope="module")
def graph() -> PruningGraph:
    b = Builder(opset=13)
    x = b.relu(b.batch_norm(b.conv(b.input((1, 2, 4, 4)), 4, 3)))
    x = b.relu(b.like("Add", x, b.conv(b.relu(b.conv(x, 6, 3)), 4, 3)))
    x = b.like("Add", b.matmul(b.flatten(x), 5), b.weight(5))
    return analyze_graph(b.model(b.gemm(b.relu(x), 3, trans=False)))


@pytest.fixture(scope="module")
def plan(graph: PruningGraph) -> Plan:
    plan = keep_all(graph)
    plan.keep[[group.units[1] for group in graph.groups]] = False
    return plan


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_masking_equals_zeroing_the_consumers_weights(graph: PruningGraph, plan: Plan) -> None:
    """An independent way to silence a channel: zeros in every weight that reads it."""
    zeroed = onnx.ModelProto()
    zeroed.CopyFrom(graph.model)
    tensors = {tensor.name: tensor for tensor in zeroed.graph.initializer}
    for layer in graph.layers:
        weight = numpy_helper.to_array(tensors[layer.weight]).copy()
        gone = np.isin(layer.in_units, np.flatnonzero(~plan.keep))
        shape = [1] * weight.ndim
        shape[layer.weight_in_axis] = len(gone)
        weight = np.where(gone.reshape(shape), np.float32(0), weight)
        tensors[layer.weight].CopyFrom(numpy_helper.from_array(weight, layer.weight))
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(masked(graph, plan), x), run(zeroed, x), rtol=1e-5, atol=1e-5)
    assert not np.allclose(run(graph.model, x), run(zeroed, x), atol=1e-3)


def test_nothing_removed_adds_no_mask(graph: PruningGraph) -> None:
    assert masked(graph, keep_all(graph)) == graph.model


def test_graph_model_is_left_alone(graph: PruningGraph, plan: Plan) -> None:
    before = graph.model.SerializeToString(deterministic=True)
    masked(graph, plan)
    assert graph.model.SerializeToString(deterministic=True) == before


def test_same_seed_same_error(graph: PruningGraph, plan: Plan) -> None:
    pruned = rewrite(graph, plan)
    assert verify(graph, plan, pruned, seed=3) == verify(graph, plan, pruned, seed=3) <= 1e-5


def change(name_part: str, edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name.startswith(name_part))
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(edit(value), tensor.name))

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        change("w", lambda v: v + np.float32(1e-3)),
        change("w", lambda v: -v),
        change("w", lambda v: v[::-1].copy()),
        change("b", lambda v: v * np.float32(1.01)),
        change("var", lambda v: v * np.float32(1.01)),
    ],
)
def test_a_wrong_model_is_caught(
    graph: PruningGraph, plan: Plan, damage: Callable[[onnx.ModelProto], None]
) -> None:
    pruned = rewrite(graph, plan)
    damage(pruned)
    with pytest.raises(VerificationError, match="is off by") as caught:
        verify(graph, plan, pruned)
    assert caught.value.exit_code == 1


def test_a_model_that_makes_much_of_rounding_errors_may_be_off_by_some() -> None:
    """Sines of great numbers; onnxruntime's own optimisations fold the normalisation into the layer."""
    b = Builder()
    x = b.relu(b.batch_norm(b.conv(b.input((1, 3, 6, 6)), 8, 3)))
    wide = b.like("Mul", b.batch_norm(b.conv(x, 4, 3)), b.constant(np.float32(1e3)))
    graph = analyze_graph(b.model(b.like("Sin", wide)))
    half = Plan(np.arange(graph.unit_count) % 2 > 0)

    def error(factor: float) -> float:
        pruned = rewrite(graph, half)
        weight = next(t for t in pruned.graph.initializer if t.name == graph.layers[-1].weight)
        off = (numpy_helper.to_array(weight) * np.float64(factor)).astype(np.float32)
        weight.CopyFrom(numpy_helper.from_array(off, weight.name))
        return verify(graph, half, pruned)

    assert 1e-5 < error(1 + 2**-23) < 1e-3
    with pytest.raises(VerificationError, match="is off by"):
        error(1 + 1e-5)


def test_a_model_pruned_by_another_plan_is_caught(graph: PruningGraph, plan: Plan) -> None:
    other = Plan(plan.keep.copy())
    units = graph.groups[0].units
    other.keep[units[[1, 2]]] = True, False
    with pytest.raises(VerificationError):
        verify(graph, plan, rewrite(graph, other))


def test_a_model_that_does_not_load_is_caught(graph: PruningGraph, plan: Plan) -> None:
    broken = rewrite(graph, plan)
    broken.graph.node[0].op_type = "NoSuchOp"
    with pytest.raises(VerificationError, match="can't run the pruned model"):
        verify(graph, plan, broken)


def test_an_original_that_onnxruntime_lacks_is_the_models_matter() -> None:
    b = Builder()
    x = b.conv(b.input((1, 2, 4, 4)), 3, 1)
    graph = analyze_graph(b.model(x))
    graph.model.graph.node.add(op_type="Odd", input=[x], output=["y"], name="odd", domain="some.where")
    graph.model.opset_import.add(domain="some.where", version=1)
    with pytest.raises(ModelError, match="can't run the original"):
        verify(graph, keep_all(graph), graph.model)


def test_products_of_two_activations_are_masked() -> None:
    b = Builder(opset=13)
    x = b.flatten(b.input((1, 2, 2, 2)))
    left, right = b.reshape(b.gemm(x, 12), 1, 4, 3), b.reshape(b.gemm(x, 12), 1, 3, 4)
    b.shaped(product := b.node("MatMul", [left, right]), 1, 4, 4)
    graph = analyze_graph(b.model(b.gemm(b.flatten(product), 3)))
    for seed in range(3):
        plan = random_plan(graph, seed, 0.5)
        assert verify(graph, plan, rewrite(graph, plan)) <= 1e-5


@pytest.mark.parametrize(
    ("wanted", "found", "error"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.0, -4.4], 0.1),
        ([0.0], [1e-7], 0.1),
        ([np.inf, np.nan, 2.0], [np.inf, np.nan, 2.0], 0.0),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([1.0], [np.nan], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
    ],
)
def test_relative_error(wanted: list[float], found: list[float], error: float) -> None:
    assert relative_error(np.array(wanted), np.array(found)) == pytest.approx(error)


def test_integer_outputs_must_be_equal() -> None:
    assert relative_error(np.array([1, 2]), np.array([1, 2])) == 0
    assert relative_error(np.array([1, 2]), np.array([1, 3])) == np.inf


@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_draws_random_numbers_cannot_be_compared(training: bool) -> None:
    b = Builder(opset=13)
    x = b.relu(b.conv(b.input((1, 2, 4, 4)), 4, 3))
    x = b.like("Dropout", x, b.constant(np.float32(0.5)), b.constant(np.bool_(training)))
    graph = analyze_graph(b.model(b.conv(x, 3, 3)))
    plan = keep_all(graph)
    if not training:
        assert verify(graph, plan, rewrite(graph, plan)) == 0.0
        return
    with pytest.raises(ModelError, match="draws random numbers"):
        verify(graph, plan, rewrite(graph, plan))
