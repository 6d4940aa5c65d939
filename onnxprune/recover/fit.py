"""Ridge regression from streamed sums, its strength chosen by the error on samples that no fit sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxprune.profile.gram import add_gram, mirror

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths tried, as shares of the Gram matrix's mean diagonal."""


@dataclass
class Sums:
    """Second moments of rows x and targets y, streamed: x'x (G, d, d), x'y (G, d, O), y'y (G, O)."""

    rows_rows: Tensor
    rows_targets: Tensor
    targets_targets: Tensor
    count: int = 0

    @classmethod
    def zeros(cls, groups: int, size: int, outputs: int, device: torch.device) -> Sums:
        """Empty sums for rows of ``size`` columns, in double precision."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(zeros(groups, size, size), zeros(groups, size, outputs), zeros(groups, outputs))

    def add(self, rows: Tensor, targets: Tensor, *, gram: bool = True) -> None:
        """Take rows (G, r, d) and targets (G, r, O); products are formed in their own precision.

        Without ``gram`` the rows' own products are left out, for who has them already.
        """
        if gram:
            add_gram(self.rows_rows, rows)
            mirror(self.rows_rows)
        self.rows_targets += rows.transpose(1, 2) @ targets
        self.targets_targets += targets.square().sum(1)
        self.count += rows.shape[1]

    def error(self, matrix: Tensor) -> Tensor:
        """Mean squared error of ``rows @ matrix`` for each output: (G, O)."""
        quadratic = (matrix * (self.rows_rows @ matrix)).sum(1)
        linear = (matrix * self.rows_targets).sum(1)
        return (quadratic - 2 * linear + self.targets_targets).clamp_min(0) / max(1, self.count)


@dataclass(frozen=True)
class Fit:
    """A fitted matrix (G, d, O), the solver that gave it, and held-out errors before and after."""

    matrix: Tensor
    solver: Ridge
    error_before: float
    error_after: float

    @property
    def ridge(self) -> float:
        """The ridge that was chosen."""
        return self.solver.strength

    @property
    def helps(self) -> bool:
        """Whether the fit lowers the held-out error."""
        return self.error_after < self.error_before


class Ridge:
    """Least squares on one Gram matrix with a ridge towards ``old`` (G, d, O), factored once.

    ``strength`` is a share of the Gram matrix's mean diagonal. With ``constant`` the last row of the
    matrix multiplies a column of ones and is not shrunk.
    """

    def __init__(self, sums: Sums, old: Tensor, strength: float, constant: bool) -> None:
        """Factor the Gram matrix of ``sums``."""
        self.strength = strength
        self._count = max(1, sums.count)
        self._old = old
        left = sums.rows_rows / self._count
        size = left.shape[-1]
        penalised = size - 1 if constant else size
        diagonal = left.diagonal(dim1=1, dim2=2)
        # A floor keeps the matrix definite where inputs are dead (all zero behind a ReLU).
        floor = 1e-10 * diagonal.mean(1) + 1e-30
        shrink = torch.zeros_like(diagonal)
        shrink[:, :penalised] = (strength * diagonal[:, :penalised].mean(1) + floor)[:, None]
        left = left + torch.diag_embed(shrink)
        self._pull = shrink[:, :, None] * old
        self._factor, failed = torch.linalg.cholesky_ex(left)
        self._definite = not bool(failed.any())

    def solve(self, rows_targets: Tensor) -> Tensor:
        """The matrix (G, d, O) for the sums ``rows_targets``; the old one if the Gram is not definite."""
        return self._solved(rows_targets / self._count + self._pull, self._old)

    def change(self, sums: Sums) -> Tensor:
        """The change of the matrix (G, d, O) that fits a change of its targets, both as in ``sums``.

        Nothing pulls it; zero where the Gram matrix is not definite, as with sums that aren't finite.
        """
        right = sums.rows_targets / max(1, sums.count)
        return self._solved(right, torch.zeros_like(right))

    def _solved(self, right: Tensor, otherwise: Tensor) -> Tensor:
        return torch.cholesky_solve(right, self._factor) if self._definite else otherwise


def fit_matrix(
    fit: Sums,
    held_out: Sums,
    old: Tensor,
    *,
    constant: bool,
    weights: Tensor | None = None,
    rounded: Callable[[Tensor], Tensor] | None = None,
) -> Fit:
    """Least squares with a ridge towards ``old`` (G, d, O) that is chosen on ``held_out``.

    The held-out rows never join the fit: layers behind this one would see inputs fitted to the very
    samples that are to choose their ridge, and choose it too small.
    With ``constant`` the last row of the matrix multiplies a column of ones and is not shrunk.
    ``weights`` (G, O) say how much each output's squared error counts in the errors; 1 without.
    ``rounded`` gives what is left of a matrix when it is stored; errors are those of that.
    """

    def error(matrix: Tensor) -> float:
        each = held_out.error(matrix if rounded is None else rounded(matrix))
        return float((each if weights is None else each * weights).sum())

    best: Fit | None = None
    before = error(old)

    def look(strength: float) -> float:
        nonlocal best  # the lowest alone is kept: a factor may take hundreds of megabytes
        solver = Ridge(fit, old, strength, constant)
        matrix = solver.solve(fit.rows_targets)
        after = error(matrix)
        if best is None or after < best.error_after or math.isnan(best.error_after):
            best = Fit(matrix, solver, before, after)
        return after

    _descend(look)
    assert best is not None
    return best


def _descend(error: Callable[[float], float]) -> None:
    """Look at ridges, downhill from the middle to the bottom of the valley.

    Errors fall with the ridge, then rise; each look costs a factorisation.
    """
    found: dict[int, float] = {}

    def look(index: int) -> float:
        if index not in found:
            found[index] = error(RIDGES[index])
        return found[index]

    here, last = len(RIDGES) // 2, -1
    while here != last:
        around = [index for index in (here - 1, here, here + 1) if 0 <= index < len(RIDGES)]
        here, last = min(around, key=look), here
