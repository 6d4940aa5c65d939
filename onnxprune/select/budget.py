"""Budgets: upper bounds on the result, as the user states them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

from onnxprune.errors import UsageError

BudgetKind = Literal["macs", "params", "size", "latency"]
BUDGET_KINDS: tuple[BudgetKind, ...] = get_args(BudgetKind)

_COUNT_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_UNITS: dict[BudgetKind, dict[str, float]] = {
    "macs": _COUNT_UNITS,
    "params": _COUNT_UNITS,
    "size": {
        **_COUNT_UNITS,
        "b": 1.0,
        "kb": 1e3,
        "mb": 1e6,
        "gb": 1e9,
        "kib": 2.0**10,
        "mib": 2.0**20,
        "gib": 2.0**30,
    },
    "latency": {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3},
}
_EXAMPLES: dict[BudgetKind, str] = {
    "macs": "50%, 0.5, 12M or 1.5G",
    "params": "40%, 0.4, 300K or 12M",
    "size": "60%, 0.6, 500KB, 5MB or 4MiB",
    "latency": "70%, 0.7, 800us or 4ms",
}
_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([%a-zA-Zµ]*)\s*")
_SUSPICIOUSLY_FEW = 100
"""A bare count up to here is a percentage without its sign, not a number of MACs or bytes."""


@dataclass(frozen=True)
class Budget:
    """An upper bound on the result: a share of the original's figure, or an absolute one.

    ``relative`` is in (0, 1]; ``absolute`` counts multiply-accumulates, parameters or bytes, or,
    for ``latency``, milliseconds. Exactly one of the two is set.
    """

    kind: BudgetKind
    relative: float | None = None
    absolute: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no budget can mean."""
        if (self.relative is None) == (self.absolute is None):
            raise UsageError(
                f"a {self.kind} budget is either relative or absolute",
                hint=f"give one of the two, or use parse_budget({self.kind!r}, '50%')",
            )
        if self.relative is not None and not 0.0 < self.relative <= 1.0:
            raise UsageError(
                f"a {self.kind} budget of {self.relative:.6g} times the original is not between 0 and 1",
                hint=_hint(self.kind),
            )
        if self.absolute is not None and not (self.absolute > 0.0 and math.isfinite(self.absolute)):
            raise UsageError(f"a {self.kind} budget must be above zero", hint=_hint(self.kind))

    def limit(self, before: float) -> float:
        """The bound in units of the kind, for an original whose figure is ``before``."""
        if self.relative is not None:
            return self.relative * before
        assert self.absolute is not None  # __post_init__
        return self.absolute

    def met(self, before: float, after: float) -> bool:
        """Whether ``after`` is within the bound."""
        return after <= self.limit(before)

    def __str__(self) -> str:
        """The budget as a user would write it, for example ``macs 50%``."""
        if self.relative is not None:
            return f"{self.kind} {100 * self.relative:.6g}%"
        unit = {"size": " bytes", "latency": " ms"}.get(self.kind, "")
        return f"{self.kind} {self.absolute:.10g}{unit}"


def parse_budget(kind: BudgetKind, text: str | float | Budget) -> Budget:
    """A budget from what a user writes: ``50%``, ``0.5``, ``12M``, ``1.5G``, ``5MB``, ``4ms``; or one itself.

    Bare numbers, numpy's among them, up to 1 are shares of the original. Counts take K, M, G (powers of
    ten), sizes also KB, MB, GB and KiB, MiB, GiB, latencies need us, ms or s. UsageError for all else.
    """
    if isinstance(text, Budget):
        if text.kind != kind:
            raise UsageError(f"--{kind} takes no budget of another kind, such as {text}", hint=_hint(kind))
        return text
    if isinstance(text, bool) or not isinstance(text, str | Real):
        raise UsageError(f"--{kind} takes a share or an amount, not {text!r}", hint=_hint(kind))
    text = str(text)
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise UsageError(f"--{kind} {text!r} is neither a share nor an amount", hint=_hint(kind))
    number, unit = float(match[1].replace("_", "")), match[2].lower()
    if not number > 0.0 or not math.isfinite(number):
        raise UsageError(f"--{kind} {text} must be above zero", hint=_hint(kind))
    if unit == "%":
        if number > 100.0:
            raise UsageError(f"--{kind} {text} is more than the original has", hint=_hint(kind))
        return Budget(kind, relative=number / 100.0)
    if not unit and number <= 1.0:
        return Budget(kind, relative=number)
    units = _UNITS[kind]
    if unit not in units:
        known = ", ".join(name for name in units if name)
        problem = (
            f"--{kind} {text} has no unit" if not unit else f"--{kind} {text}: unknown unit {match[2]!r}"
        )
        raise UsageError(problem, hint=f"units: %, {known}; for example {_EXAMPLES[kind]}")
    if not unit and number <= _SUSPICIOUSLY_FEW:
        raise UsageError(
            f"--{kind} {text} would be {number:g} in all",
            hint=f"did you mean {number:g}%? Amounts take a unit: {_EXAMPLES[kind]}",
        )
    return Budget(kind, absolute=number * units[unit])


def _hint(kind: BudgetKind) -> str:
    return f"write it like {_EXAMPLES[kind]}"
