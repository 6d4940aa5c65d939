"""The equation of an Einsum: which letter stands for each axis of its operands and its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Equation:
    """A letter for each axis of each operand, and of the result; axes of an ellipsis are digits."""

    operands: tuple[str, ...]
    result: str

    @property
    def summed(self) -> tuple[str, ...]:
        """The letters that are summed over, in the order in which they appear."""
        return tuple(dict.fromkeys(letter for letter in "".join(self.operands) if letter not in self.result))


def parse_equation(text: str, ranks: Sequence[int]) -> Equation | None:
    """The equation for operands of those ranks; None where it takes a diagonal, or is malformed."""
    left, arrow, result = text.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    dots = 0
    for term, rank in zip(terms, ranks, strict=True):
        if "..." in term:
            dots = max(dots, rank - len(term.replace("...", "")))
    if dots > 10:
        return None
    operands = []
    for term, rank in zip(terms, ranks, strict=True):
        own = rank - len(term.replace("...", ""))
        # An ellipsis of fewer axes is aligned with the longest at the right.
        operand = term.replace("...", "".join(str(axis) for axis in range(dots - own, dots)))
        if len(operand) != rank or len(set(operand)) != rank:
            return None
        operands.append(operand)
    letters = "".join(operands)
    every = "".join(str(axis) for axis in range(dots))
    if arrow:
        result = result.replace("...", every)
    else:
        once = (letter for letter in sorted(set(letters)) if letters.count(letter) == 1)
        result = every + "".join(letter for letter in once if not letter.isdigit())
    if len(set(result)) != len(result) or not set(result) <= set(letters):
        return None
    return Equation(tuple(operands), result)
