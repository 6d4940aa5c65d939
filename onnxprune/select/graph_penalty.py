"""The sparse graph-guided penalty (sGLP; Kim & Xing 2009): fusion along the class graph plus l1.

    P(B) = sum_k sum_{(c,c') in E} |r_cc'| * | B[k,c] - sign(r_cc') B[k,c'] | + mu * |B|_1

Its proximal operator has no closed form. Soft-thresholding is odd and monotone, so it commutes with
the fusion term (Friedman et al. 2007): the prox is the fusion's prox, then a soft-threshold. The
fusion's prox is solved in its dual, a box-constrained least squares with one variable u_e for each
edge and row,

    min_{|u_e| <= t w_e} 1/2 | v - H'u |^2,      x = v - H'u,      (H x)_e = x_c - sign_e x_c',

by block coordinate descent: the edges of a matching share no class, so all of them, in all rows,
are minimised exactly at once. The duality gap bounds the error, and a row is known to be zero as
soon as one feasible u shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from onnxprune.errors import UsageError
from onnxprune.select.classes import ClassGraph
from onnxprune.select.matchings import matchings
from onnxprune.select.penalties import ProxMemory, check_weight, shrink
from onnxprune.select.problem import norm

_RELAXATION = 1.3
_SWEEPS_PER_CHECK = 2
_MAX_SWEEPS = 20_000
_LEVEL_GAP = 1e-6
_SCREEN_SWEEPS = 40
_DISTANCE_SWEEPS = 2_000
_DISTANCE_CHANGE = 1e-4


@dataclass(frozen=True)
class _Matching:
    """Edges ``start:stop`` that share no class: their first, then second ends (2 m,), signs (m, 1)."""

    start: int
    stop: int
    ends: Tensor
    signs: Tensor

    @property
    def size(self) -> int:
        """Number of edges."""
        return self.stop - self.start


@dataclass(frozen=True)
class _Fusion:
    """The graph's edges ordered by matching; weights and signs (E, 1), l1 weights (C, 1)."""

    matchings: tuple[_Matching, ...]
    first: Tensor
    second: Tensor
    signs: Tensor
    weights: Tensor
    linear: Tensor


