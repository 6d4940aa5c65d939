"""Baselines that look at data: scores against their definitions, run by onnxruntime and numpy alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from onnxprune import pipeline
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.evaluate.datasets import load_dataset
from onnxprune.goals import macs_goal
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.structure import Group, PruningGraph
from onnxprune.graph.weights import Constants
from onnxprune.profile.cost import CostModel
from onnxprune.profile.gradients import BATCH, collect_importance
from onnxprune.profile.session import open_session
from onnxprune.profile.statistics import collect_statistics
from onnxprune.progress import SilentProgress
from onnxprune.select.allocate import CostGoal, Limits
from onnxprune.select.rankings import LassoSettings, contribution_terms, lasso_rankings
from onnxprune.select.scores import activation_scores
from onnxprune.select.select import plan_within, rank
from tests.model_builder import Builder
from tests.plain import finished, run, samples, tap

Array = np.ndarray


def network(batch: bool = True) -> PruningGraph:
    """A residual join read by a grouped Conv and a deconvolution, then a transposed Gemm."""
    b = Builder()
    x = b.relu(b.batch_norm(b.conv(b.input((1, 3, 6, 6), dynamic=batch), 6, 3)))
    y = b.batch_norm(b.conv(b.relu(b.conv(x, 4, 3)), 6, 1))
    joined = b.relu(b.like("Add", x, y))
    grouped = b.relu(b.conv(joined, 4, 3, groups=2))
    up = b.shaped(b.node("ConvTranspose", [joined, b.weight(6, 4, 1, 1)]), 1, 4, 6, 6)
    pooled = b.flatten(b.global_pool(b.concat(grouped, b.relu(up))))
    return analyze_graph(finished(b, b.gemm(b.relu(b.gemm(pooled, 5)), 3, trans=False)))


def dataset(graph: PruningGraph, inputs: Array, labels: Array | None) -> object:
    return load_dataset((inputs, labels), open_session(graph.model).input)


def test_activation_norms_times_weights() -> None:
    graph = network()
    inputs = samples(graph, 12)
    statistics = collect_statistics(
        graph, dataset(graph, inputs, None), np.zeros(12, np.int64),
        provider="cpu", threads=1, progress=SilentProgress(),
    )  # fmt: skip
    constants = Constants(graph.model)
    assert any(len(group.consumers) > 1 for group in graph.groups)
    for group in graph.groups:
        wanted = np.zeros(len(group.units))
        for layer in map(graph.layer, group.consumers):
            weight = np.abs(constants.read(layer.weight)).astype(np.float64)
            values = torch.from_numpy(tap(graph, inputs, [layer.input])[layer.input])
            if layer.op == "Conv":
                size = weight.shape[-1]
                patches = torch.nn.functional.unfold(values, size, padding=size // 2)
                root = patches.square().mean((0, 2)).sqrt().reshape(-1, size, size).numpy()
                share = len(weight) // layer.groups
                passed = [
                    (
                        weight[index // weight.shape[1] * share :][:share, index % weight.shape[1]]
                        * root[index]
                    )
                    for index in range(len(root))
                ]
            elif layer.op == "ConvTranspose":
                root = values.square().mean((0, 2, 3)).sqrt().numpy()
                passed = [weight[index] * root[index] for index in range(len(root))]
            else:
                root = values.square().mean(0).sqrt().numpy()
                rows = np.moveaxis(weight, layer.weight_in_axis, 0)
                passed = [rows[index] * root[index] for index in range(len(root))]
            for index, unit in enumerate(layer.in_units):
                wanted[group.units == unit] += passed[index].sum()
        np.testing.assert_allclose(activation_scores(constants, group, statistics), wanted, rtol=1e-4)


def loss(model: onnx.ModelProto, inputs: Array, labels: Array | None) -> float:
    """Mean cross entropy, by onnxruntime."""
    name = model.graph.output[0].name
    scores = run(model, {model.graph.input[0].name: inputs}, [name])[name].astype(np.float64)
    wanted = scores.argmax(1) if labels is None else labels
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    return float(-logs[np.arange(len(scores)), wanted].mean())


def slope(graph: PruningGraph, group: Group, unit: int, inputs: Array, labels: Array | None) -> float:
    """The loss's derivative by a mask on one unit's input channels, by central differences."""
    losses = []
    for mask in (1.01, 0.99):
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        constants = Constants(model)
        for layer in map(graph.layer, group.consumers):
            weight = constants.read(layer.weight).copy()
            for index in np.flatnonzero(layer.in_units == unit):
                if layer.op == "Conv":
                    share = len(weight) // layer.groups
                    block = index // weight.shape[1]
                    weight[block * share : (block + 1) * share, index % weight.shape[1]] *= mask
                else:
                    np.moveaxis(weight, layer.weight_in_axis, 0)[index] *= mask
            constants.write(layer.weight, weight)
        losses.append(loss(model, inputs, labels))
    return (losses[0] - losses[1]) / 0.02


@pytest.mark.parametrize("labelled", [True, False])
def test_taylor_is_the_squared_derivative_by_the_units_mask(labelled: bool) -> None:
    graph = network()
    inputs = samples(graph, BATCH + 5)
    labels = np.arange(len(inputs)) % 3 if labelled else None
    found = collect_importance(
        graph, graph.groups, dataset(graph, inputs, labels), provider="cpu", threads=1,
        progress=SilentProgress(),
    )  # fmt: skip
    largest = max(float(values.max()) for values in found.values())
    for group in graph.groups:
        wanted = [
            np.mean(
                [
                    slope(graph, group, unit, inputs[part], None if labels is None else labels[part]) ** 2
                    for part in (slice(BATCH), slice(BATCH, None))
                ]
            )
            for unit in group.units
        ]
        np.testing.assert_allclose(found[group.name], wanted, rtol=2e-2, atol=1e-3 * largest)


def test_taylor_on_a_model_of_fixed_batch_and_on_probabilities() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input((2, 3, 4, 4)), 5, 3))
    scores = b.gemm(b.flatten(b.global_pool(x)), 3)
    graphs = [analyze_graph(finished(b, output)) for output in (scores, b.node("Softmax", [scores], axis=1))]
    inputs = samples(graphs[0], 5)
    one, two = (
        collect_importance(
            graph, graph.groups, dataset(graph, inputs, np.arange(5) % 3), provider="cpu",
            progress=SilentProgress(),
        )
        for graph in graphs
    )  # fmt: skip
    ((first,), (second,)) = one.values(), two.values()
    np.testing.assert_allclose(first, second, rtol=1e-3)
    (group,) = graphs[0].groups
    parts = [slope_of_padded(graphs[0], group, unit, inputs, np.arange(5) % 3) for unit in group.units]
    np.testing.assert_allclose(first, parts, rtol=2e-2, atol=1e-3 * max(parts))


def slope_of_padded(graph: PruningGraph, group: Group, unit: int, inputs: Array, labels: Array) -> float:
    """Mean square over the batches of two; the last sample stands alone, in a batch with itself."""
    batches = [[0, 1], [2, 3], [4, 4]]
    return float(np.mean([slope(graph, group, unit, inputs[part], labels[part]) ** 2 for part in batches]))


def test_taylor_says_what_it_can_not_do() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 4, 4), dynamic=True), 4, 3))
    scale, zero = b.constant(np.float32(0.05)), b.constant(np.uint8(0))
    x = b.node("DequantizeLinear", [b.node("QuantizeLinear", [x, scale, zero]), scale, zero])
    y = b.relu(b.conv(b.shaped(x, 1, 4, 4, 4), 4, 3))
    graph = analyze_graph(b.model(b.gemm(b.flatten(b.global_pool(y)), 3)))
    data = dataset(graph, samples(graph, 4), np.zeros(4, np.int64))
    with pytest.raises(ModelError, match=r"taylor needs gradients.* QuantizeLinear") as caught:
        collect_importance(graph, graph.groups, data, provider="cpu", progress=SilentProgress())
    assert "--method" in str(caught.value.hint)
    graph = network()
    wrong = dataset(graph, samples(graph, 4), np.full(4, 7))
    with pytest.raises(DataError, match="label 7"):
        collect_importance(graph, graph.groups, wrong, provider="cpu", progress=SilentProgress())
    for method in ("taylor", "wanda", "obs"):
        with pytest.raises(UsageError, match=f"{method} needs"):
            rank(graph, list(graph.groups), method)


def test_obs_is_elimination_without_a_shortlist_at_one_price() -> None:
    graph = network()
    inputs = samples(graph, 40)
    groups = list(graph.groups)
    statistics = collect_statistics(
        graph, dataset(graph, inputs, None), np.arange(40) % 3,
        provider="cpu", threads=1, progress=SilentProgress(),
    )  # fmt: skip
    found = rank(graph, groups, "obs", statistics=statistics)
    terms = contribution_terms(groups, statistics, classwise=True)
    unlisted = lasso_rankings(groups, statistics, terms, LassoSettings(shortlist=1.0))
    for one, two in zip(found, unlisted, strict=True):
        np.testing.assert_array_equal(one.order, two.order)
        np.testing.assert_array_equal(one.loss, two.loss)
    # Shares differ between groups, as one price has it.
    goal = macs_goal(CostModel.of(graph), 0.6)
    assert isinstance(goal, CostGoal)
    plan = plan_within(graph, found, [goal], Limits(), "obs")
    shares = {round(float(plan.keep[group.units].mean()), 2) for group in groups}
    assert goal.value(plan.keep) <= goal.limit and len(shares) > 2


@pytest.mark.parametrize("method", ["obs", "wanda", "taylor"])
def test_methods_from_end_to_end(method: str) -> None:
    graph = network()
    inputs = samples(graph, 48)
    result = pipeline.compress(
        graph.model, data=inputs, method=method, macs=0.6, calibration=32, provider="cpu", verify=True
    )
    report = result.report
    assert report.method["name"] == method
    assert report.after.macs <= 0.6 * report.before.macs
    assert "profile" in report.timings_s
