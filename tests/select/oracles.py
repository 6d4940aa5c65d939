"""Independent, slow implementations that the engine is held to, and the problems it is tried on."""

from __future__ import annotations

import warnings

import cvxpy as cp
import numpy as np
import torch

from onnxprune.select.classes import ClassGraph, ClassTree, class_correlation
from onnxprune.select.graph_penalty import GraphPenalty
from onnxprune.select.penalties import L1, Penalty, RowGroup
from onnxprune.select.problem import ClasswiseQuadratic, QuadraticTerm, SharedQuadratic
from onnxprune.select.tree_penalty import TreePenalty

CLUSTERS = np.array([0, 0, 0, 1, 1, 1, 2, 2])


def planted_correlation(seed: int = 0, clusters: np.ndarray = CLUSTERS, noise: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters.max() + 1, 40))
    return class_correlation(centres[clusters] + noise * rng.standard_normal((len(clusters), 40)))


def all_penalties(nonnegative: bool) -> dict[str, Penalty]:
    r = planted_correlation()
    tree = ClassTree.from_correlation(r)
    graph = ClassGraph.from_correlation(r, threshold=0.2)
    assert (graph.signs < 0).any()
    assert (graph.signs > 0).any()
    return {
        "l1": L1(0.7, nonnegative),
        "rows": RowGroup(1.3, 0.0, nonnegative),
        "sparse-rows": RowGroup(0.8, 0.3, nonnegative),
        "tree": TreePenalty(tree, 0.0, nonnegative),
        "sparse-tree": TreePenalty(tree, 0.4, nonnegative),
        "graph": GraphPenalty(graph, 0.6, nonnegative),
    }


def random_term(
    kind: str, units: int = 12, classes: int = 8, samples: int = 30, seed: int = 0, scale: float = 1.0
) -> QuadraticTerm:
    """A least-squares problem with correlated units and planted rows."""
    rng = np.random.default_rng(seed)
    coefficients = np.zeros((units, classes))
    coefficients[: units // 3] = rng.standard_normal((units // 3, classes)) + 1.0
    quadratic, linear, constant = [], [], 0.0
    for c in range(classes):
        if c == 0 or kind == "classwise":
            design = rng.standard_normal((samples, units)) + rng.standard_normal((samples, 1))
            design /= np.linalg.norm(design, axis=0)
        target = design @ coefficients[:, c] + 0.3 * rng.standard_normal(samples)
        target *= scale
        quadratic.append(design.T @ design)
        linear.append(design.T @ target)
        constant += 0.5 * float(target @ target)
    r = np.stack(linear, axis=1)
    if kind == "shared":
        return SharedQuadratic.from_arrays(quadratic[0], r, constant)
    return ClasswiseQuadratic.from_arrays(np.stack(quadratic), r, constant)


def penalty_expression(penalty: Penalty, b: cp.Variable) -> cp.Expression:
    """P(B) written from its definition."""
    if isinstance(penalty, L1):
        return penalty.weight * cp.sum(cp.abs(b))
    if isinstance(penalty, RowGroup):
        rows = sum(cp.norm(b[k, :], 2) for k in range(b.shape[0]))
        return penalty.weight * rows + penalty.mu * cp.sum(cp.abs(b))
    if isinstance(penalty, TreePenalty):
        weights = penalty.tree.weights()
        total = penalty.mu * cp.sum(cp.abs(b))
        for node, weight in enumerate(weights):
            leaves = list(penalty.tree.leaves(node))
            total += weight * cp.sum(cp.norm(b[:, leaves], 2, axis=1))
        return total
    assert isinstance(penalty, GraphPenalty)
    graph = penalty.graph
    total = penalty.mu * cp.sum(cp.abs(b))
    for (one, two), weight, sign in zip(graph.edges, graph.weights, graph.signs, strict=True):
        total += weight * cp.sum(cp.abs(b[:, one] - sign * b[:, two]))
    return total


def _solve(problem: cp.Problem) -> None:
    with warnings.catch_warnings():
        # Full accuracy is asked for; "almost" reached is far below what the tests compare.
        warnings.simplefilter("ignore", UserWarning)
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)


