"""Allocation: budgets met as counted on the rewritten model, limits honoured by construction."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import BudgetError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.plan import Plan, must_keep_one, validate
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import BoolArray, Group, PruningGraph, removed_branches
from onnxprune.graph.weights import FloatArray
from onnxprune.profile.cost import CostModel, count
from onnxprune.select.allocate import CostGoal, Goal, Limits, Ranking, allocate, allocate_evenly
from onnxprune.select.select import protect_branches
from tests.model_builder import Builder
from tests.recover.nets import branches, resnet
from tests.strategies import models

ALLOCATORS = (allocate, allocate_evenly)


def rankings(graph: PruningGraph, seed: int = 0) -> list[Ranking]:
    """Random orders; losses that rise ever faster, at another pace in every group."""
    random = np.random.default_rng(seed)
    found = []
    for group in graph.groups:
        size = len(group.units)
        loss = np.append(0, np.cumsum(np.sort(random.exponential(random.uniform(0.1, 3), size))))
        found.append(Ranking(group, random.permutation(size), loss))
    return found


def goal(graph: PruningGraph, kind: str, share: float) -> CostGoal:
    costs = CostModel.of(graph)
    whole = costs.macs if kind == "macs" else costs.params
    return CostGoal(costs, kind, share * whole(np.ones(graph.unit_count, np.bool_)))  # a str


def lowest(graph: PruningGraph, ranked: list[Ranking], limits: Limits, *, branches: bool) -> BoolArray:
    """The mask when every group loses all that the limits allow, with ``branches`` whole ones too."""
    keep = np.ones(graph.unit_count, np.bool_)
    for ranking in ranked:
        most = int(limits.counts(len(ranking.order))[-1])
        keep[ranking.group.units[ranking.order[:most]]] = False
    for branch in graph.residual_branches if branches and limits.whole_branches else ():
        keep[branch.units] = False
    return keep


def check(graph: PruningGraph, plan: Plan, ranked: list[Ranking], limits: Limits) -> None:
    """Every group keeps an allowed number of units: those that its ranking wants most."""
    validate(graph, plan)
    whole = [branch.units for branch in removed_branches(graph.residual_branches, plan.keep)]
    assert limits.whole_branches or not whole
    for ranking in ranked:
        size = len(ranking.order)
        kept = plan.keep[ranking.group.units]
        if any(np.isin(ranking.group.units, units).all() for units in whole):
            assert not kept.any()
            continue
        removed = size - int(kept.sum())
        assert removed < size or size == 0
        assert removed <= limits.max_group_ratio * size + 1e-9
        assert removed == 0 or (size - removed) % limits.round_to == 0
        assert not kept[ranking.order[:removed]].any()


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("model", (resnet(), branches()))
@pytest.mark.parametrize(("macs", "params"), ((0.5, None), (None, 0.6), (0.7, 0.4), (0.35, 0.9), (1.0, 1.0)))
def test_budgets_are_met_on_the_rewritten_model(
    allocator: type[allocate], model: onnx.ModelProto, macs: float | None, params: float | None
) -> None:
    graph = analyze_graph(model)
    before = count(model)
    goals: list[Goal] = []
    goals += [goal(graph, "macs", macs)] if macs else []
    goals += [goal(graph, "params", params)] if params else []
    ranked = rankings(graph)
    plan = allocator(graph, ranked, goals, Limits())
    check(graph, plan, ranked, Limits())
    after = count(rewrite(graph, plan))
    costs = CostModel.of(graph)
    assert (after.macs, after.params) == (costs.macs(plan.keep), costs.params(plan.keep))
    assert macs is None or after.macs <= macs * before.macs
    assert params is None or after.params <= params * before.params
    if macs == params == 1.0:
        assert plan.keep.all()


@given(
    model=models(),
    share=st.sampled_from([0.2, 0.5, 0.7, 0.9]),
    kind=st.sampled_from(["macs", "params"]),
    limits=st.builds(
        Limits,
        st.sampled_from([1, 1, 2, 3, 8]),
        st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.25, 0.0]),
        st.booleans(),
    ),
    even=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=60)
def test_any_graph_gives_a_valid_plan_or_says_what_is_reachable(
    model: onnx.ModelProto, share: float, kind: str, limits: Limits, even: bool, seed: int
) -> None:
    graph = analyze_graph(model)
    ranked = rankings(graph, seed)
    wanted = goal(graph, kind, share)
    reachable = wanted.value(lowest(graph, ranked, limits, branches=not even))
    try:
        plan = (allocate_evenly if even else allocate)(graph, ranked, [wanted], limits)
    except BudgetError as error:
        assert reachable > wanted.limit
        stated = re.search(r"at least ([\d,]+) ", str(error))
        assert stated is not None and int(stated[1].replace(",", "")) == reachable
        assert error.hint
        return
    assert wanted.value(plan.keep) <= wanted.limit
    check(graph, plan, ranked, limits)
    written = count(rewrite(graph, plan))
    assert (written.macs if kind == "macs" else written.params) == wanted.value(plan.keep)


def test_groups_that_share_an_axis_never_leave_it_empty() -> None:
    """A Concat of three groups, each of which could go alone as far as the axis is concerned."""
    b = Builder()
    x = b.input((1, 3, 6, 6), dynamic=True)
    joined = b.relu(b.concat(b.conv(x, 3, 1), b.conv(x, 2, 1), b.conv(x, 4, 3)))
    graph = analyze_graph(b.model(b.conv(joined, 2, 1)))
    (together,) = [units for units in must_keep_one(graph) if len(units) > 4] or [np.arange(9)]
    for allocator in ALLOCATORS:
        ranked = rankings(graph)
        least = goal(graph, "macs", 1.0).value(lowest(graph, ranked, Limits(), branches=False))
        whole = goal(graph, "macs", 1.0).limit
        plan = allocator(graph, ranked, [goal(graph, "macs", least / whole)], Limits())
        validate(graph, plan)
        assert plan.keep[together].sum() == 3  # one of each group
        with pytest.raises(BudgetError, match=f"at least {least:,.0f} MACs"):
            allocator(graph, ranked, [goal(graph, "macs", (least - 1) / whole)], Limits())


def test_no_group_to_prune() -> None:
    b = Builder()
    graph = analyze_graph(b.model(b.conv(b.input((1, 3, 6, 6)), 2, 1)))
    for allocator in ALLOCATORS:
        with pytest.raises(BudgetError, match="can't be met"):
            allocator(graph, [], [goal(graph, "macs", 0.5)], Limits())
        assert allocator(graph, [], [goal(graph, "macs", 1.0)], Limits()).keep.all()


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_the_same_input_gives_the_same_plan(allocator: type[allocate]) -> None:
    graph = analyze_graph(resnet())
    first, second = (
        allocator(graph, rankings(graph), [goal(graph, "macs", 0.45)], Limits()).keep for _ in range(2)
    )
    assert np.array_equal(first, second)


@dataclass(frozen=True)
class Linear:
    """A goal whose savings are the same whatever else stays."""

    costs: FloatArray
    limit: float

    def value(self, keep: BoolArray) -> float:
        return float(self.costs[keep].sum())

    def savings(self, keep: BoolArray) -> FloatArray:
        return self.costs

    def describe(self, value: float) -> str:
        return f"{value}"


def three_groups() -> tuple[PruningGraph, list[Group]]:
    b = Builder()
    x = b.input((1, 3, 6, 6))
    for channels in (3, 4, 5):
        x = b.relu(b.conv(x, channels, 1))
    graph = analyze_graph(b.model(b.conv(x, 2, 1)))
    return graph, list(graph.groups)


@pytest.mark.parametrize("seed", range(5))
def test_with_equal_savings_no_plan_loses_less(seed: int) -> None:
    """Losses that are convex in every group: brute force over all counts finds nothing better."""
    graph, groups = three_groups()
    random = np.random.default_rng(seed)
    ranked = [
        Ranking(group, random.permutation(len(group.units)),
                np.append(0, np.cumsum(np.sort(random.exponential(1, len(group.units))))))
        for group in groups
    ]  # fmt: skip
    for limit in range(3, 12):
        plan = allocate(graph, ranked, [Linear(np.ones(graph.unit_count), limit)], Limits())
        removed = [len(entry.order) - int(plan.keep[entry.group.units].sum()) for entry in ranked]
        found = sum(float(entry.loss[number]) for entry, number in zip(ranked, removed, strict=True))
        best = min(
            sum(float(entry.loss[number]) for entry, number in zip(ranked, numbers, strict=True))
            for numbers in itertools.product(*(range(len(entry.order)) for entry in ranked))
            if graph.unit_count - sum(numbers) <= limit
        )
        assert np.isclose(found, best)


def test_a_free_stretch_behind_a_costly_unit_is_reached() -> None:
    """The hull looks past a first removal that is dear to all that follow it for nothing."""
    graph, groups = three_groups()
    losses = [np.array([0, 4.0, 8.0, 12.0]), np.array([0, 5.0, 5.0, 5.0, 20.0]), np.arange(6) * 4.0]
    ranked = [
        Ranking(group, np.arange(len(group.units)), loss) for group, loss in zip(groups, losses, strict=True)
    ]
    plan = allocate(graph, ranked, [Linear(np.ones(graph.unit_count), 9)], Limits())
    assert [int(plan.keep[group.units].sum()) for group in groups] == [3, 1, 5]


def test_dear_units_go_where_they_save_most() -> None:
    graph, groups = three_groups()
    costs = np.ones(graph.unit_count)
    costs[groups[2].units] = 10.0
    ranked = [Ranking(g, np.arange(len(g.units)), np.arange(len(g.units) + 1.0)) for g in groups]
    plan = allocate(graph, ranked, [Linear(costs, 37.0)], Limits())
    assert [int(plan.keep[group.units].sum()) for group in groups] == [3, 4, 3]


def test_steps_that_turn_out_not_to_be_needed_are_undone() -> None:
    """What is left, no single group can give back a step of."""
    graph = analyze_graph(resnet())
    ranked = rankings(graph, 5)
    goals = [goal(graph, "macs", 0.6), goal(graph, "params", 0.5)]
    keep = allocate(graph, ranked, goals, Limits()).keep
    for ranking in ranked:
        removed = [index for index in ranking.order if not keep[ranking.group.units[index]]]
        if removed:
            more = keep.copy()
            more[ranking.group.units[removed[-1]]] = True
            assert any(entry.value(more) > entry.limit for entry in goals)


def test_the_even_share_is_the_smallest_that_suffices() -> None:
    graph = analyze_graph(resnet())
    ranked = rankings(graph)
    wanted = goal(graph, "macs", 0.5)
    keep = allocate_evenly(graph, ranked, [wanted], Limits(whole_branches=True)).keep
    shares = [1 - keep[r.group.units].mean() for r in ranked]
    sizes = [len(r.order) for r in ranked]
    # One share explains all counts up to rounding up.
    low = max(share - 1 / size for share, size in zip(shares, sizes, strict=True))
    assert (
        low
        <= min(share for share, size in zip(shares, sizes, strict=True) if share < (size - 1) / size) + 1e-9
    )
    smaller = np.ones(graph.unit_count, np.bool_)
    for ranking, share, size in zip(ranked, shares, sizes, strict=True):
        number = max(0, round(share * size) - 1)
        smaller[ranking.group.units[ranking.order[:number]]] = False
    assert wanted.value(smaller) > wanted.limit


def test_counts_that_limits_allow() -> None:
    assert Limits().counts(4).tolist() == [0, 1, 2, 3]
    assert Limits(round_to=8).counts(20).tolist() == [0, 4, 12]
    assert Limits(round_to=8).counts(16).tolist() == [0, 8]
    assert Limits(round_to=8).counts(6).tolist() == [0]
    assert Limits(max_group_ratio=0.5).counts(5).tolist() == [0, 1, 2]
    assert Limits(max_group_ratio=0.7).counts(10).tolist() == list(range(8))
    assert Limits(round_to=2, max_group_ratio=0.5).counts(7).tolist() == [0, 1, 3]
    assert Limits().counts(1).tolist() == [0]


def test_sizes_count_bytes_and_an_offset() -> None:
    graph = analyze_graph(resnet())
    costs = CostModel.of(graph)
    full = np.ones(graph.unit_count, np.bool_)
    size = CostGoal(costs, "size", 1.0, scale=4.0, offset=100.0)
    assert size.value(full) == 4 * costs.params(full) + 100
    assert np.array_equal(size.savings(full), 4 * costs.marginal_params(full))
    assert size.describe(size.value(full)) == f"{size.value(full):,.0f} bytes (100.0 % of the original)"


def stack(blocks: int = 3) -> PruningGraph:
    """Residual blocks of two Convs with 8 channels inside, between two Convs."""
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 6, 6)), 6, 3))
    for _ in range(blocks):
        x = b.relu(b.like("Add", b.conv(b.relu(b.conv(x, 8, 3)), 6, 3), x))
    return analyze_graph(b.model(b.conv(x, 2, 1)))


def priced(graph: PruningGraph, *losses: FloatArray) -> list[Ranking]:
    """The groups inside the branches, in graph order, with these losses."""
    inside = [
        next(group for group in graph.groups if np.isin(group.units, branch.units).all())
        for branch in graph.residual_branches
    ]
    return [Ranking(group, np.arange(8), loss) for group, loss in zip(inside, losses, strict=True)]


STEEP, FLAT = 10.0 * np.arange(9.0) ** 2, 1.0 + np.arange(9.0) / 1e3 - (np.arange(9) == 0)
"""Losses of a branch whose every unit matters, and of one whose loss comes with the first."""


def test_a_branch_goes_as_a_whole_where_that_is_cheapest() -> None:
    graph = stack()
    ranked = priced(graph, STEEP, FLAT, STEEP)
    wanted = goal(graph, "macs", 0.75)
    plan = allocate(graph, ranked, [wanted], Limits(whole_branches=True))
    (gone,) = removed_branches(graph.residual_branches, plan.keep)
    assert gone is graph.residual_branches[1]
    assert int((~plan.keep).sum()) == 8  # what went of others first was given back
    written = count(rewrite(graph, plan))
    assert written.macs == wanted.value(plan.keep) <= wanted.limit
    # One unit stays where the limits say so.
    plan = allocate(graph, ranked, [wanted], Limits())
    assert not removed_branches(graph.residual_branches, plan.keep)
    assert plan.keep[gone.units].sum() == 1
    assert (
        removed_branches(
            graph.residual_branches,
            allocate_evenly(graph, ranked, [wanted], Limits(whole_branches=True)).keep,
        )
        == ()
    )


def test_a_branch_that_the_budget_turns_out_not_to_need_comes_back() -> None:
    """It goes first, being cheap; then another one has to go that alone would have been enough."""
    graph = stack(2)
    small, large = (branch.units for branch in graph.residual_branches)
    ranked = priced(graph, FLAT, 3.0 * FLAT)

    @dataclass(frozen=True)
    class Needs:
        """The second branch has to go; the first one's removal helps a little."""

        limit: float = 0.5

        def value(self, keep: BoolArray) -> float:
            return 1.0 * keep[large].any() + 0.2 * keep[small].any()

        def savings(self, keep: BoolArray) -> FloatArray:
            return np.where(np.isin(np.arange(len(keep)), small), 0.1, 0.0)

        def describe(self, value: float) -> str:
            return f"{value}"

    plan = allocate(graph, ranked, [Needs()], Limits(whole_branches=True))
    assert plan.keep[small].all() and not plan.keep[large].any()


def test_protected_nodes_keep_their_branch() -> None:
    graph = stack()
    ranked = priced(graph, STEEP, FLAT, STEEP)
    reader = graph.residual_branches[1].reader
    protected = protect_branches(graph, (reader,))
    plan = allocate(protected, ranked, [goal(graph, "macs", 0.75)], Limits(whole_branches=True))
    assert not removed_branches(graph.residual_branches, plan.keep)
    assert protect_branches(graph, ()) is graph
