"""Scores against formulas written out, rankings on planted redundancy, terms against contributions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from onnxprune.errors import ModelError, UsageError
from onnxprune.evaluate.datasets import load_dataset
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.structure import Group, Layer, PruningGraph
from onnxprune.graph.weights import Constants
from onnxprune.profile.session import open_session
from onnxprune.profile.statistics import LayerStatistics, collect_statistics
from onnxprune.progress import SilentProgress
from onnxprune.select.elimination import OPTIMISM
from onnxprune.select.graph_penalty import GraphPenalty
from onnxprune.select.penalties import L1
from onnxprune.select.problem import term_value
from onnxprune.select.rankings import (
    LASSO_METHODS,
    LassoSettings,
    class_penalty,
    compensations,
    contribution_terms,
    lasso_rankings,
    score_rankings,
)
from onnxprune.select.scores import median_scores, norm_scores, scale_scores
from onnxprune.select.tree_penalty import TreePenalty
from tests.model_builder import Builder
from tests.plain import finished, samples


def group_with(graph: PruningGraph, layer: str) -> Group:
    (found,) = [group for group in graph.groups if layer in group.producers]
    return found


def weight(graph: PruningGraph, layer: Layer) -> np.ndarray:
    return Constants(graph.model).read(layer.weight).astype(np.float64)


def residual() -> PruningGraph:
    b = Builder()
    x = b.batch_norm(b.conv(b.input((1, 3, 6, 6), dynamic=True), 5, 3))
    y = b.batch_norm(b.conv(b.relu(b.conv(b.relu(x), 6, 3)), 5, 1))
    return analyze_graph(b.model(b.gemm(b.flatten(b.global_pool(b.like("Add", x, y))), 3)))


def test_norms_add_up_over_the_layers_that_produce_a_unit() -> None:
    graph = residual()
    stem, inner, last = graph.layers[:3]
    constants = Constants(graph.model)
    for order in (1, 2):
        parts = [np.linalg.norm(weight(graph, layer).reshape(5, -1), order, axis=1) for layer in (stem, last)]
        scores = norm_scores(graph, constants, group_with(graph, stem.name), order)
        assert np.allclose(scores, parts[0] + parts[1])
        alone = norm_scores(graph, constants, group_with(graph, inner.name), order)
        assert np.allclose(alone, np.linalg.norm(weight(graph, inner).reshape(6, -1), order, axis=1))


def test_norms_of_other_layers() -> None:
    """Filters of a grouped Conv, columns of a MatMul, rows of a transposed Gemm, a deconvolution."""
    b = Builder()
    x = b.relu(b.conv(b.input((1, 4, 4, 4), dynamic=True), 6, 3, groups=2))
    x = b.shaped(b.node("ConvTranspose", [x, b.weight(6, 3, 2, 2)], strides=[2, 2]), 1, 3, 8, 8)
    x = b.relu(b.matmul(b.flatten(b.relu(x)), 5))
    graph = analyze_graph(b.model(b.gemm(b.relu(b.gemm(x, 4, trans=True)), 2)))
    constants = Constants(graph.model)
    grouped, transposed, matmul, gemm = graph.layers[:4]
    filters = np.abs(weight(graph, grouped)).reshape(6, -1).sum(1)
    wanted = {
        grouped.name: filters[:3] + filters[3:],  # channel k of both groups is one unit
        transposed.name: np.abs(weight(graph, transposed)).sum((0, 2, 3)),
        matmul.name: np.abs(weight(graph, matmul)).sum(0),
        gemm.name: np.abs(weight(graph, gemm)).sum(1),
    }
    for name, scores in wanted.items():
        assert np.allclose(norm_scores(graph, constants, group_with(graph, name), 1), scores)


def test_distances_to_all_other_filters() -> None:
    graph = residual()
    stem, _, last = graph.layers[:3]
    wanted = np.zeros(5)
    for layer in (stem, last):
        filters = weight(graph, layer).reshape(5, -1)
        wanted += np.linalg.norm(filters[:, None] - filters[None], axis=2).sum(1)
    assert np.allclose(median_scores(graph, Constants(graph.model), group_with(graph, stem.name)), wanted)


def test_norm_scales() -> None:
    graph = residual()
    constants = Constants(graph.model)
    gammas = [
        np.abs(constants.read(node.input[1]))
        for node in graph.model.graph.node
        if node.op_type == "BatchNormalization"
    ]
    stem, inner = graph.layers[:2]
    assert np.allclose(scale_scores(graph, constants, group_with(graph, stem.name)), np.mean(gammas, axis=0))
    assert not scale_scores(graph, constants, group_with(graph, inner.name)).any()  # it passes none


def test_score_rankings() -> None:
    graph = residual()
    groups = list(graph.groups)
    constants = Constants(graph.model)
    for method, scores in (
        ("l1", lambda group: norm_scores(graph, constants, group, 1)),
        ("l2", lambda group: norm_scores(graph, constants, group, 2)),
        ("fpgm", lambda group: median_scores(graph, constants, group)),
    ):
        for entry in score_rankings(graph, groups, method, 0):
            assert (np.diff(scores(entry.group)[entry.order]) >= 0).all()
            assert len(entry.loss) == len(entry.order) + 1 and (np.diff(entry.loss) > 0).all()
    one, two, three = (
        [entry.order.tolist() for entry in score_rankings(graph, groups, "random", seed)]
        for seed in (0, 0, 1)
    )
    assert one == two != three
    with pytest.raises(UsageError, match="unknown method"):
        score_rankings(graph, groups, "magic", 0)


def test_norm_scales_need_norms() -> None:
    b = Builder()
    graph = analyze_graph(b.model(b.conv(b.relu(b.conv(b.input((1, 3, 4, 4)), 4, 3)), 2)))
    with pytest.raises(ModelError, match="BatchNormalization"):
        score_rankings(graph, list(graph.groups), "bn-scale", 0)


def statistics_of(graph: PruningGraph, count: int = 60) -> dict[str, LayerStatistics]:
    inputs = samples(graph, count)
    inputs[: count // 2, 0] += 1.5
    inputs[: count // 3, 1] -= 1.5
    labels = np.repeat(np.arange(4), count // 4)
    data = load_dataset((inputs, None), open_session(graph.model).input)
    return collect_statistics(graph, data, labels, provider="cpu", threads=1, progress=SilentProgress())


def planted() -> PruningGraph:
    """Units 1 and 4 of the first Conv are not read; unit 6 is read but repeats unit 0."""
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 5, 5), dynamic=True), 7, 3))
    model = b.model(b.gemm(b.flatten(b.global_pool(b.relu(b.conv(x, 6, 3)))), 3))
    constants = Constants(model)
    first, second = (node for node in model.graph.node if node.op_type == "Conv")
    for name in first.input[1:3]:
        value = constants.read(name).copy()
        value[6] = value[0]
        constants.write(name, value)
    value = constants.read(second.input[1]).copy()
    value[:, [1, 4]] = 0
    constants.write(second.input[1], value)
    return analyze_graph(model)


@pytest.mark.parametrize("method", LASSO_METHODS)
def test_what_is_not_needed_goes_first(method: str) -> None:
    graph = planted()
    statistics = statistics_of(graph)
    groups = list(graph.groups)
    terms = contribution_terms(groups, statistics, classwise=method != "lasso-ib")
    ranked = {r.group.name: r for r in lasso_rankings(groups, statistics, terms, LassoSettings(method))}
    assert ranked.keys() == {group.name for group in groups}
    first = ranked[graph.layers[0].name]
    assert set(first.order[:2].tolist()) == {1, 4}
    assert first.loss[2] < 1e-6
    for entry in ranked.values():
        assert sorted(entry.order.tolist()) == list(range(len(entry.group.units)))
        assert entry.loss[0] == 0 and (np.diff(entry.loss) >= 0).all()
        # With every unit gone only the mean is left, and the loss is relative to the variance, though dearer
        # while many units are refitted; few rows shrink the covariances.
        (reader,) = (statistics[name] for name in entry.group.consumers)
        slack = 0.02 + 2 * reader.columns.shape[1] / reader.rows
        dearest = 1.0 + OPTIMISM * len(reader.units) / reader.independent
        assert 1.0 - slack <= entry.loss[-1] <= dearest + slack


def test_a_repeated_unit_goes_for_almost_nothing() -> None:
    graph = planted()
    statistics = statistics_of(graph)
    groups = [group_with(graph, graph.layers[0].name)]
    terms = contribution_terms(groups, statistics, classwise=True)
    (entry,) = lasso_rankings(groups, statistics, terms, LassoSettings(shortlist=1.0))
    assert set(entry.order[:3].tolist()) in ({1, 4, 0}, {1, 4, 6})
    assert entry.loss[3] < 0.05 * entry.loss[-1]


def test_losses_of_a_grouped_reader_add_up_to_its_variance() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 5, 5), dynamic=True), 8, 3))
    graph = analyze_graph(b.model(b.conv(b.relu(b.conv(x, 4, 3, groups=2)), 2, 1)))
    statistics = statistics_of(graph)
    groups = list(graph.groups)
    terms = contribution_terms(groups, statistics, classwise=True)
    for entry in lasso_rankings(groups, statistics, terms, LassoSettings()):
        (reader,) = (statistics[name] for name in entry.group.consumers)
        dearest = 1.0 + OPTIMISM * len(reader.units) / reader.independent
        assert 0.94 <= entry.loss[-1] <= dearest + 0.06


def test_the_same_loss_is_dearer_in_a_later_layer() -> None:
    graph = planted()
    entry = statistics_of(graph)[graph.layers[1].name]
    first, middle, last = (
        sum(state.losses(entry.units)[0] for state in compensations([replace(entry, depth=depth)], 3.0))
        for depth in (0.0, 0.5, 1.0)
    )
    assert first > 0 and np.allclose([middle / first, last / first], [3.0**0.5, 3.0])


def test_groups_without_statistics_are_passed_over() -> None:
    graph = planted()
    statistics = statistics_of(graph)
    reader = graph.layers[1].name
    few = {name: entry for name, entry in statistics.items() if name != reader}
    groups = list(graph.groups)
    terms = contribution_terms(groups, few, classwise=True)
    assert [r.group.name for r in lasso_rankings(groups, few, terms, LassoSettings())] == [reader]


def explicit(seed: int, units: np.ndarray, classes: int = 3) -> tuple[LayerStatistics, np.ndarray]:
    """(statistics with contributions alone, Z (classes, units, values) behind them)"""
    random = np.random.default_rng(seed)
    parts = random.standard_normal((classes, len(units), 20))
    layer = Layer("c", "Conv", "x", "w", None, "y", 1, 0, 1, 1, units, units)
    nothing = torch.zeros(1, 1, 1)
    entry = LayerStatistics(
        layer, units, units[None], nothing, nothing, parts @ parts.transpose(0, 2, 1),
        np.ones((classes, 2)), float(random.uniform(1, 5)), int(random.integers(10, 50)), 10.0,
        float(random.uniform(0, 1)),
    )  # fmt: skip
    return entry, parts * np.sqrt(3.0**entry.depth / (entry.energy * entry.rows))


def test_terms_are_the_errors_of_what_consumers_receive() -> None:
    """Two consumers, one of which reads other units too: errors of the stacked, normalised contributions."""
    group = Group("g", np.array([2, 5, 7]), ("p",), ("one", "two", "absent"), ())
    one, z_one = explicit(0, np.array([2, 5, 7]))
    two, z_two = explicit(1, np.array([0, 2, 4, 5, 7]))
    statistics = {"one": one, "two": two}
    stacked = np.concatenate([z_one, z_two[:, [1, 3, 4]]], axis=2)
    full = stacked.sum(1)
    values = np.random.default_rng(2).uniform(0, 1, (3, 3))
    fitted = np.einsum("uc,cuv->cv", values, stacked)
    wanted = 0.5 * sum(((fitted[c] - full[c]) ** 2).sum() / (full[c] ** 2).sum() for c in range(3))
    (term,) = contribution_terms([group], statistics, classwise=True, depth_weight=3.0).values()
    assert np.isclose(term_value(term, torch.from_numpy(values)), wanted)
    shared = values[:, :1]
    error = np.einsum("u,cuv->cv", shared[:, 0], stacked) - full
    (pooled,) = contribution_terms([group], statistics, classwise=False, depth_weight=3.0).values()
    assert np.isclose(term_value(pooled, torch.from_numpy(shared)), 0.5 * (error**2).sum() / (full**2).sum())


def test_schemes_have_their_penalties() -> None:
    responses = np.random.default_rng(0).standard_normal((4, 9))
    responses[2] = 0  # a class without samples
    assert isinstance(class_penalty("stlp-ib", responses), TreePenalty)
    assert isinstance(class_penalty("sglp-ib", responses), GraphPenalty)
    assert isinstance(class_penalty("lasso-ib", responses), L1)
    with pytest.raises(UsageError, match="unknown scheme"):
        class_penalty("lasso", responses)


def test_units_with_many_columns_and_a_concat() -> None:
    """Flattened channels and operands of a Concat are ranked by all they add to the layer."""
    b = Builder()
    x = b.input((1, 3, 4, 4), dynamic=True)
    both = b.concat(b.relu(b.conv(x, 4, 3, stride=2)), b.relu(b.conv(x, 3, 3, stride=2)))
    model = finished(b, b.gemm(b.flatten(both), 3))
    constants = Constants(model)
    last = model.graph.node[-1]
    value = constants.read(last.input[1]).copy()
    value.reshape(3, 7, 4)[:, [2, 5]] = 0
    constants.write(last.input[1], value)
    graph = analyze_graph(model)
    statistics = statistics_of(graph)
    groups = list(graph.groups)
    terms = contribution_terms(groups, statistics, classwise=True)
    one, two = lasso_rankings(groups, statistics, terms, LassoSettings())
    assert (one.order[0], two.order[0]) == (2, 1)
    assert one.loss[1] < 1e-6 and two.loss[1] < 1e-6 and one.loss[2] > 1e-4
