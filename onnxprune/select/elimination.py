"""Backward elimination of units with exact compensation: what removal costs when the rest is refitted.

The least-squares form of Optimal Brain Surgeon on blocks (Hassibi & Stork 1993; Frantar & Alistarh
2022). With H the inverse Gram matrix of a layer's input rows and W its weights, removing the rows of
unit k and refitting all others raises the squared error by tr(W_k' H_kk^-1 W_k), W and H then being
downdated by one block step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnxprune.graph.structure import IntArray
from onnxprune.graph.weights import FloatArray
from onnxprune.select.threads import one_thread

RIDGE = 1e-3
"""Ridge on the Gram matrix, as a share of its mean diagonal."""

OPTIMISM = 4.0
"""Losses on other data are those on the calibration rows times 1 + OPTIMISM * units / independent rows.

The units are those left to refit. The first order of Akaike's final prediction error is 2."""


_GONE = -2
"""Stands for a removed column's unit."""

_COMPACT = 0.75
"""Removed columns are left out of the matrices once the share of the others falls below this."""


_SINGLE_THREAD = 1024
"""Layers of up to so many columns are downdated on one thread."""


class Compensation:
    """One layer's state: which of its input columns are alive, and its refitted weights."""

    def __init__(
        self,
        gram: Tensor,
        matrix: Tensor,
        columns: IntArray,
        rows: int,
        weight: float,
        *,
        independent: float = np.inf,
    ) -> None:
        """Start with every column alive.

        ``gram`` (d + 1, d + 1) with the constant last, ``matrix`` (d + 1, O), ``columns`` (d,) the unit
        position of each column (-1: fixed); losses are mean squared errors times ``weight``.
        ``independent`` is how many independent rows the ``rows`` are worth. Weights refitted on few do
        worse on other data, the more so the more of them there are (Akaike 1969); see `OPTIMISM`.
        """
        moments = _shrink(gram.double() / rows, rows)
        size = len(moments) - 1
        diagonal = torch.arange(size)
        moments[diagonal, diagonal] += RIDGE * moments.diagonal()[:-1].mean() + 1e-12
        moments[-1, -1] += 1e-12
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
        self._matrix = matrix.double().clone()
        self._columns = torch.from_numpy(np.append(columns, -1)).to(gram.device)
        self._weight = weight
        self._optimism = OPTIMISM / independent

    def losses(self, units: IntArray) -> FloatArray:
        """What removing each of ``units`` (m,) alone would cost now: (m,)."""
        result = np.zeros(len(units))
        price = self._price()
        with one_thread():  # many small matrices
            for chosen, index in self._blocks(units):
                inverse = self._inverse[index[:, :, None], index[:, None, :]]
                weights = self._matrix[index]
                solved = torch.cholesky_solve(weights, torch.linalg.cholesky(inverse))
                result[chosen] = (price * (weights * solved).sum((1, 2))).cpu().numpy()
        return result

    def remove(self, units: IntArray) -> float:
        """Remove ``units`` together, refit what stays, and return what that costs."""
        with one_thread(when=len(self._columns) <= _SINGLE_THREAD):
            return self._remove(units)

    def _remove(self, units: IntArray) -> float:
        index = torch.isin(self._columns, torch.from_numpy(units).to(self._columns.device)).nonzero()[:, 0]
        if not len(index):
            return 0.0
        rows, weights = self._inverse[index], self._matrix[index]
        factor = torch.linalg.cholesky(rows[:, index])
        solved = torch.cholesky_solve(weights, factor)
        loss = float((weights * solved).sum()) * self._price()
        half = torch.linalg.solve_triangular(factor, rows, upper=False)
        self._matrix -= rows.T @ solved
        self._inverse.addmm_(half.T, half, alpha=-1.0)
        self._columns[index] = _GONE
        self._compact()
        return loss

    def _compact(self) -> None:
        """Leave out columns that are gone, once they are many: a copy costs more than a step."""
        alive = (self._columns != _GONE).nonzero()[:, 0]
        if len(alive) < _COMPACT * len(self._columns):
            self._inverse = self._inverse[alive][:, alive]
            self._matrix, self._columns = self._matrix[alive], self._columns[alive]

    def _price(self) -> float:
        """What a unit of squared error on the calibration rows counts, as refitted on other data."""
        # Units, not columns: the taps of one channel are nearly each other's copies.
        alive = len(torch.unique(self._columns[self._columns >= 0]))
        return self._weight * (1.0 + self._optimism * alive)

    def _blocks(self, units: IntArray) -> list[tuple[IntArray, Tensor]]:
        """Units of equal column count together: (positions in ``units``, their columns (m, b))."""
        order = torch.argsort(self._columns, stable=True)
        ordered = self._columns[order].cpu().numpy()
        first = np.searchsorted(ordered, units, side="left")
        counts = np.searchsorted(ordered, units, side="right") - first
        blocks = []
        for size in np.unique(counts[counts > 0]):
            chosen = np.flatnonzero(counts == size)
            index = torch.from_numpy(first[chosen, None] + np.arange(size)[None, :]).to(order.device)
            blocks.append((chosen, order[index]))
        return blocks


def _shrink(moments: Tensor, rows: int) -> Tensor:
    """Second moments (d + 1, d + 1), changed in place: covariances are shrunk towards none by d / (d + rows).

    With fewer rows than columns every column is a combination of the others on the samples, and its
    removal would look free (Ledoit & Wolf 2004 give the reason and the form).
    """
    size = len(moments) - 1
    mean, block = moments[-1, :-1], moments[:-1, :-1]
    squares = block.diagonal().clone()
    share = rows / (rows + size)
    block.mul_(share).addr_(mean, mean, alpha=1.0 - share)
    block.diagonal().copy_(squares)
    return moments


@dataclass(frozen=True)
class Elimination:
    """The order in which a group's units go, and what that costs.

    ``order`` (m,) are unit positions, first to go first; ``loss`` (m + 1,) is the cumulative loss when
    that many are gone, starting at 0.
    """

    order: IntArray
    loss: FloatArray


def eliminate(
    layers: Sequence[Compensation],
    units: IntArray,
    *,
    priority: FloatArray | None = None,
    shortlist: float = 1.0,
    batch: float = 1 / 32,
) -> Elimination:
    """Remove ``units`` (p,) one small batch after another, always what costs all ``layers`` least.

    With a ``priority`` (p,) (low goes first) only the ``shortlist`` share of the units with the lowest
    priority among those left competes in each step. ``batch`` is the share of the units left that
    goes in one step, at least one.
    """
    alive = np.arange(len(units))
    order: list[int] = []
    loss = [0.0]
    while len(alive):
        competing = alive
        if priority is not None:
            few = max(1, int(np.ceil(shortlist * len(alive))))
            competing = alive[np.argsort(priority[alive], kind="stable")[:few]]
        costs = sum((layer.losses(units[competing]) for layer in layers), np.zeros(len(competing)))
        count = min(len(competing), max(1, int(batch * len(alive))))
        chosen = competing[np.argsort(costs, kind="stable")[:count]]
        total = sum(layer.remove(units[chosen]) for layer in layers)
        step = np.sort(costs)[:count]
        share = step / step.sum() if step.sum() > 0 else np.full(count, 1 / count)
        order.extend(chosen.tolist())
        loss.extend((loss[-1] + total * np.cumsum(share)).tolist())
        alive = np.setdiff1d(alive, chosen)
    return Elimination(np.array(order, dtype=np.int64), np.array(loss))
