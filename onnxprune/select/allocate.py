"""From rankings to one plan: a global price per unit of cost decides how much every group loses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    of a group's units go, and at least one stays. With ``whole_branches`` residual branches may go as
    a whole nevertheless.
    """

    round_to: int = 1
    max_group_ratio: float = 1.0
    whole_branches: bool = False

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

    Each step takes the removal with the least loss for what it saves, over all groups (the next edge
    of the lower convex hull of the group's loss curve) and all residual branches that can go as a
    whole; savings are those of the plan so far, relative to what each unmet goal still lacks. Raises
    BudgetError where the limits leave too little.
    """
    keep = keep_all(graph).keep.copy()
    curves = [_Curve(ranking, limits) for ranking in rankings]
    steps: list[_Step] = [*curves, *(_wholes(graph, curves) if limits.whole_branches else ())]
    while unmet := [goal for goal in goals if goal.value(keep) > goal.limit]:
        state = _State(keep, unmet)
        prices = [step.price(state) for step in steps]
        best = int(np.argmin(prices)) if prices else -1
        if best < 0 or not np.isfinite(prices[best]):
            goal = unmet[0]
            raise BudgetError(
                f"the budget can't be met: at least {goal.describe(goal.value(keep))} stay",
                hint="raise the budget, or allow more with --max-group-ratio, --round-to, --keep and --only",
            )
        steps[best].advance(state)
    _give_back(steps, keep, goals)
    return Plan(keep)


def _give_back(steps: Sequence[_Step], keep: BoolArray, goals: Sequence[Goal]) -> None:
    """Undo last steps that the goals turn out not to need, those with the most loss first."""
    left = list(steps)
    while left:
        step = max(left, key=lambda entry: entry.last_loss())
        if not step.retreat(keep, goals):
            left.remove(step)


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


class _State:
    """The plan so far, ``keep`` (unit_count,), and what it lacks."""

    def __init__(self, keep: BoolArray, unmet: Sequence[Goal]) -> None:
        self.keep = keep
        self._unmet = [(goal, value, value - goal.limit) for goal in unmet for value in [goal.value(keep)]]
        self.savings: FloatArray = sum(
            (goal.savings(keep) / lacks for goal, _, lacks in self._unmet), np.zeros(len(keep))
        )
        """What each unit's removal saves, relative to what is lacking."""

    def saved(self, units: IntArray) -> float:
        """What the removal of all ``units`` together saves, relative to what is lacking."""
        keep = self.keep.copy()
        keep[units] = False
        return sum((value - goal.value(keep)) / lacks for goal, value, lacks in self._unmet)

    def met(self) -> bool:
        """Whether the plan, as it has become, lacks nothing any more."""
        return all(goal.value(self.keep) <= goal.limit for goal, _, _ in self._unmet)


class _Step(Protocol):
    """A removal that comes next somewhere."""

    def price(self, state: _State) -> float:
        """Loss for what it saves; infinity where there is none."""

    def advance(self, state: _State) -> None:
        """Take it in the plan."""

    def last_loss(self) -> float:
        """Loss of the last one taken; below any other where none was."""

    def retreat(self, keep: BoolArray, goals: Sequence[Goal]) -> bool:
        """Undo the last one in ``keep`` where every goal stays met; whether it was undone."""


class _Curve:
    """One group's loss curve and how far it has been followed.

    ``ended`` holds the branches around it that went as a whole, in that order; then it stands still.
    """

    def __init__(self, ranking: Ranking, limits: Limits) -> None:
        self.units = ranking.group.units[ranking.order]
        self.loss = ranking.loss
        self.ended: list[_Whole] = []
        allowed = limits.counts(len(ranking.order))
        grain = max(1, len(ranking.order) // _GRAIN)
        self._counts = allowed[np.unique(np.append(np.arange(0, len(allowed), grain), len(allowed) - 1))]
        self._at = 0

    @property
    def lost(self) -> float:
        """Loss of what is gone."""
        return float(self.loss[self._counts[self._at]])

    def price(self, state: _State) -> float:
        """Loss per saving of the next edge of the hull; infinity where nothing more may go."""
        return np.inf if self.ended else self._next(state.savings)[0]

    def advance(self, state: _State) -> None:
        """Follow that edge, only as far as the goals need."""
        start, (_, end) = self._counts[self._at], self._next(state.savings)
        for position in range(self._at + 1, end + 1):
            state.keep[self.units[start : self._counts[position]]] = False
            self._at = position
            if state.met():
                return

    def last_loss(self) -> float:
        """Loss of the last step taken; below any other where none was."""
        if self._at == 0 or self.ended:
            return -np.inf
        return float(self.loss[self._counts[self._at]] - self.loss[self._counts[self._at - 1]])

    def retreat(self, keep: BoolArray, goals: Sequence[Goal]) -> bool:
        """Undo the last step in ``keep`` where every goal stays met; whether it was undone."""
        if self._at == 0 or self.ended:
            return False
        undone = self.units[self._counts[self._at - 1] : self._counts[self._at]]
        if not _put_back(undone, keep, goals):
            return False
        self._at -= 1
        return True

    def _next(self, savings: FloatArray) -> tuple[float, int]:
        ahead = self._counts[self._at + 1 :]
        if not len(ahead):
            return np.inf, self._at
        start = self._counts[self._at]
        saved = np.cumsum(savings[self.units[start : ahead[-1]]])[ahead - start - 1]
        lost = self.loss[ahead] - self.loss[start]
        prices = np.divide(lost, saved, out=np.full(len(ahead), np.inf), where=saved > 0)
        best = int(prices.argmin())
        return float(prices[best]), self._at + 1 + best


class _Whole:
    """A residual branch that may go as a whole: one step that ends all curves inside.

    It costs what is left to lose for the curves ``read`` by its last layer, which are judged at the join.
    """

    def __init__(self, units: IntArray, inside: Sequence[_Curve], read: Sequence[_Curve]) -> None:
        self._units, self._inside, self._read = units, inside, read
        self._undone: IntArray | None = None

    def price(self, state: _State) -> float:
        """Loss for what it saves; infinity once it is gone."""
        if self._undone is not None:
            return np.inf
        saved = state.saved(self._units)
        return self._more() / saved if saved > 0 else np.inf

    def advance(self, state: _State) -> None:
        """Remove it."""
        self._undone = self._units[state.keep[self._units]]
        state.keep[self._units] = False
        for curve in self._inside:
            curve.ended.append(self)

    def last_loss(self) -> float:
        """Loss of its removal; below any other where it is there."""
        return -np.inf if self._undone is None else self._more()

    def retreat(self, keep: BoolArray, goals: Sequence[Goal]) -> bool:
        """Put back what there was of it where every goal stays met; whether it was put back."""
        around = any(curve.ended and curve.ended[-1] is not self for curve in self._inside)
        if self._undone is None or around or not _put_back(self._undone, keep, goals):
            return False
        self._undone = None
        for curve in self._inside:
            curve.ended.pop()
        return True

    def _more(self) -> float:
        return sum(float(curve.loss[-1]) - curve.lost for curve in self._read)


def _wholes(graph: PruningGraph, curves: Sequence[_Curve]) -> Iterator[_Whole]:
    """The branches all of whose units may go."""
    owner = np.full(graph.unit_count, -1, np.int64)
    for index, curve in enumerate(curves):
        owner[curve.units] = index
    for branch in graph.residual_branches:
        inside, reads = np.unique(owner[branch.units]), np.unique(owner[branch.entry])
        if inside[0] >= 0 and sum(len(curves[index].units) for index in inside) == len(branch.units):
            yield _Whole(branch.units, *([curves[index] for index in each] for each in (inside, reads)))


def _put_back(units: IntArray, keep: BoolArray, goals: Sequence[Goal]) -> bool:
    """Put ``units`` back into ``keep`` where every goal stays met; whether they were."""
    keep[units] = True
    if any(goal.value(keep) > goal.limit for goal in goals):
        keep[units] = False
        return False
    return True
