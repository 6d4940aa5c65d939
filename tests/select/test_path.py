"""The lambda path, the ranking, and what the class structure is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxprune.errors import UsageError
from onnxprune.select.classes import ClassGraph, ClassTree, class_correlation
from onnxprune.select.graph_penalty import GraphPenalty
from onnxprune.select.path import PathResult, lambda_grid, lambda_max, solve_path
from onnxprune.select.penalties import L1, Penalty
from onnxprune.select.problem import ClasswiseQuadratic, QuadraticTerm, SharedQuadratic
from onnxprune.select.solver import solve
from onnxprune.select.tree_penalty import TreePenalty
from tests.select.oracles import all_penalties, random_term

NAMES = list(all_penalties(False))


@pytest.mark.parametrize("kind", ["shared", "classwise"])
@pytest.mark.parametrize("name", NAMES)
def test_path_is_each_level_solved_alone(name: str, kind: str) -> None:
    term, penalty = random_term(kind, seed=1), all_penalties(True)[name]
    path = solve_path(term, penalty, count=8, ratio=0.05, tolerance=1e-8, stop_when_full=False)
    assert path.converged
    assert (path.optimality <= 1e-8).all()
    assert len(path.levels) == 8
    for step in (2, 5, 7):
        alone = solve(term, penalty, float(path.levels[step]), tolerance=1e-8)
        norms = alone.coefficients.norm(dim=1).numpy()
        np.testing.assert_allclose(path.row_norms[step], norms, atol=1e-5)
    np.testing.assert_array_equal(path.active, path.row_norms > 0)
    assert not path.active[0].any()


def test_orthogonal_units_enter_in_the_order_of_their_relevance() -> None:
    relevance = np.array([0.3, 0.9, 0.5, 0.7, 0.1])
    term = SharedQuadratic.from_arrays(np.eye(5), relevance[:, None])
    path = solve_path(term, L1(), [0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose(path.entry_level, [0.2, 0.8, 0.4, 0.6, 0.0])
    np.testing.assert_array_equal(path.ranking(), [1, 3, 2, 0, 4])


def test_scores_rank_within_a_level_by_row_and_without_entry_by_pull() -> None:
    relevance = np.array([0.55, 0.9, 0.95, 0.02, 0.01])
    path = solve_path(SharedQuadratic.from_arrays(np.eye(5), relevance[:, None]), L1(), [0.5, 0.1])
    np.testing.assert_array_equal(path.ranking(), [2, 1, 0, 3, 4])
    assert (path.score[:3] >= 0.5).all()
    assert (path.score[3:] < 0.1).all()
    assert len(set(path.score.tolist())) == 5


def test_path_ends_when_every_unit_has_entered() -> None:
    term = SharedQuadratic.from_arrays(np.eye(3), np.array([[1.0], [0.9], [0.8]]))
    assert len(solve_path(term, L1(), count=30).levels) < 10
    assert len(solve_path(term, L1(), count=30, stop_when_full=False).levels) == 30


def test_paths_of_empty_problems_and_bad_grids() -> None:
    path = solve_path(SharedQuadratic.from_arrays(np.eye(3), np.zeros((3, 2))), L1())
    assert not path.active.any()
    np.testing.assert_array_equal(path.score, 0.0)
    for levels in ([], [1.0, 0.0]):
        with pytest.raises(UsageError):
            solve_path(random_term("shared"), L1(), levels)
    for grid in ((1.0, 0, 0.1), (0.0, 5, 0.1), (1.0, 5, 0.0)):
        with pytest.raises(UsageError):
            lambda_grid(*grid)
    np.testing.assert_allclose(lambda_grid(2.0, 3, 0.25), [2.0, 1.0, 0.5])


def test_same_path_same_bits() -> None:
    term = random_term("classwise", seed=2)
    one, two = (solve_path(term, all_penalties(True)["graph"]) for _ in range(2))
    np.testing.assert_array_equal(one.score, two.score)
    assert torch.equal(one.last.coefficients, two.last.coefficients)


CLUSTERS = np.repeat([0, 1, 2, 3], 4)
SIGNAL = 0.5


def planted_problem(kind: str, seed: int) -> tuple[QuadraticTerm, np.ndarray, np.ndarray]:
    """Units that serve whole clusters of classes, weakly, in noise; (term, B, class means)."""
    rng = np.random.default_rng(seed)
    units, classes, samples = 40, len(CLUSTERS), 60
    truth = np.zeros((units, classes))
    for k in range(12):
        chosen = np.isin(CLUSTERS, rng.choice(4, 1 + k % 2, replace=False))
        truth[k, chosen] = SIGNAL
    means = rng.standard_normal((4, 40))[CLUSTERS] + 0.5 * rng.standard_normal((classes, 40))
    designs = []
    for c in range(classes):
        if c == 0 or kind == "classwise":
            design = rng.standard_normal((samples, units)) + 0.7 * rng.standard_normal((samples, 1))
        designs.append(design)
    targets = [x @ truth[:, c] + rng.standard_normal(samples) for c, x in enumerate(designs)]
    r = np.stack([x.T @ y / samples for x, y in zip(designs, targets, strict=True)], axis=1)
    q = np.stack([x.T @ x / samples for x in designs])
    if kind == "shared":
        return SharedQuadratic.from_arrays(q[0], r), truth, means
    return ClasswiseQuadratic.from_arrays(q, r), truth, means


def best_agreement(term: QuadraticTerm, penalty: Penalty, truth: np.ndarray) -> tuple[float, float]:
    """Over the path: the best F1 of B's support at 0.4 of the signal, and the smallest error of B."""
    best, error, last = 0.0, np.inf, None
    for level in lambda_grid(lambda_max(term, penalty), 25, 0.03):
        last = solve(term, penalty, float(level), start=last, tolerance=1e-4)
        b = last.coefficients.numpy()
        found = np.abs(b) > 0.4 * SIGNAL
        hits = (found & (truth != 0)).sum()
        best = max(best, 2 * hits / (found.sum() + (truth != 0).sum()))
        error = min(error, float(np.linalg.norm(b - truth)))
    return float(best), error


