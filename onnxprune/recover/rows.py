"""What a layer's regression sees: rows of its inputs, and what should become of them at its target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxprune.graph.joins import Clip
from onnxprune.recover.fit import Sums

_BLOCK_BYTES = 4 << 20
"""Bytes of targets that a CPU's caches may hold; temporary values of more cost as much as the products."""


@dataclass(frozen=True)
class Rows:
    """Some rows: ``inputs`` (G, r, d), the original's values at the target (G, r, O), and the shortcut.

    ``shortcut`` (G, r, O) is what the pruned model's join adds; None where there is no join. Group by
    group, so that products need no copies.
    """

    inputs: Tensor
    goal: Tensor
    shortcut: Tensor | None

    @property
    def count(self) -> int:
        """Their number r."""
        return self.inputs.shape[1]

    def select(self, chosen: Tensor) -> Rows:
        """The rows that a mask (r,) names."""
        shortcut = None if self.shortcut is None else self.shortcut[:, chosen]
        return Rows(self.inputs[:, chosen], self.goal[:, chosen], shortcut)

    def blocks(self) -> Iterator[Rows]:
        """The same rows in views of few; as they are on a GPU."""
        size = self.count
        if self.goal.device.type == "cpu":
            size = _BLOCK_BYTES // (self.goal.element_size() * self.goal.shape[0] * self.goal.shape[2])
        for start in range(0, self.count, max(1, size)):
            block = slice(start, start + size)
            shortcut = None if self.shortcut is None else self.shortcut[:, block]
            yield Rows(self.inputs[:, block], self.goal[:, block], shortcut)


@dataclass(frozen=True)
class Response:
    """How a layer's output becomes its target: ``scale`` * output + ``shift`` + shortcut, then a clip.

    ``scale`` and ``shift`` are (G, 1, O); ``dead`` (G, 1, O) masks channels whose scale is too small to
    divide by, which count nowhere.
    """

    scale: Tensor
    shift: Tensor
    dead: Tensor
    clip: Clip

    @property
    def importance(self) -> Tensor:
        """How much a squared error of each output counts at the target: (G, O)."""
        return torch.where(self.dead, 0.0, self.scale.square())[:, 0]

    def at_target(self, rows: Rows, matrix: Tensor) -> Tensor:
        """What the layer with ``matrix`` (G, d, O) gives at the target: (G, r, O)."""
        values = rows.inputs @ matrix.to(rows.inputs)
        values.mul_(self.scale).add_(self.shift)
        return values if rows.shortcut is None else values.add_(rows.shortcut)

    def wanted(self, rows: Rows, goal: Tensor) -> Tensor:
        """The layer's output (G, r, O) that would give ``goal`` at the target."""
        rest = goal - self.shift
        if rows.shortcut is not None:
            rest.sub_(rows.shortcut)
        return rest.div_(torch.where(self.dead, 1.0, self.scale))

    def nearest(self, rows: Rows, values: Tensor) -> Tensor:
        """The values at the target that nobody can tell from the original's, nearest to ``values``."""
        return nearest(rows.goal, values, self.clip)

    def error(self, parts: Sequence[Rows], matrix: Tensor) -> float:
        """Mean squared error behind the clip, summed over channels; 0 without rows."""
        total = torch.zeros((), dtype=torch.float64, device=self.scale.device)
        lower, upper, matrix = self.clip.lower, self.clip.upper, matrix.to(self.scale)
        for rows in _blocks(parts):
            missing = self.at_target(rows, matrix).clamp_(lower, upper).sub_(rows.goal.clamp(lower, upper))
            miss = missing.square_().sum(1, keepdim=True, dtype=torch.float64)
            total += torch.where(self.dead, 0.0, miss).sum()
        return float(total) / max(1, sum(rows.count for rows in parts))

    def sums(self, parts: Sequence[Rows], shape: tuple[int, int, int]) -> Sums:
        """Second moments of rows and of the outputs that would give the original's values exactly."""
        sums = Sums.zeros(*shape, self.scale.device)
        for rows in parts:
            sums.add(rows.inputs, self.wanted(rows, rows.goal))
        return sums

    def pulls(self, parts: Sequence[Rows], matrix: Tensor) -> Tensor:
        """Sums (G, d, O) of inputs times the outputs wanted next; see `nearest`, from ``matrix``'s values."""
        total = torch.zeros_like(matrix, dtype=torch.float64)
        matrix = matrix.to(self.scale)
        for rows in _blocks(parts):
            wanted = self.wanted(rows, self.nearest(rows, self.at_target(rows, matrix)))
            total += rows.inputs.transpose(1, 2) @ wanted
        return total


def _blocks(parts: Sequence[Rows]) -> Iterator[Rows]:
    for rows in parts:
        yield from rows.blocks()


def nearest(goal: Tensor, values: Tensor, clip: Clip) -> Tensor:
    """The values that look like ``goal`` behind the ``clip``, nearest to ``values``."""
    found = goal
    if clip.upper < math.inf:
        found = torch.where(goal >= clip.upper, values.clamp(min=clip.upper), found)
    if clip.lower > -math.inf:
        found = torch.where(goal <= clip.lower, values.clamp(max=clip.lower), found)
    return found
