"""The plan: which units stay. A value that can be printed, saved as JSON, edited, and applied."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.graph.structure import BoolArray


@dataclass(frozen=True)
class Plan:
    """Which units of a PruningGraph stay: ``keep`` (unit_count,) over global unit ids."""

    keep: BoolArray