@dataclass(frozen=True)
class GraphPenalty:
    """sGLP over a ClassGraph; ``mu`` > 0 is what lets a whole row vanish.

    On B >= 0 an edge of negative sign costs |r| (B[k,c] + B[k,c']), which is linear there and joins
    the l1 term.
    """

    graph: ClassGraph
    mu: float = 1.0
    nonnegative: bool = False

    def __post_init__(self) -> None:
        check_weight("mu", self.mu)
        if self.mu == 0:
            raise UsageError(
                "the graph penalty has no l1 part, so no unit would ever go", hint="give it mu > 0"
            )

    def critical_level(self, pull: Tensor) -> float:
        """The largest dual gauge of a row, from above and within a relative 1e-6.

        Every B bounds the gauge from below by <pull, B> / P(B), every u bounds a row's from above by
        max(|u_e| / w_e, |pull - H'u|_c / mu); rows whose upper bound is met drop out.
        """
        fusion = self._fusion(pull)
        entries = pull.t().contiguous()
        rows = torch.arange(entries.shape[1], device=entries.device)
        dual = entries.new_zeros((len(fusion.first), len(rows)))
        start = shrink(entries, 0.0, self.nonnegative).t()
        low = high = _best_ratio(pull, start, self.row_values(start))
        level = low * (1 + 0.5 * _LEVEL_GAP)
        values = self._start(fusion, entries, dual, level).clone()
        best = torch.full_like(entries[:1], torch.inf)
        for _ in range(_MAX_SWEEPS // _SWEEPS_PER_CHECK):
            if not len(rows) or low == 0.0:
                break
            bound = level * fusion.weights
            _sweep(fusion, values, dual, -bound, bound, _SWEEPS_PER_CHECK)
            found = self._threshold(fusion, values, level).t()
            low = max(low, _best_ratio(entries.t(), found, self.row_values(found)))
            best = torch.minimum(best, self._gauge_bound(fusion, values, dual, level))
            met = best[0] <= low * (1 + _LEVEL_GAP)
            if bool(met.any()):
                high = max(high, float(best[0][met].max()))
                rows, entries, values, dual, best = _take(~met, rows, entries, values, dual, best)
            risen = low * (1 + 0.5 * _LEVEL_GAP)
            if self.nonnegative:
                values = values - (risen - level) * fusion.linear
            level = risen
        return max(high, float(best.max())) if len(rows) and low > 0 else high

    def _gauge_bound(self, fusion: _Fusion, values: Tensor, dual: Tensor, level: float) -> Tensor:
        """max(|u_e| / w_e, |pull - H'u|_c / mu) for each row, (1, rows)."""
        left = values / fusion.linear + level if self.nonnegative else values.abs() / fusion.linear
        bound = left.amax(dim=0, keepdim=True).clamp_min(0.0)
        if len(fusion.first):
            bound = torch.maximum(bound, (dual.abs() / fusion.weights).amax(dim=0, keepdim=True))
        return bound

    def row_values(self, coefficients: Tensor) -> Tensor:
        """P of each row."""
        fusion = self._fusion(coefficients)
        entries = coefficients.t()
        tied = (_differences(fusion, entries).abs() * fusion.weights).sum(dim=0)
        return tied + (entries.abs() * fusion.linear).sum(dim=0)

    def prox(self, point: Tensor, step: float, memory: ProxMemory | None = None) -> Tensor:
        """The minimiser up to ``memory.precision`` in the Frobenius norm, or to rounding without it."""
        memory = memory or ProxMemory()
        fusion = self._fusion(point)
        entries = point.t().contiguous()
        edges, rows = len(fusion.first), entries.shape[1]
        bound = step * fusion.weights
        if memory.dual is None or memory.dual.shape != (edges, rows):
            memory.dual = entries.new_zeros((edges, rows))
        dual = memory.dual * bound
        floor = (64 * torch.finfo(point.dtype).eps * float(norm(point))) ** 2
        allowed = max(0.5 * memory.precision**2, floor) / max(rows, 1)
        result = self._solve(fusion, entries, dual, bound, step, allowed)
        memory.dual = dual.div_(bound)
        return result.t()

    def may_enter(self, pull: Tensor, level: float) -> Tensor:
        """Rows that a bounded number of sweeps can't show to be zero."""
        fusion = self._fusion(pull)
        entries = pull.t()
        may = (shrink(entries, level * fusion.linear, self.nonnegative) != 0).any(dim=0)
        bound = level * fusion.weights
        rows = may.nonzero()[:, 0]
        entries = entries.index_select(1, rows)
        dual = entries.new_zeros((len(fusion.first), len(rows)))
        values = self._start(fusion, entries, dual, level)
        for check in range(_SCREEN_SWEEPS // _SWEEPS_PER_CHECK):
            if not len(rows):
                break
            _sweep(fusion, values, dual, -bound, bound, _SWEEPS_PER_CHECK)
            found = self._threshold(fusion, values, level)
            settled = (found == 0).all(dim=0)
            may[rows[settled]] = False
            if bool(settled.any()):
                rows, found, entries, values, dual = _take(~settled, rows, found, entries, values, dual)
            if check == 0:
                # A ratio over the level proves that the row is not zero: no need to look further.
                known = (entries * found).sum(dim=0) > level * self.row_values(found.t())
                rows, entries, values, dual = _take(~known, rows, entries, values, dual)
        return may

    def distances(
        self, coefficients: Tensor, gradient: Tensor, level: float, memory: ProxMemory | None = None
    ) -> Tensor:
        """Distance for each row, from above: that of the best subgradient found.

        Edges whose ends differ have one dual value, the others are free in their box; the closest
        subgradient is the prox of the directional derivative, by the same descent.
        """
        fusion = self._fusion(coefficients)
        entries, slope = coefficients.t(), gradient.t()
        bound = level * fusion.weights
        apart = _differences(fusion, entries)
        lower = torch.where(apart > 0, bound, -bound)
        upper = torch.where(apart < 0, -bound, bound)
        dual = torch.zeros_like(apart)
        if memory is not None and memory.dual is not None and memory.dual.shape == dual.shape:
            dual = memory.dual * bound
        dual = torch.minimum(torch.maximum(dual, lower), upper).contiguous()
        # On B >= 0 the l1 term is linear; else its slope is known where an entry is not zero.
        signs = torch.ones_like(entries) if self.nonnegative else entries.sign()
        pull = -slope - level * fusion.linear * signs
        values = _residual(fusion, pull, dual)
        zero = entries == 0

        def norms() -> Tensor:
            left = torch.where(zero, self._threshold(fusion, values, level), values)
            return norm(left, dim=0)

        best = norms()
        floor = 16 * torch.finfo(values.dtype).eps * float(norm(slope))
        sweeps = _SWEEPS_PER_CHECK
        done = 0
        while done < _DISTANCE_SWEEPS:
            _sweep(fusion, values, dual, lower, upper, sweeps)
            done += sweeps
            sweeps *= 2
            found = torch.minimum(norms(), best)
            total = float(norm(found))
            stalled = float(norm(best - found)) <= _DISTANCE_CHANGE * total or total <= floor
            best = found
            if stalled:
                break
        return best

    def tidy(self, coefficients: Tensor, slack: float) -> Tensor:
        """Entries tied by edges whose magnitudes differ by at most ``slack`` get one magnitude."""
        fusion = self._fusion(coefficients)
        entries = coefficients.t()
        tied = _differences(fusion, entries).abs() <= slack
        tied &= (entries.index_select(0, fusion.first) != 0) & (entries.index_select(0, fusion.second) != 0)
        if not bool(tied.any()):
            return coefficients
        classes = entries.shape[0]
        labels = torch.arange(classes, device=entries.device)[:, None].expand_as(entries).contiguous()
        while True:
            before = labels.clone()
            for m in fusion.matchings:
                here = tied[m.start : m.stop]
                ends = labels.index_select(0, m.ends)
                lowest = torch.minimum(ends[: len(here)], ends[len(here) :]).repeat(2, 1)
                labels.index_copy_(0, m.ends, torch.where(here.repeat(2, 1), lowest, ends))
            if torch.equal(before, labels):
                break
        return (entries.abs().gather(0, labels) * entries.sign()).t()

    def _solve(
        self, fusion: _Fusion, entries: Tensor, dual: Tensor, bound: Tensor, step: float, allowed: float
    ) -> Tensor:
        """Sweep until each row's duality gap is allowed; ``dual`` is updated in place."""
        values = self._start(fusion, entries, dual, step)
        result = self._threshold(fusion, values, step)
        if not fusion.matchings:
            return result
        rows = torch.arange(entries.shape[1], device=entries.device)
        active = dual
        # Ends that differ by rounding are tied: their gap would otherwise never close.
        rounding = 32 * torch.finfo(entries.dtype).eps * float(entries.abs().max()) if rows.numel() else 0.0
        sweeps = 0
        while sweeps < _MAX_SWEEPS:
            _sweep(fusion, values, active, -bound, bound, _SWEEPS_PER_CHECK)
            sweeps += _SWEEPS_PER_CHECK
            found = self._threshold(fusion, values, step)
            apart = torch.nn.functional.hardshrink(_differences(fusion, found), rounding)
            gaps = torch.copysign(bound, apart).sub_(active).mul_(apart).sum(dim=0)
            open_rows = gaps > allowed
            if active is not dual:
                dual.index_copy_(1, rows, active)
            result = found if len(rows) == result.shape[1] else result.index_copy_(1, rows, found)
            left = int(open_rows.sum())
            if left == 0:
                break
            if left < 0.7 * len(rows):
                rows, active, values = _take(open_rows, rows, active, values)
        return result

    def _start(self, fusion: _Fusion, entries: Tensor, dual: Tensor, step: float) -> Tensor:
        point = entries - step * fusion.linear if self.nonnegative else entries
        return _residual(fusion, point, dual)

    def _threshold(self, fusion: _Fusion, values: Tensor, step: float) -> Tensor:
        if self.nonnegative:
            return values.clamp_min(0.0)
        return shrink(values, step * fusion.linear, False)

    def _fusion(self, like: Tensor) -> _Fusion:
        key = (like.device, like.dtype)
        if key not in self._fusions:
            self._fusions[key] = _build_fusion(self.graph, self.mu, self.nonnegative, like)
        return self._fusions[key]

    @cached_property
    def _fusions(self) -> dict[tuple[torch.device, torch.dtype], _Fusion]:
        return {}


def _best_ratio(pull: Tensor, point: Tensor, values: Tensor) -> float:
    """The largest <pull, B> / P(B) over the rows (p, C) where P is not zero."""
    ratios = (pull * point).sum(dim=1) / values
    return float(torch.where(values > 0, ratios, 0.0).max()) if len(ratios) else 0.0


def _differences(fusion: _Fusion, entries: Tensor) -> Tensor:
    second = entries.index_select(0, fusion.second)
    return entries.index_select(0, fusion.first).addcmul_(fusion.signs, second, value=-1.0)


def _residual(fusion: _Fusion, point: Tensor, dual: Tensor) -> Tensor:
    """point - H'u, (C, rows), in memory of its own."""
    values = point.clone()
    for m in fusion.matchings:
        part = dual[m.start : m.stop]
        pair = values.index_select(0, m.ends)
        pair[: m.size].sub_(part)
        pair[m.size :].addcmul_(m.signs, part)
        values.index_copy_(0, m.ends, pair)
    return values


def _sweep(fusion: _Fusion, values: Tensor, dual: Tensor, lower: Tensor, upper: Tensor, times: int) -> None:
    """Relaxed exact minimisations over every matching in turn; updates ``values`` and ``dual`` in place."""
    parts = [
        (m, dual[m.start : m.stop], lower[m.start : m.stop], upper[m.start : m.stop])
        for m in fusion.matchings
    ]
    widest = max((m.size for m in fusion.matchings), default=0)
    pairs, steps = values.new_empty(2 * widest, values.shape[1]), values.new_empty(widest, values.shape[1])
    for _ in range(times):
        for m, old, low, high in parts:
            pair, moved = pairs[: 2 * m.size], steps[: m.size]
            torch.index_select(values, 0, m.ends, out=pair)
            one, two = pair[: m.size], pair[m.size :]
            torch.addcmul(one, m.signs, two, value=-1.0, out=moved)
            torch.add(old, moved, alpha=0.5 * _RELAXATION, out=moved)
            torch.clamp(moved, low, high, out=moved)
            old.sub_(moved)
            one.add_(old)
            two.addcmul_(m.signs, old, value=-1.0)
            old.copy_(moved)
            values.index_copy_(0, m.ends, pair)


def _take(keep: Tensor, rows: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    index = keep.nonzero()[:, 0]
    return (rows[index], *(column.index_select(1, index) for column in columns))


def _build_fusion(graph: ClassGraph, mu: float, nonnegative: bool, like: Tensor) -> _Fusion:
    linear = np.full(graph.classes, mu)
    fused = graph.weights > 0
    if nonnegative:
        for (first, second), weight, sign in zip(graph.edges, graph.weights, graph.signs, strict=True):
            if sign < 0:
                linear[[first, second]] += weight
        fused = fused & (graph.signs > 0)
    groups = matchings(graph, np.flatnonzero(fused))
    order = np.concatenate([np.asarray(group, np.int64) for group in groups] or [np.empty(0, np.int64)])

    def place(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=like.dtype, device=like.device)[:, None]

    first = torch.as_tensor(graph.edges[order, 0], device=like.device)
    second = torch.as_tensor(graph.edges[order, 1], device=like.device)
    signs = place(graph.signs[order])
    placed, start = [], 0
    for group in groups:
        stop = start + len(group)
        ends = torch.cat([first[start:stop], second[start:stop]])
        placed.append(_Matching(start, stop, ends, signs[start:stop]))
        start = stop
    weights = place(graph.weights[order])
    return _Fusion(tuple(placed), first, second, signs, weights, place(linear))