@pytest.mark.parametrize("kind", ["shared", "classwise"])
def test_planted_class_structure_is_recovered_where_plain_l1_fails(kind: str) -> None:
    scores: dict[str, list[tuple[float, float]]] = {"l1": [], "tree": [], "graph": []}
    for seed in range(3):
        term, truth, means = planted_problem(kind, seed)
        r = class_correlation(means)
        tree = TreePenalty(ClassTree.from_correlation(r))
        graph = GraphPenalty(ClassGraph.from_correlation(r, threshold=0.3, positive_only=True), 0.3)
        for name, penalty in (("l1", L1()), ("tree", tree), ("graph", graph)):
            scores[name].append(best_agreement(term, penalty, truth))
    f1 = {name: np.mean([score for score, _ in values]) for name, values in scores.items()}
    error = {name: np.mean([value for _, value in values]) for name, values in scores.items()}
    assert f1["l1"] < 0.92, f1
    assert f1["tree"] > 0.95, f1
    assert f1["graph"] > 0.98, f1
    assert error["tree"] < 0.8 * error["l1"], error
    assert error["graph"] < 0.55 * error["l1"], error


def test_planted_units_rank_ahead_of_the_rest() -> None:
    hits = {"l1": 0, "tree": 0, "graph": 0}
    for seed in range(4):
        term, _, means = planted_problem("classwise", seed)
        r = class_correlation(means)
        penalties: dict[str, Penalty] = {
            "l1": L1(),
            "tree": TreePenalty(ClassTree.from_correlation(r)),
            "graph": GraphPenalty(ClassGraph.from_correlation(r, threshold=0.3, positive_only=True), 0.3),
        }
        for name, penalty in penalties.items():
            path: PathResult = solve_path(term, penalty)
            hits[name] += int((path.ranking()[:12] < 12).sum())
    assert min(hits["tree"], hits["graph"]) >= 44, hits
    assert hits["l1"] < min(hits["tree"], hits["graph"]), hits