def conic_optimum(term: QuadraticTerm, penalty: Penalty, level: float) -> float:
    """The optimal objective by an interior-point solver."""
    b = cp.Variable((term.units, term.classes))
    quadratic = term.quadratic.numpy()
    value = -cp.sum(cp.multiply(term.linear.numpy(), b))
    for c in range(term.classes):
        matrix = quadratic if quadratic.ndim == 2 else quadratic[c]
        root = np.linalg.cholesky(matrix + 1e-13 * np.eye(len(matrix)))
        value += 0.5 * cp.sum_squares(root.T @ b[:, c])
    problem = cp.Problem(
        cp.Minimize(value + level * penalty_expression(penalty, b)), [b >= 0] if penalty.nonnegative else []
    )
    _solve(problem)
    return float(problem.value) + term.constant


def tree_prox_by_dual(
    penalty: TreePenalty, point: np.ndarray, step: float, seed: int = 0, passes: int = 20_000
) -> tuple[np.ndarray, np.ndarray]:
    """The prox of one row (C,) and its dual point, by block ascent over the groups in random order.

    Uses nothing of the tree's order: each pass projects every group's dual onto its ball, until no
    dual moves any more.
    """
    rng = np.random.default_rng(seed)
    weights = penalty.tree.weights()
    groups = [(list(penalty.tree.leaves(v)), step * w) for v, w in enumerate(weights) if w > 0]
    groups += [([c], step * penalty.mu) for c in range(len(point)) if penalty.mu > 0]
    duals = [np.zeros(len(leaves)) for leaves, _ in groups]
    cone = np.zeros_like(point)
    left = point.copy()
    for _ in range(passes):
        moved = 0.0
        for g in rng.permutation(len(groups) + penalty.nonnegative):
            if g == len(groups):
                fresh = np.minimum(left + cone, 0.0)
                moved = max(moved, np.abs(fresh - cone).max())
                left, cone = left + cone - fresh, fresh
                continue
            leaves, radius = groups[g]
            free = left[leaves] + duals[g]
            size = np.linalg.norm(free)
            fresh = free if size <= radius else free * (radius / size)
            moved = max(moved, np.abs(fresh - duals[g]).max())
            left[leaves] = free - fresh
            duals[g] = fresh
        if moved < 1e-15:
            break
    return left, point - left


def subdifferential_distance(
    penalty: Penalty, coefficients: np.ndarray, gradient: np.ndarray, level: float
) -> np.ndarray:
    """Distance of -gradient to the subdifferential of level * P at each row, from its definition."""
    result = []
    for row, slope in zip(coefficients, gradient, strict=True):
        parts: list[cp.Expression] = [slope]
        constraints = []

        def ball(
            leaves: list[int],
            weight: float,
            row: np.ndarray = row,
            held: list[cp.Constraint] = constraints,
            into: list[cp.Expression] = parts,
            size: int = len(row),
        ) -> None:
            place = np.zeros((size, len(leaves)))
            place[leaves, np.arange(len(leaves))] = 1.0
            length = np.linalg.norm(row[leaves])
            if length > 0:
                into.append(place @ (level * weight * row[leaves] / length))
            else:
                z = cp.Variable(len(leaves))
                held.append(cp.norm(z, 2) <= level * weight)
                into.append(place @ z)

        if isinstance(penalty, TreePenalty):
            for node, weight in enumerate(penalty.tree.weights()):
                ball(list(penalty.tree.leaves(node)), float(weight))
        if isinstance(penalty, RowGroup):
            ball(list(range(len(row))), penalty.weight)
        mu = penalty.weight if isinstance(penalty, L1) else penalty.mu
        for c in range(len(row)):
            ball([c], mu)
        if isinstance(penalty, GraphPenalty):
            graph = penalty.graph
            for (one, two), weight, sign in zip(graph.edges, graph.weights, graph.signs, strict=True):
                step = np.zeros(len(row))
                step[one], step[two] = 1.0, -sign
                apart = row[one] - sign * row[two]
                if apart != 0:
                    parts.append(level * weight * np.sign(apart) * step)
                else:
                    u = cp.Variable()
                    constraints.append(cp.abs(u) <= level * weight)
                    parts.append(step * u)
        if penalty.nonnegative:
            z = cp.Variable(len(row))
            constraints += [z <= 0, cp.multiply(z, row) == 0]
            parts.append(z)
        total = cp.norm(sum(parts[1:], parts[0]), 2)
        problem = cp.Problem(cp.Minimize(total), constraints)
        _solve(problem)
        result.append(float(problem.value))
    return np.array(result)


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)
