"""From rankings to one plan: a global price per unit of cost decides how much every group loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from onnxprune.errors import BudgetError
from onnxprune.graph.plan import Plan, keep_all
from onnxprune.graph.structure import BoolArray, Group, IntArray, PruningGraph
from onnxprune.graph.weights import FloatArray
from onnxprune.profile.cost import CostModel

_GRAIN = 64
"""A group's count is decided in steps of at most this share of its units: 1 / 64."""


@dataclass(frozen=True)
class Ranking:
    """In which order the units of a group go, and what that costs.

    ``order`` (p,) are positions in ``group.units``, first to go first; ``loss`` (p + 1,) is the
    cumulative, non-decreasing loss when that many are gone, comparable between groups.
    """

    group: Group
    order: IntArray
    loss: FloatArray


@dataclass(frozen=True)
class Limits:
    """What a plan must respect in every group.

    Kept counts are multiples of ``round_to`` (or the whole group stays); at most ``max_group_ratio``
    of a group's units go, and at least one stays.
    """

    round_to: int = 1
    max_group_ratio: float = 1.0

    def counts(self, size: int) -> IntArray:
        """The numbers of removed units that are allowed for a group of ``size``, rising from 0."""
        most = min(size - 1, int(np.floor(self.max_group_ratio * size + 1e-9)))
        removed = np.arange(most + 1, dtype=np.int64)
        allowed: BoolArray = (removed == 0) | ((size - removed) % self.round_to == 0)
        return removed[allowed]


class Goal(Protocol):
    """A quantity that the plan must bring down to a limit."""

    @property
    def limit(self) -> float:
        """The largest value allowed."""

    def value(self, keep: BoolArray) -> float:
        """The quantity under a mask of kept units (unit_count,)."""

    def savings(self, keep: BoolArray) -> FloatArray:
        """What each unit's removal would save now: (unit_count,)."""

    def describe(self, value: float) -> str:
        """A value of the quantity as a user reads it."""


@dataclass(frozen=True)
class CostGoal:
    """MACs or parameters, or the bytes that parameters take: ``scale`` * count + ``offset``."""

    costs: CostModel
    kind: Literal["macs", "params", "size"]
    limit: float
    scale: float = 1.0
    offset: float = 0.0

    def value(self, keep: BoolArray) -> float:
        """The count under a mask."""
        count = self.costs.macs(keep) if self.kind == "macs" else self.costs.params(keep)
        return self.scale * count + self.offset

    def savings(self, keep: BoolArray) -> FloatArray:
        """The cost's derivative by each unit."""
        marginal = self.costs.marginal_macs(keep) if self.kind == "macs" else self.costs.marginal_params(keep)
        return self.scale * marginal

    def describe(self, value: float) -> str:
        """The value with its name and, where the whole is known, as a share."""
        whole = self.value(np.ones(self.costs.unit_count, dtype=bool))
        unit = {"macs": "MACs", "params": "parameters", "size": "bytes"}[self.kind]
        return f"{value:,.0f} {unit} ({100 * value / whole:.1f} % of the original)"


def allocate(graph: PruningGraph, rankings: Sequence[Ranking], goals: Sequence[Goal], limits: Limits) -> Plan:
    """Raise one price of loss per unit of cost until every goal is met.

    Each step takes, over all groups, the removal with the least loss for what it saves (the next edge
    of the lower convex hull of the group's loss curve); savings are those of the plan so far, relative
    to what each unmet goal still lacks. Raises BudgetError where the limits leave too little.
    """
    keep = keep_all(graph).keep.copy()
    curves = [_Curve(ranking, limits) for ranking in rankings]
    while unmet := [goal for goal in goals if goal.value(keep) > goal.limit]:
        savings = sum(
            (goal.savings(keep) / (goal.value(keep) - goal.limit) for goal in unmet), np.zeros(len(keep))
        )
        best = min(curves, key=lambda curve: curve.price(savings), default=None)
        if best is None or not np.isfinite(best.price(savings)):
            goal = unmet[0]
            raise BudgetError(
                f"the budget can't be met: at least {goal.describe(goal.value(keep))} stay",
                hint="raise the budget, or allow more with --max-group-ratio, --round-to, --keep and --only",
            )
        best.advance(keep, savings, unmet)
    _give_back(curves, keep, goals)
    return Plan(keep)


