"""Ridge regression from streamed sums, its strength chosen by held-out error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """Take rows (r, G, d) and targets (r, G, O); products are formed in single precision."""
        left, right = rows.transpose(0, 1), targets.transpose(0, 1)
        self.rows_rows += left.transpose(1, 2) @ left
        self.rows_targets += left.transpose(1, 2) @ right
        self.targets_targets += right.square().sum(1)
        self.count += len(rows)

    def plus(self, other: Sums) -> Sums:
        """The sums over both sets of rows."""
        return Sums(
            self.rows_rows + other.rows_rows,
            self.rows_targets + other.rows_targets,
            self.targets_targets + other.targets_targets,
            self.count + other.count,
        )

    def error(self, matrix: Tensor) -> Tensor:
        """Mean squared error of ``rows @ matrix`` for each output: (G, O)."""
        quadratic = (matrix * (self.rows_rows @ matrix)).sum(1)
        linear = (matrix * self.rows_targets).sum(1)
        return (quadratic - 2 * linear + self.targets_targets).clamp_min(0) / max(1, self.count)


@dataclass(frozen=True)
class Fit:
    """A fitted matrix (G, d, O), the ridge that was chosen, and held-out errors before and after."""

    matrix: Tensor
    ridge: float
    error_before: float
    error_after: float

    @property
    def helps(self) -> bool:
        """Whether the fit lowers the held-out error."""
        return self.error_after < self.error_before


def fit_matrix(
    fit: Sums,
    held_out: Sums,
    old: Tensor,
    *,
    constant: bool,
    weights: Tensor | None = None,
    rounded: Callable[[Tensor], Tensor] | None = None,
) -> Fit:
    """Least squares with a ridge towards ``old`` (G, d, O), chosen on ``held_out``, refitted on all rows.

    With ``constant`` the last row of the matrix multiplies a column of ones and is not shrunk.
    ``weights`` (G, O) say how much each output's squared error counts in the errors; 1 without.
    ``rounded`` gives what is left of a matrix when it is stored; errors are those of that.
    """

    def error(matrix: Tensor) -> float:
        each = held_out.error(matrix if rounded is None else rounded(matrix))
        return float((each if weights is None else each * weights).sum())

    after, ridge = min((error(_solve(fit, old, ridge, constant)), ridge) for ridge in RIDGES)
    return Fit(_solve(fit.plus(held_out), old, ridge, constant), ridge, error(old), after)


def _solve(sums: Sums, old: Tensor, ridge: float, constant: bool) -> Tensor:
    count = max(1, sums.count)
    left = sums.rows_rows / count
    size = left.shape[-1]
    penalised = size - 1 if constant else size
    diagonal = left.diagonal(dim1=1, dim2=2)
    # A floor keeps the matrix definite where inputs are dead (all zero behind a ReLU).
    strength = ridge * diagonal[:, :penalised].mean(1) + 1e-10 * diagonal.mean(1) + 1e-30
    shrink = torch.zeros_like(diagonal)
    shrink[:, :penalised] = strength[:, None]
    left = left + torch.diag_embed(shrink)
    right = sums.rows_targets / count + shrink[:, :, None] * old
    factor, failed = torch.linalg.cholesky_ex(left)
    if not failed.any():
        return torch.cholesky_solve(right, factor)
    if not (left.isfinite().all() and right.isfinite().all()):
        return old
    solution: Tensor = torch.linalg.lstsq(left, right).solution
    return solution
