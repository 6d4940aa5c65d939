"""Random graphs, random plans: what is written is valid, loads, computes the same, and is smaller.

200 examples by default; ``--hypothesis-profile=long`` runs 5,000.
"""

from __future__ import annotations

import onnx
from hypothesis import given, settings

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.check import verify
from onnxprune.graph.plan import Plan, keep_all, validate
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph
from onnxprune.profile.cost import CostModel, count
from tests.model_builder import float_bytes
from tests.strategies import models, plan_seeds, random_plan

many = settings(max_examples=max(200, settings().max_examples))


@many
@given(models(), plan_seeds())
def test_pruned_random_graphs_are_exact(model: onnx.ModelProto, drawn: tuple[int, float]) -> None:
    check_pruned(model, drawn)


def check_pruned(model: onnx.ModelProto, drawn: tuple[int, float]) -> tuple[PruningGraph, Plan]:
    """Prune ``model`` by a drawn plan and assert all that must hold; the graph and the plan."""
    before = model.SerializeToString(deterministic=True)
    graph = analyze_graph(model)
    prepared = graph.model.SerializeToString(deterministic=True)
    plan = random_plan(graph, *drawn)
    validate(graph, plan)

    pruned = rewrite(graph, plan)

    assert model.SerializeToString(deterministic=True) == before
    assert graph.model.SerializeToString(deterministic=True) == prepared
    onnx.checker.check_model(pruned, full_check=True)
    assert verify(graph, plan, pruned) <= 1e-5
    weights = {tensor.name for tensor in model.graph.initializer}
    assert list(pruned.graph.input) == [v for v in model.graph.input if v.name not in weights]
    assert list(pruned.graph.output) == list(model.graph.output)
    assert list(pruned.opset_import) == list(model.opset_import)
    if not plan.keep.all():
        assert float_bytes(pruned) < float_bytes(graph.model)
    cost = CostModel.of(graph)
    counted = count(pruned)
    assert (cost.macs(plan.keep), cost.params(plan.keep)) == (counted.macs, counted.params)
    return graph, plan


@given(models())
def test_keeping_everything_changes_nothing(model: onnx.ModelProto) -> None:
    graph = analyze_graph(model)
    plan = keep_all(graph)
    result = rewrite(graph, plan)
    assert result == graph.model
    cost, counted = CostModel.of(graph), count(graph.model)
    assert (cost.macs(plan.keep), cost.params(plan.keep)) == (counted.macs, counted.params)
