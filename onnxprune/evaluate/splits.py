"""What ``--split`` says: a named part of the data, a range of its rows, or both."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.graph.structure import IntArray

_BOUND = r"(?:-?\d+%?)?"
_SPLIT = re.compile(
    rf"(?P<name>[^\[\]:]*?)(?:\[(?P<inside>{_BOUND}:{_BOUND})\]|(?P<bare>{_BOUND}:{_BOUND}))?"
)


@dataclass(frozen=True)
class Split:
    """``name`` of a part or None, and the rows ``start:stop`` of it, as in a Python slice.

    Bounds are text: a row number, negative from the end, with ``%`` a share of the rows; empty for none.
    """

    name: str | None = None
    start: str = ""
    stop: str = ""

    @classmethod
    def parse(cls, text: str, option: str = "--split") -> Split:
        """From ``train``, ``0:300``, ``-700:``, ``80%:`` or ``train[:1000]``; else UsageError."""
        match = _SPLIT.fullmatch(text.strip())
        rows = (match["inside"] or match["bare"]) if match else None
        if match is None or not text.strip() or (match["bare"] is not None and match["name"]):
            raise UsageError(
                f"{option} '{text}' can't be read", hint="such as train, 0:300, 300: or train[:1000]"
            )
        start, stop = rows.split(":") if rows is not None else ("", "")
        return cls(match["name"].strip() or None, start, stop)

    def rows(self, count: int, option: str = "--split") -> IntArray | None:
        """The row numbers chosen out of ``count``, or None for all; DataError where none is left."""
        if not self.start and not self.stop:
            return None
        start, stop, _ = slice(_bound(self.start, count), _bound(self.stop, count)).indices(count)
        if stop <= start:
            raise DataError(
                f"{option} {self.start}:{self.stop} chooses none of the {count} rows",
                hint="rows count from 0",
            )
        return np.arange(start, stop, dtype=np.int64)


def _bound(text: str, count: int) -> int | None:
    if not text:
        return None
    return count * int(text[:-1]) // 100 if text.endswith("%") else int(text)
