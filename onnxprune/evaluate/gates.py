"""Whether a result is good enough: pure functions that answer with a reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from onnxprune.errors import BudgetError, UsageError
from onnxprune.evaluate.metrics import Evaluation, Fidelity, Metrics

_ROUNDING: Final = 1e-9
"""Points that floating-point rounding of exact counts may cost."""


@dataclass(frozen=True)
class Gate:
    """Outcome of one check: ``value`` was measured, ``limit`` was allowed, ``reason`` says so in words."""

    name: str
    passed: bool
    value: float
    limit: float
    reason: str

    def require(self) -> None:
        """Raise BudgetError with the reason where the check did not pass."""
        if not self.passed:
            raise BudgetError(self.reason, hint="allow a larger drop, or a larger budget")


def max_drop_gate(before: Metrics, after: Metrics, points: float) -> Gate:
    """Top-1 may fall by at most ``points`` percentage points; both counted on the same samples.

    Raises UsageError where the limit is no number of points or the samples differ in number.
    """
    _check_points(points)
    if before.samples != after.samples:
        raise UsageError(
            f"accuracies on {before.samples} and {after.samples} samples can't be compared",
            hint="evaluate both models on the same data",
        )
    # On the counts themselves, not on the difference of two rounded percentages.
    drop = 100.0 * (before.correct_top1 - after.correct_top1) / before.samples
    moved = f"top-1 goes from {before.top1:.2f} to {after.top1:.2f}"
    return _gate("max-drop", drop, points, f"{moved}: {drop:.2f} points lost, {points:g} allowed")


def max_disagreement_gate(fidelity: Fidelity, points: float) -> Gate:
    """Where there are no labels: at most ``points`` percent of samples may change their top-1 class.

    That bounds the accuracy lost: each changed sample costs at most one correct answer.
    """
    _check_points(points)
    changed = 100.0 * (fidelity.samples - fidelity.agreeing) / fidelity.samples
    return _gate(
        "max-drop",
        changed,
        points,
        f"{changed:.2f} % of samples change their class, {points:g} points allowed (no labels)",
    )


def drop_gate(evaluation: Evaluation, points: float) -> Gate:
    """The main metric's gate: accuracy where there are labels, else agreement with the original.

    Raises UsageError where the evaluation holds neither.
    """
    if evaluation.metrics is not None and evaluation.reference_metrics is not None:
        return max_drop_gate(evaluation.reference_metrics, evaluation.metrics, points)
    if evaluation.fidelity is not None:
        return max_disagreement_gate(evaluation.fidelity, points)
    raise UsageError("a drop can't be measured without the original model", hint="evaluate against it")


def _gate(name: str, value: float, limit: float, reason: str) -> Gate:
    return Gate(name, value <= limit + _ROUNDING, value, limit, reason)


def _check_points(points: float) -> None:
    if not math.isfinite(points) or points < 0.0:
        raise UsageError(
            f"a drop of {points:g} points makes no sense", hint="such as 1.0 for one percentage point"
        )
