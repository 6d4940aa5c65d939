"""Every proximal operator against its definition and independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.select.classes import ClassGraph, ClassTree
from onnxprune.select.graph_penalty import GraphPenalty
from onnxprune.select.penalties import L1, ProxMemory, RowGroup
from onnxprune.select.tree_penalty import TreePenalty
from tests.select.oracles import (
    all_penalties,
    planted_correlation,
    subdifferential_distance,
    tensor,
    tree_prox_by_dual,
)

NAMES = list(all_penalties(False))
CASES = [(name, sign) for name in NAMES for sign in (False, True)]
IDS = [f"{name}{'-nonnegative' * sign}" for name, sign in CASES]


def points(rows: int, seed: int, spread: float = 2.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return tensor(rng.standard_normal((rows, 8)) * spread + rng.standard_normal((rows, 1)))


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("mu", [0.0, 0.4])
def test_tree_prox_is_that_of_dual_ascent_in_any_order(mu: float, nonnegative: bool) -> None:
    penalty = TreePenalty(ClassTree.from_correlation(planted_correlation()), mu, nonnegative)
    v = points(12, 1)
    for step in (0.05, 0.7, 2.0):
        found = penalty.prox(v, step).numpy()
        for row in range(len(v)):
            expected, _ = tree_prox_by_dual(penalty, v[row].numpy(), step, seed=row)
            np.testing.assert_allclose(found[row], expected, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6), st.floats(0.01, 3.0))
def test_tree_prox_on_random_trees(classes: int, seed: int, step: float) -> None:
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((classes, 5))
    r = np.corrcoef(means) if classes > 1 else np.eye(1)
    tree = ClassTree.from_correlation(r, rng.random(classes) < 0.8)
    penalty = TreePenalty(tree, float(rng.choice([0.0, 0.3])))
    v = rng.standard_normal((3, classes)) * 2
    found = penalty.prox(tensor(v), step).numpy()
    for row in range(3):
        np.testing.assert_allclose(
            found[row], tree_prox_by_dual(penalty, v[row], step)[0], rtol=0, atol=1e-11
        )


def test_tree_prox_scales_far_below_the_threshold_are_exact_zeros() -> None:
    penalty = all_penalties(False)["tree"]
    assert bool((penalty.prox(points(50, 2, 1e-9) * 1e-9, 1.0) == 0).all())


@pytest.mark.parametrize(("name", "nonnegative"), CASES, ids=IDS)
def test_moreau_identity(name: str, nonnegative: bool) -> None:
    """v = prox(v) + d with d in the dual ball and <d, prox(v)> = step * P(prox(v))."""
    penalty = all_penalties(nonnegative)[name]
    v = points(60, 3)
    for step in (0.1, 0.8, 3.0):
        x = penalty.prox(v, step)
        d = v - x
        # The prox of a point of the dual ball is zero; a hair of room for rounding.
        assert float(penalty.prox(d, step * (1 + 1e-12)).abs().max()) <= 1e-10
        assert float(((d * x).sum(dim=1) - step * penalty.row_values(x)).abs().max()) <= 1e-10
        if nonnegative:
            assert bool((x >= 0).all())


def test_moreau_identity_with_an_independent_dual_projection() -> None:
    penalty = TreePenalty(ClassTree.from_correlation(planted_correlation()), 0.2)
    for row in points(6, 4):
        _, projection = tree_prox_by_dual(penalty, row.numpy(), 0.9)
        total = penalty.prox(row[None], 0.9)[0].numpy() + projection
        np.testing.assert_allclose(total, row.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "nonnegative"), CASES, ids=IDS)
def test_firmly_nonexpansive_on_a_thousand_pairs(name: str, nonnegative: bool) -> None:
    penalty = all_penalties(nonnegative)[name]
    one, two = points(1000, 5), points(1000, 6)
    two[::3] = one[::3] + 0.01 * two[::3]
    moved = penalty.prox(one, 0.6) - penalty.prox(two, 0.6)
    slack = ((one - two) * moved).sum(dim=1) - moved.square().sum(dim=1)
    assert float(slack.min()) >= -1e-10


@pytest.mark.parametrize(("name", "nonnegative"), CASES, ids=IDS)
def test_prox_minimises(name: str, nonnegative: bool) -> None:
    """No random move, small or large, lowers the objective."""
    penalty = all_penalties(nonnegative)[name]
    rng = np.random.default_rng(7)
    v = points(40, 7)

    def objective(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x - v).square().sum(dim=1) + 0.9 * penalty.row_values(x)

    best = penalty.prox(v, 0.9)
    for size in (1e-6, 1e-3, 0.3):
        for _ in range(20):
            other = best + size * tensor(rng.standard_normal(v.shape))
            other = other.clamp_min(0.0) if nonnegative else other
            assert bool((objective(other) >= objective(best) - 1e-12).all())


@pytest.mark.parametrize(("name", "nonnegative"), CASES, ids=IDS)
def test_critical_level_is_where_a_row_vanishes(name: str, nonnegative: bool) -> None:
    penalty = all_penalties(nonnegative)[name]
    pull = points(9, 8)
    level = penalty.critical_level(pull)
    assert bool((penalty.prox(pull, level) == 0).all())
    assert bool((penalty.prox(pull, 0.9999 * level) != 0).any())
    assert not bool(penalty.may_enter(pull, level * (1 + 1e-6)).any())
    assert bool(penalty.may_enter(pull, 0.9999 * level).any())
    assert penalty.critical_level(torch.zeros_like(pull)) == 0.0
    assert penalty.critical_level(-pull.abs()) == 0.0 or not nonnegative


@pytest.mark.parametrize(("name", "nonnegative"), CASES, ids=IDS)
def test_may_enter_never_misses_a_row(name: str, nonnegative: bool) -> None:
    penalty = all_penalties(nonnegative)[name]
    pull = points(200, 9)
    for level in (0.5, 1.5, 3.0):
        enters = (penalty.prox(pull, level) != 0).any(dim=1)
        assert not bool((enters & ~penalty.may_enter(pull, level)).any())


@pytest.mark.parametrize(("name", "nonnegative"), CASES, ids=IDS)
def test_distance_to_the_subdifferential(name: str, nonnegative: bool) -> None:
    """At points with zero rows, zero entries and tied entries, against a conic solver."""
    penalty = all_penalties(nonnegative)[name]
    rng = np.random.default_rng(10)
    b = rng.standard_normal((5, 8))
    b[0] = 0.0
    b[1, :3] = 0.0
    b[2, [0, 1, 2]] = 0.5
    b[3, 2:] = 0.0
    b = np.abs(b) if nonnegative else b
    slope = rng.standard_normal((5, 8)) * 2
    found = penalty.distances(tensor(b), tensor(slope), 0.8).numpy()
    expected = subdifferential_distance(penalty, b, slope, 0.8)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_graph_penalty_zeroes_whole_rows_and_ties_linked_classes() -> None:
    penalty = all_penalties(False)["graph"]
    v = points(400, 11)
    x = penalty.prox(v, 1.2)
    zero_rows = (x == 0).all(dim=1)
    assert 10 < int(zero_rows.sum()) < 390
    tied = penalty.tidy(x, 1e-7)
    assert float((tied - x).abs().max()) <= 1e-7
    one, two = torch.as_tensor(penalty.graph.edges).T
    signs = tensor(penalty.graph.signs)
    equal = (tied[:, one] == signs * tied[:, two]) & (tied[:, one] != 0)
    assert int(equal.sum()) > 100


def test_graph_prox_remembers_its_dual() -> None:
    penalty = all_penalties(False)["graph"]
    v = points(50, 12)
    memory = ProxMemory(precision=1e-9)
    first = penalty.prox(v, 0.7, memory)
    assert memory.dual is not None
    again = penalty.prox(v, 0.7, memory)
    torch.testing.assert_close(again, first, rtol=0, atol=2e-9)
    torch.testing.assert_close(again, penalty.prox(v, 0.7), rtol=0, atol=2e-9)


def test_graph_without_edges_is_plain_l1() -> None:
    graph = ClassGraph.from_correlation(np.eye(8))
    v = points(20, 13)
    torch.testing.assert_close(GraphPenalty(graph, 0.5).prox(v, 0.8), L1(0.5).prox(v, 0.8))
    assert GraphPenalty(graph, 0.5).critical_level(v) == pytest.approx(L1(0.5).critical_level(v), rel=1e-5)


def test_weights_that_make_no_sense_are_refused() -> None:
    graph = ClassGraph.from_correlation(np.eye(3))
    for build in (
        lambda: L1(-1.0),
        lambda: RowGroup(1.0, float("nan")),
        lambda: GraphPenalty(graph, 0.0),
        lambda: TreePenalty(ClassTree.from_correlation(np.eye(3)), -0.1),
    ):
        with pytest.raises(UsageError) as caught:
            build()
        assert caught.value.hint


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 24), st.floats(0.05, 1.0), st.integers(0, 10**6))
def test_matchings_share_no_class_and_are_few(classes: int, share: float, seed: int) -> None:
    """Never more than a greedy colouring; for a complete graph not many more than its degree."""
    rng = np.random.default_rng(seed)
    r = np.triu(np.where(rng.random((classes, classes)) < share, 0.9, 0.0), 1)
    graph = ClassGraph.from_correlation(r + r.T + np.eye(classes), max_degree=None)
    penalty = GraphPenalty(graph)
    penalty.prox(torch.zeros(1, classes, dtype=torch.float64), 1.0)
    (fusion,) = penalty._fusions.values()
    found = []
    for matching in fusion.matchings:
        ends = matching.ends.tolist()
        assert len(set(ends)) == len(ends)
        found += list(zip(ends[: matching.size], ends[matching.size :], strict=True))
    assert sorted(found) == sorted(map(tuple, graph.edges.tolist()))
    degree = int(np.bincount(graph.edges.ravel(), minlength=1).max())
    complete = len(graph.edges) == classes * (classes - 1) // 2
    assert len(fusion.matchings) <= (1.2 * classes if complete else max(2 * degree - 1, 0))
