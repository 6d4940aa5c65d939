"""Plans compose: A then B is A and B at once, and pruning a result to its own budget changes nothing.

50 examples of each here, 100 in ``python -m bench.surgery composition``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from hypothesis import given, settings

from onnxprune.errors import BudgetError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.plan import Plan, kept_indices, validate
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph
from onnxprune.io.load import load
from onnxprune.io.save import save
from onnxprune.profile.cost import CostModel
from onnxprune.select.allocate import CostGoal, Limits
from onnxprune.select.select import chosen_groups, plan_within, rank
from tests.plain import run
from tests.strategies import models, plan_seeds, random_plan


@settings(max_examples=50)
@given(models(), plan_seeds(), plan_seeds())
def test_one_plan_after_another_is_both_at_once(
    model: onnx.ModelProto, first: tuple[int, float], second: tuple[int, float]
) -> None:
    check_composition(model, first, second)


@settings(max_examples=50)
@given(models(), plan_seeds())
def test_pruning_a_result_to_its_own_budget_changes_nothing(
    model: onnx.ModelProto, drawn: tuple[int, float]
) -> None:
    check_repetition(model, *drawn)


def check_composition(model: onnx.ModelProto, first: tuple[int, float], second: tuple[int, float]) -> str:
    """Assert that both ways lead to the same model, and say how closely.

    ``same file`` bit for bit, ``same outputs`` bit for bit where a Slice became several nodes on the way,
    ``nothing removed`` where one of the plans is empty, or ``finer units``: what is pruned can have units
    of its own, which no plan of the original states.
    """
    graph = analyze_graph(model)
    one = random_plan(graph, *first)
    between = analyze_graph(rewrite(graph, one))
    two = random_plan(between, *second)
    if one.keep.all() or two.keep.all():
        return "nothing removed"
    in_turn = rewrite(between, two)
    both = together(graph, one, between, two)
    if both is None:
        return "finer units"
    validate(graph, both)
    at_once = rewrite(graph, both)
    if canonical(at_once) == canonical(in_turn):
        return "same file"
    name = model.graph.input[0].name
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    names = [value.name for value in model.graph.output]
    results = [run(result, feeds, names) for result in (at_once, in_turn)]
    assert all(np.array_equal(results[0][name], results[1][name]) for name in names)
    return "same outputs"


def together(graph: PruningGraph, one: Plan, between: PruningGraph, two: Plan) -> Plan | None:
    """The plan of ``graph`` that removes what ``one`` and then ``two`` do; None if none states just that."""
    keep = one.keep.copy()
    stays = np.zeros_like(keep)
    for tensor, axes in between.axes.items():
        before = graph.axes.get(tensor)
        for axis, units in enumerate(axes):
            if units is None:
                continue
            whole = None if before is None else before[axis]
            if whole is None:
                return None
            former = whole[kept_indices(one.keep, whole)]
            gone = ~kept_indices(two.keep, units)
            if (former[gone] < 0).any():
                return None
            keep[former[gone]] = False
            stays[former[~gone & (former >= 0)]] = True
    return None if (stays & ~keep).any() else Plan(keep)


def canonical(model: onnx.ModelProto) -> bytes:
    """The model's bytes with its initializers in order of their names."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(tensors)
    return copy.SerializeToString(deterministic=True)


def check_repetition(model: onnx.ModelProto, seed: int, share: float) -> str:
    """Assert that a second compression to the same budget writes the same file."""
    graph = analyze_graph(model)
    costs = CostModel.of(graph)
    limit = (1.0 - 0.5 * share) * costs.macs(np.ones(graph.unit_count, np.bool_))
    try:
        plan = within(graph, limit, seed)
    except BudgetError:
        return "not within the budget"
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder, "once.onnx"), Path(folder, "twice.onnx")
        save(rewrite(graph, plan), path)
        second = analyze_graph(load(path).model, in_place=True)
        repeated = within(second, limit, seed)
        assert repeated.keep.all()
        save(rewrite(second, repeated), again)
        assert path.read_bytes() == again.read_bytes()
    return "unchanged" if plan.keep.all() else "same file"


def within(graph: PruningGraph, limit: float, seed: int) -> Plan:
    """A plan of at most ``limit`` multiply-accumulates."""
    goal = CostGoal(CostModel.of(graph), "macs", limit)
    rankings = rank(graph, chosen_groups(graph), "random", seed=seed)
    return plan_within(graph, rankings, [goal], Limits(), "random")
