"""The solver against other packages and against its own optimality test."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, MultiTaskLasso

from onnxprune.errors import UsageError
from onnxprune.select.classes import ClassGraph, ClassTree
from onnxprune.select.graph_penalty import GraphPenalty
from onnxprune.select.path import lambda_max
from onnxprune.select.penalties import L1, Penalty, RowGroup
from onnxprune.select.problem import (
    ClasswiseQuadratic,
    QuadraticTerm,
    SharedQuadratic,
    term_gradient,
    term_value,
)
from onnxprune.select.solver import few_threads, solve
from onnxprune.select.tree_penalty import TreePenalty
from tests.select.oracles import (
    all_penalties,
    conic_optimum,
    planted_correlation,
    random_term,
    subdifferential_distance,
)

NAMES = list(all_penalties(False))
CASES = [(name, sign) for name in NAMES for sign in (False, True)]
IDS = [f"{name}{'-nonnegative' * sign}" for name, sign in CASES]
TERMS = ("shared", "classwise")


def design(
    seed: int = 0, samples: int = 60, units: int = 25, classes: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, units)) + rng.standard_normal((samples, 1))
    truth = np.zeros((units, classes))
    truth[:6] = rng.standard_normal((6, classes))
    return x, x @ truth + rng.standard_normal((samples, classes))


@pytest.mark.parametrize("nonnegative", [False, True])
def test_l1_has_the_coefficients_of_scikit_learn(nonnegative: bool) -> None:
    x, y = design()
    n = len(x)
    term = SharedQuadratic.from_arrays(x.T @ x / n, x.T @ y / n)
    for alpha in (0.5, 0.1, 0.02):
        solution = solve(term, L1(1.0, nonnegative), alpha, tolerance=1e-10)
        assert solution.converged
        for c in range(y.shape[1]):
            lasso = Lasso(alpha=alpha, fit_intercept=False, positive=nonnegative, tol=1e-12, max_iter=100_000)
            expected = lasso.fit(x, y[:, c]).coef_
            np.testing.assert_allclose(solution.coefficients[:, c].numpy(), expected, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(solution.coefficients[:, c].numpy() != 0, expected != 0)


def test_classwise_l1_has_the_coefficients_of_scikit_learn() -> None:
    problems = [design(seed, samples=40) for seed in range(3)]
    q = np.stack([x.T @ x / 40 for x, _ in problems])
    r = np.stack([x.T @ y[:, 0] / 40 for x, y in problems], axis=1)
    solution = solve(ClasswiseQuadratic.from_arrays(q, r), L1(), 0.1, tolerance=1e-10)
    for c, (x, y) in enumerate(problems):
        expected = Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x, y[:, 0]).coef_
        np.testing.assert_allclose(solution.coefficients[:, c].numpy(), expected, rtol=0, atol=1e-6)


def test_row_groups_have_the_coefficients_of_scikit_learn() -> None:
    x, y = design(1)
    n = len(x)
    term = SharedQuadratic.from_arrays(x.T @ x / n, x.T @ y / n)
    for alpha in (1.0, 0.2):
        expected = (
            MultiTaskLasso(alpha=alpha, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x, y).coef_.T
        )
        found = solve(term, RowGroup(), alpha, tolerance=1e-10).coefficients.numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize(("name", "nonnegative"), CASES, ids=IDS)
def test_objective_is_that_of_a_conic_solver(name: str, nonnegative: bool, kind: str) -> None:
    term, penalty = random_term(kind), all_penalties(nonnegative)[name]
    level = 0.3 * lambda_max(term, penalty)
    solution = solve(term, penalty, level, tolerance=1e-8)
    expected = conic_optimum(term, penalty, level)
    assert solution.converged
    assert abs(solution.objective - expected) <= 1e-6 * abs(expected)
    assert int((solution.coefficients != 0).any(dim=1).sum()) > 0


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize(("name", "nonnegative"), CASES, ids=IDS)
def test_stops_below_the_tolerance(name: str, nonnegative: bool, kind: str) -> None:
    """The reported optimality, recomputed from the definition by a conic solver."""
    term, penalty = random_term(kind, seed=3), all_penalties(nonnegative)[name]
    level = 0.2 * lambda_max(term, penalty)
    for tolerance in (1e-3, 1e-6):
        solution = solve(term, penalty, level, tolerance=tolerance)
        assert solution.converged
        assert solution.optimality <= tolerance
        gradient = term_gradient(term, solution.coefficients)
        torch.testing.assert_close(solution.gradient, gradient, rtol=0, atol=1e-10)
        independent = subdifferential_distance(
            penalty, solution.coefficients.numpy(), gradient.numpy(), level
        )
        assert np.linalg.norm(independent) <= tolerance * float(term.linear.norm()) + 1e-7
        value = term_value(term, solution.coefficients)
        value += level * float(penalty.row_values(solution.coefficients).sum())
        assert solution.objective == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize(("name", "nonnegative"), CASES, ids=IDS)
def test_lambda_max(name: str, nonnegative: bool, kind: str) -> None:
    term, penalty = random_term(kind, seed=4), all_penalties(nonnegative)[name]
    largest = lambda_max(term, penalty)
    assert bool((solve(term, penalty, largest).coefficients == 0).all())
    assert bool((solve(term, penalty, 0.99 * largest).coefficients != 0).any())


@pytest.mark.parametrize("name", NAMES)
def test_screening_and_warm_starts_do_not_change_the_answer(name: str) -> None:
    term, penalty = random_term("shared", units=40, seed=5), all_penalties(False)[name]
    largest = lambda_max(term, penalty)
    warm = None
    for share in (0.9, 0.5, 0.2, 0.05):
        warm = solve(term, penalty, share * largest, start=warm, tolerance=1e-9)
    assert warm is not None
    cold = solve(term, penalty, 0.05 * largest, tolerance=1e-9)
    assert warm.objective == pytest.approx(cold.objective, rel=1e-9)
    torch.testing.assert_close(warm.coefficients, cold.coefficients, rtol=0, atol=1e-6)
    # A start from a smaller level must not mislead the strong rule either.
    back = solve(term, penalty, 0.5 * largest, start=warm, tolerance=1e-9)
    fresh = solve(term, penalty, 0.5 * largest, tolerance=1e-9)
    torch.testing.assert_close(back.coefficients, fresh.coefficients, rtol=0, atol=1e-6)


def permuted_classes(penalty: Penalty, order: np.ndarray) -> Penalty:
    r = planted_correlation()[np.ix_(order, order)]
    if isinstance(penalty, TreePenalty):
        return TreePenalty(ClassTree.from_correlation(r), penalty.mu)
    if isinstance(penalty, GraphPenalty):
        return GraphPenalty(ClassGraph.from_correlation(r, threshold=0.2), penalty.mu)
    return penalty


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("name", NAMES)
def test_permuting_units_and_classes_permutes_the_solution(name: str, kind: str) -> None:
    term, penalty = random_term(kind, seed=6), all_penalties(False)[name]
    rng = np.random.default_rng(0)
    units, classes = rng.permutation(term.units), rng.permutation(term.classes)
    q, r = term.quadratic.numpy(), term.linear.numpy()
    if kind == "shared":
        other: QuadraticTerm = SharedQuadratic.from_arrays(q[np.ix_(units, units)], r[np.ix_(units, classes)])
    else:
        other = ClasswiseQuadratic.from_arrays(q[np.ix_(classes, units, units)], r[np.ix_(units, classes)])
    level = 0.2 * lambda_max(term, penalty)
    one = solve(term, penalty, level, tolerance=1e-9).coefficients.numpy()
    two = solve(other, permuted_classes(penalty, classes), level, tolerance=1e-9).coefficients.numpy()
    np.testing.assert_allclose(two, one[np.ix_(units, classes)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("name", NAMES)
def test_scaling_the_data_scales_the_solution(name: str, kind: str) -> None:
    """Targets times s: lambda and B times s. Q and R times s: lambda times s, the same B."""
    term, penalty = random_term(kind, seed=7), all_penalties(False)[name]
    q, r = term.quadratic.numpy(), term.linear.numpy()
    level = 0.2 * lambda_max(term, penalty)
    one = solve(term, penalty, level, tolerance=1e-9)
    for s in (1e-4, 3e4):
        louder = type(term).from_arrays(q, s * r)
        two = solve(louder, penalty, s * level, tolerance=1e-9)
        np.testing.assert_allclose(two.coefficients.numpy() / s, one.coefficients.numpy(), rtol=0, atol=1e-6)
        stretched = type(term).from_arrays(s * q, s * r)
        three = solve(stretched, penalty, s * level, tolerance=1e-9)
        np.testing.assert_allclose(three.coefficients.numpy(), one.coefficients.numpy(), rtol=0, atol=1e-6)
        assert two.iterations == pytest.approx(one.iterations, rel=0.2, abs=10)


@pytest.mark.parametrize("name", NAMES)
def test_same_problem_same_bits(name: str) -> None:
    term, penalty = random_term("classwise", seed=8), all_penalties(True)[name]
    level = 0.2 * lambda_max(term, penalty)
    one, two = (solve(term, all_penalties(True)[name], level) for _ in range(2))
    assert torch.equal(one.coefficients, two.coefficients)
    assert one.iterations == two.iterations


def test_singular_and_degenerate_problems() -> None:
    twins = SharedQuadratic.from_arrays(np.ones((3, 3)), np.ones((3, 2)))
    solution = solve(twins, RowGroup(), 0.1, tolerance=1e-8)
    assert solution.converged
    np.testing.assert_allclose(solution.coefficients.sum(dim=0).numpy(), 1 - 0.1 / np.sqrt(2), atol=1e-7)
    nothing = solve(SharedQuadratic.from_arrays(np.eye(3), np.zeros((3, 2)), 2.0), L1(), 0.1)
    assert nothing.converged
    assert nothing.objective == 2.0
    assert bool((nothing.coefficients == 0).all())
    flat = solve(SharedQuadratic.from_arrays(np.zeros((2, 2)), np.array([0.05, 0.01])), L1(), 0.1)
    assert bool((flat.coefficients == 0).all())


def test_running_out_of_iterations_is_said() -> None:
    term = random_term("shared", units=40, seed=9)
    solution = solve(term, L1(), 0.01 * lambda_max(term, L1()), tolerance=1e-12, max_iterations=3)
    assert not solution.converged
    assert solution.iterations <= 3
    assert solution.optimality > 1e-12


def test_bad_problems_are_refused() -> None:
    term = random_term("shared")
    with pytest.raises(UsageError):
        solve(term, L1(), 0.0)
    with pytest.raises(UsageError):
        SharedQuadratic.from_arrays(np.eye(3), np.ones((4, 2)))
    with pytest.raises(UsageError):
        ClasswiseQuadratic.from_arrays(np.zeros((2, 3, 3)), np.ones((3, 3)))
    with pytest.raises(UsageError):
        SharedQuadratic.from_arrays(np.full((1, 1), np.nan), np.ones((1, 1)))


def test_product_from_rows_is_the_product() -> None:
    rng = np.random.default_rng(0)
    for kind in TERMS:
        term = random_term(kind)
        units = torch.tensor([1, 4, 7])
        b = torch.zeros(term.units, term.classes, dtype=torch.float64)
        b[units] = torch.as_tensor(rng.standard_normal((3, term.classes)))
        torch.testing.assert_close(term.product_from(units, b[units]), term.product(b))
        torch.testing.assert_close(term.restrict(units).product(b[units]), term.product(b)[units])


@pytest.mark.parametrize(("kind", "units"), [("shared", 300), ("classwise", 80)])
def test_lipschitz_by_power_iteration(kind: str, units: int) -> None:
    term = random_term(kind, units=units, classes=3, samples=50)
    q = term.quadratic.numpy()
    expected = np.linalg.eigvalsh(q)[..., -1].max()
    assert term.lipschitz() == pytest.approx(expected, rel=1e-2)


def test_float32_reaches_what_it_can() -> None:
    term = random_term("shared", seed=2)
    single = SharedQuadratic.from_arrays(term.quadratic, term.linear, dtype=torch.float32)
    for name, penalty in all_penalties(False).items():
        level = 0.2 * lambda_max(term, penalty)
        one = solve(single, penalty, level, tolerance=1e-4)
        two = solve(term, penalty, level, tolerance=1e-6)
        assert one.coefficients.dtype == torch.float32
        assert one.converged, name
        np.testing.assert_allclose(one.coefficients.numpy(), two.coefficients.numpy(), atol=2e-2)


def test_small_problems_run_on_one_thread_and_give_the_threads_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with few_threads(random_term("shared")):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_large_problems_step_in_single_precision_and_are_judged_in_double() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 900)) / np.sqrt(300)
    truth = np.zeros((900, 120))
    truth[:80] = rng.standard_normal((80, 1)) * rng.random((80, 120))
    term = SharedQuadratic.from_arrays(x.T @ x, x.T @ (x @ truth + 0.1 * rng.standard_normal((300, 120))))
    level = 0.05 * lambda_max(term, RowGroup())
    quick = solve(term, RowGroup(), level, tolerance=1e-5)
    exact = solve(term, RowGroup(), level, tolerance=1e-7)
    assert quick.converged
    assert quick.coefficients.dtype == torch.float64
    gradient = term_gradient(term, quick.coefficients)
    distance = RowGroup().distances(quick.coefficients, gradient, level).norm()
    assert float(distance) <= 1e-5 * float(term.linear.norm())
    assert quick.objective == pytest.approx(exact.objective, rel=1e-6)
    # Rows of zeros are skipped in products of this size.
    torch.testing.assert_close(term.product(quick.coefficients), term.quadratic @ quick.coefficients)
