"""The lambda path: solve from lambda_max down, and rank the units by when they enter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from onnxprune.errors import UsageError
from onnxprune.select.penalties import Penalty
from onnxprune.select.problem import QuadraticTerm, norm
from onnxprune.select.solver import Solution, few_threads, solve

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PathResult:
    """The path of one problem over L levels, largest first.

    ``levels`` (L,); ``active`` (L, p): rows of B that are not zero; ``row_norms`` (L, p): their l2
    norms; ``entry_level`` (p,): the largest level at which a unit is active, 0 if none; ``score``
    (p,): a total ranking of the units, larger is more needed, in units of lambda; ``iterations``,
    ``optimality`` (L,): of the solver; ``converged``: whether every level met its tolerance;
    ``last``: the solution at the smallest level.
    """

    levels: FloatArray
    active: BoolArray
    row_norms: FloatArray
    entry_level: FloatArray
    score: FloatArray
    iterations: IntArray
    optimality: FloatArray
    converged: bool
    last: Solution

    def ranking(self) -> IntArray:
        """The units, most needed first; equal scores in their own order."""
        return np.argsort(-self.score, kind="stable")


def lambda_grid(largest: float, count: int = 30, ratio: float = 0.01) -> FloatArray:
    """``count`` levels from ``largest`` down to ``ratio`` * ``largest``, evenly spaced in the logarithm."""
    if count < 1 or not 0 < ratio <= 1 or not largest > 0:
        raise UsageError(
            f"no grid of {count} levels from {largest} down to {ratio} of it",
            hint="give at least one level, a positive lambda and a ratio in (0, 1]",
        )
    return largest * np.geomspace(1.0, ratio, count)


def lambda_max(term: QuadraticTerm, penalty: Penalty) -> float:
    """The smallest level at which B = 0 is optimal."""
    return penalty.critical_level(term.linear)


def solve_path(
    term: QuadraticTerm,
    penalty: Penalty,
    levels: npt.ArrayLike | None = None,
    *,
    count: int = 30,
    ratio: float = 0.01,
    tolerance: float = 3e-3,
    max_iterations: int = 2_000,
    stop_when_full: bool = True,
) -> PathResult:
    """Solve at every level, each from the one before.

    ``levels`` default to ``lambda_grid(lambda_max, count, ratio)``; given ones are sorted.
    ``stop_when_full`` ends the path early once every unit has entered, when the ranking is known.
    A level is solved to ``tolerance`` relative to itself: the distance to the subdifferential is at
    most tolerance * (level / lambda_max) * |R|_F, since an error that is small beside lambda can't
    change what enters there. ``max_iterations`` is for each level.
    """
    with few_threads(term):
        largest = lambda_max(term, penalty)
        grid = _levels(largest, levels, count, ratio)
        entered = np.zeros(term.units, bool)
        solutions: list[tuple[FloatArray, int, float, bool]] = []
        before: Solution | None = None
        last: Solution | None = None
        for level in grid:
            share = min(float(level) / largest, 1.0) if largest > 0 else 1.0
            before, last = (
                last,
                solve(
                    term,
                    penalty,
                    float(level),
                    start=_extrapolated(before, last, float(level)),
                    tolerance=tolerance * share,
                    max_iterations=max_iterations,
                ),
            )
            norms = _array(norm(last.coefficients, dim=1))
            solutions.append((norms, last.iterations, last.optimality, last.converged))
            entered |= norms > 0
            if stop_when_full and entered.all():
                break
    assert last is not None
    norms_by_level = np.stack([norms for norms, _, _, _ in solutions])
    used = grid[: len(solutions)]
    active = norms_by_level > 0
    entry = np.where(active.any(axis=0), used[active.argmax(axis=0)], 0.0)
    return PathResult(
        levels=used,
        active=active,
        row_norms=norms_by_level,
        entry_level=entry,
        score=_score(used, active, norms_by_level, _residual_pull(last, penalty)),
        iterations=np.array([iterations for _, iterations, _, _ in solutions], np.int64),
        optimality=np.array([optimality for _, _, optimality, _ in solutions]),
        converged=all(converged for _, _, _, converged in solutions),
        last=last,
    )


def _extrapolated(before: Solution | None, last: Solution | None, level: float) -> Solution | None:
    """``last`` moved on to ``level`` along the line through it and ``before``.

    Between two levels at which a row enters or entries tie, the path of l1 is a line in lambda, and
    that of the others close to one.
    """
    if before is None or last is None or before.level == last.level:
        return last
    share = (last.level - level) / (before.level - last.level)
    ahead = last.coefficients + share * (last.coefficients - before.coefficients)
    gradient = last.gradient + share * (last.gradient - before.gradient)
    return replace(last, coefficients=ahead, gradient=gradient)


def _levels(largest: float, levels: npt.ArrayLike | None, count: int, ratio: float) -> FloatArray:
    if levels is None:
        # Without any relevant unit every level has the solution zero.
        return lambda_grid(largest if largest > 0 else 1.0, count, ratio)
    grid = np.sort(np.asarray(levels, np.float64).ravel())[::-1]
    if not len(grid) or not grid[-1] > 0:
        raise UsageError("no levels, or one that is not positive", hint="give lambdas over zero")
    return grid


def _array(values: Tensor) -> FloatArray:
    return np.asarray(values.cpu().numpy(), np.float64)


def _residual_pull(last: Solution, penalty: Penalty) -> FloatArray:
    pull = -last.gradient
    pull = pull.clamp_min(0.0) if penalty.nonnegative else pull
    return _array(norm(pull, dim=1))


def _score(levels: FloatArray, active: BoolArray, norms: FloatArray, pull: FloatArray) -> FloatArray:
    """Entry level first; within one step of the grid the larger row; without entry the larger pull."""
    score = np.zeros(active.shape[1])
    first = np.where(active.any(axis=0), active.argmax(axis=0), len(levels))
    above = np.concatenate([levels[:1] * (levels[0] / levels[1] if len(levels) > 1 else 2.0), levels])
    for step in range(len(levels) + 1):
        cohort = first == step
        if not cohort.any():
            continue
        low = levels[step] if step < len(levels) else 0.0
        strength = norms[step, cohort] if step < len(levels) else pull[cohort]
        top = strength.max()
        share = strength / top if top > 0 else np.zeros_like(strength)
        # Strictly below the level above, so that a later entry never ties with an earlier one.
        score[cohort] = low + 0.999 * share * (above[step] - low)
    return score
