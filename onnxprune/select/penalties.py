"""What every penalty offers the solver, and the two that know no class structure.

A penalty P is a gauge on each row of B (p, C), summed over the rows; ``nonnegative`` adds the
constraint B >= 0. Structured penalties are in ``tree_penalty`` and ``graph_penalty``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from onnxprune.errors import UsageError
from onnxprune.select.problem import norm


@dataclass
class ProxMemory:
    """What an iterative proximal operator carries from call to call.

    ``dual`` is its last dual point, in units of the penalty's weight, (edges, p); ``precision`` is
    the error, in the Frobenius norm of B, that the next call may leave.
    """

    dual: Tensor | None = None
    precision: float = 0.0

    def take(self, units: Tensor) -> ProxMemory:
        """The memory of some of the rows (w,)."""
        return ProxMemory(None if self.dual is None else self.dual.index_select(1, units))

    def cast(self, dtype: torch.dtype) -> ProxMemory:
        """The memory in another precision."""
        return ProxMemory(None if self.dual is None else self.dual.to(dtype))

    def put(self, units: Tensor, memory: ProxMemory, rows: int) -> None:
        """Write back the memory of some of ``rows`` rows."""
        if memory.dual is not None:
            if self.dual is None:
                self.dual = memory.dual.new_zeros((len(memory.dual), rows))
            self.dual = self.dual.index_copy(1, units, memory.dual)


class Penalty(Protocol):
    """A row-separable gauge with its proximal operator and its optimality test."""

    @property
    def nonnegative(self) -> bool:
        """Whether B >= 0 is part of the penalty."""

    def critical_level(self, pull: Tensor) -> float:
        """The smallest level at which prox(pull, level) is exactly zero: lambda_max for pull = R."""

    def row_values(self, coefficients: Tensor) -> Tensor:
        """P of each row, (p,)."""

    def prox(self, point: Tensor, step: float, memory: ProxMemory | None = None) -> Tensor:
        """The minimiser of 1/2 |B - point|^2 + step * P(B), (p, C)."""

    def may_enter(self, pull: Tensor, level: float) -> Tensor:
        """Rows (p,) whose prox at ``level`` is not known to be zero; false only where it surely is."""

    def distances(
        self, coefficients: Tensor, gradient: Tensor, level: float, memory: ProxMemory | None = None
    ) -> Tensor:
        """Distance of -gradient to the subdifferential of level * P at B, for each row (p,)."""

    def tidy(self, coefficients: Tensor, slack: float) -> Tensor:
        """B with entries equal up to ``slack`` made equal, where the penalty ties entries."""


def shrink(point: Tensor, threshold: float | Tensor, nonnegative: bool) -> Tensor:
    """Soft-threshold, one-sided when ``nonnegative``; exact zeros."""
    if nonnegative:
        return (point - threshold).clamp_min(0.0)
    if isinstance(threshold, float):
        return torch.nn.functional.softshrink(point, threshold)
    return point - torch.minimum(torch.maximum(point, -threshold), threshold)


def level_by_prox(penalty: Penalty, pull: Tensor) -> float:
    """The critical level of a penalty whose prox is exact.

    Dinkelbach's iteration on the dual gauge max_B <pull, B> / P(B): each prox that is not zero
    yields a ratio above the current level; rows whose prox vanishes can't hold the maximum.
    """
    rows = pull.clamp_min(0.0) if penalty.nonnegative else pull
    pull = pull.t()[:, rows.abs().amax(dim=1) > 0].t() if pull.shape[1] else pull[:0]
    if not len(pull):
        return 0.0
    rounding = 4 * torch.finfo(pull.dtype).eps
    point = pull.clamp_min(0.0) if penalty.nonnegative else pull
    level = 0.0
    while True:
        ratio = float(((pull * point).sum(dim=1) / penalty.row_values(point)).max())
        if not math.isfinite(ratio):
            return math.inf
        if ratio <= level * (1 + rounding):
            rounding *= 2
        level = max(ratio, level * (1 + rounding))
        point = penalty.prox(pull, level)
        alive = (point != 0).any(dim=1)
        if not bool(alive.any()):
            return level
        pull, point = pull.t()[:, alive].t(), point.t()[:, alive].t()


def check_weight(name: str, value: float) -> None:
    """Raise UsageError unless the weight is finite and not negative."""
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"penalty weight {name} = {value}", hint="weights are finite and not negative")


@dataclass(frozen=True)
class L1:
    """Plain lasso: P(B) = weight * |B|_1."""

    weight: float = 1.0
    nonnegative: bool = False

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)

    def critical_level(self, pull: Tensor) -> float:
        """The largest dual gauge of a row, exact up to rounding."""
        return level_by_prox(self, pull)

    def row_values(self, coefficients: Tensor) -> Tensor:
        """The weighted l1 norm of each row."""
        return self.weight * coefficients.abs().sum(dim=1)

    def prox(self, point: Tensor, step: float, memory: ProxMemory | None = None) -> Tensor:
        """Soft-thresholding."""
        del memory
        return shrink(point, step * self.weight, self.nonnegative)

    def may_enter(self, pull: Tensor, level: float) -> Tensor:
        """Rows with an entry over the threshold; exact."""
        largest = pull.amax(dim=1) if self.nonnegative else pull.abs().amax(dim=1)
        return largest > level * self.weight

    def distances(
        self, coefficients: Tensor, gradient: Tensor, level: float, memory: ProxMemory | None = None
    ) -> Tensor:
        """Exact distance for each row."""
        del memory
        residual = entry_residual(coefficients, gradient, level * self.weight, self.nonnegative)
        return norm(residual, dim=1)

    def tidy(self, coefficients: Tensor, slack: float) -> Tensor:
        """Nothing to tie."""
        del slack
        return coefficients


def entry_residual(
    coefficients: Tensor, gradient: Tensor, threshold: float | Tensor, nonnegative: bool
) -> Tensor:
    """The smallest element of gradient + the subdifferential of threshold * |.|_1 at B, entry by entry."""
    return torch.where(
        coefficients != 0,
        gradient + threshold * coefficients.sign(),
        -shrink(-gradient, threshold, nonnegative),
    )


@dataclass(frozen=True)
class RowGroup:
    """Plain group lasso over rows: P(B) = sum_k weight * |B[k, :]|_2 + mu * |B[k, :]|_1."""

    weight: float = 1.0
    mu: float = 0.0
    nonnegative: bool = False

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)
        check_weight("mu", self.mu)

    def critical_level(self, pull: Tensor) -> float:
        """The largest dual gauge of a row, exact up to rounding."""
        return level_by_prox(self, pull)

    def row_values(self, coefficients: Tensor) -> Tensor:
        """Weighted l2 plus l1 norm of each row."""
        return self.weight * norm(coefficients, dim=1) + self.mu * coefficients.abs().sum(dim=1)

    def prox(self, point: Tensor, step: float, memory: ProxMemory | None = None) -> Tensor:
        """Soft-threshold the entries, then the rows."""
        del memory
        inner = shrink(point, step * self.mu, self.nonnegative)
        norms = norm(inner, dim=1, keepdim=True)
        tiny = torch.finfo(norms.dtype).tiny
        return inner * ((norms - step * self.weight).clamp_min(0.0) / norms.clamp_min(tiny))

    def may_enter(self, pull: Tensor, level: float) -> Tensor:
        """Rows whose norm, after the entries' threshold, is over the row's threshold; exact."""
        inner = shrink(pull, level * self.mu, self.nonnegative)
        return norm(inner, dim=1) > level * self.weight

    def distances(
        self, coefficients: Tensor, gradient: Tensor, level: float, memory: ProxMemory | None = None
    ) -> Tensor:
        """Exact distance for each row."""
        del memory
        norms = norm(coefficients, dim=1, keepdim=True)
        smooth = gradient + level * self.weight * coefficients / norms.clamp_min(
            torch.finfo(norms.dtype).tiny
        )
        residual = entry_residual(coefficients, smooth, level * self.mu, self.nonnegative)
        inside = norm(residual, dim=1)
        outside = norm(self.prox(-gradient, level), dim=1)
        return torch.where(norms[:, 0] > 0, inside, outside)

    def tidy(self, coefficients: Tensor, slack: float) -> Tensor:
        """Nothing to tie."""
        del slack
        return coefficients