def _give_back(curves: Sequence[_Curve], keep: BoolArray, goals: Sequence[Goal]) -> None:
    """Undo last steps that the goals turn out not to need, those with the most loss first."""
    open_curves = list(curves)
    while open_curves:
        curve = max(open_curves, key=lambda entry: entry.last_loss())
        if not curve.retreat(keep, goals):
            open_curves.remove(curve)


def allocate_evenly(
    graph: PruningGraph, rankings: Sequence[Ranking], goals: Sequence[Goal], limits: Limits
) -> Plan:
    """Remove the same share of every group, the smallest that meets every goal (by bisection)."""

    def plan(share: float) -> BoolArray:
        keep = keep_all(graph).keep.copy()
        for ranking in rankings:
            allowed = limits.counts(len(ranking.order))
            count = allowed[
                np.searchsorted(allowed, share * len(ranking.order) - 1e-9).clip(0, len(allowed) - 1)
            ]
            keep[ranking.group.units[ranking.order[:count]]] = False
        return keep

    def lacking(share: float) -> list[Goal]:
        keep = plan(share)
        return [goal for goal in goals if goal.value(keep) > goal.limit]

    low, high = 0.0, 1.0
    if missed := lacking(high):
        raise BudgetError(
            f"the budget can't be met: at least {missed[0].describe(missed[0].value(plan(high)))} stay",
            hint="raise the budget, or allow more with --max-group-ratio, --round-to, --keep and --only",
        )
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if lacking(middle) else (low, middle)
    return Plan(plan(high))


class _Curve:
    """One group's loss curve and how far it has been followed."""

    def __init__(self, ranking: Ranking, limits: Limits) -> None:
        self._units = ranking.group.units[ranking.order]
        self._loss = ranking.loss
        allowed = limits.counts(len(ranking.order))
        grain = max(1, len(ranking.order) // _GRAIN)
        self._counts = allowed[np.unique(np.append(np.arange(0, len(allowed), grain), len(allowed) - 1))]
        self._at = 0

    def price(self, savings: FloatArray) -> float:
        """Loss per saving of the next edge of the hull; infinity where nothing more may go."""
        return self._next(savings)[0]

    def advance(self, keep: BoolArray, savings: FloatArray, unmet: Sequence[Goal]) -> None:
        """Follow that edge in ``keep``, only as far as the goals need."""
        start, (_, end) = self._counts[self._at], self._next(savings)
        for position in range(self._at + 1, end + 1):
            keep[self._units[start : self._counts[position]]] = False
            self._at = position
            if all(goal.value(keep) <= goal.limit for goal in unmet):
                return

    def last_loss(self) -> float:
        """Loss of the last step taken; below any other where none was."""
        if self._at == 0:
            return -np.inf
        return float(self._loss[self._counts[self._at]] - self._loss[self._counts[self._at - 1]])

    def retreat(self, keep: BoolArray, goals: Sequence[Goal]) -> bool:
        """Undo the last step in ``keep`` where every goal stays met; whether it was undone."""
        if self._at == 0:
            return False
        undone = self._units[self._counts[self._at - 1] : self._counts[self._at]]
        keep[undone] = True
        if any(goal.value(keep) > goal.limit for goal in goals):
            keep[undone] = False
            return False
        self._at -= 1
        return True

    def _next(self, savings: FloatArray) -> tuple[float, int]:
        ahead = self._counts[self._at + 1 :]
        if not len(ahead):
            return np.inf, self._at
        start = self._counts[self._at]
        saved = np.cumsum(savings[self._units[start : ahead[-1]]])[ahead - start - 1]
        lost = self._loss[ahead] - self._loss[start]
        prices = np.divide(lost, saved, out=np.full(len(ahead), np.inf), where=saved > 0)
        best = int(prices.argmin())
        return float(prices[best]), self._at + 1 + best
