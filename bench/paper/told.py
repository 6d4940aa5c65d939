"""How long work goes, told line by line: for logs that somebody reads hours later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onnxprune.progress import Stage

PARTS, APART = 20, 20.0
"""Lines for each stage, at most, and seconds between them, at least; the last one is always told."""


class ToldProgress:
    """A progress observer that hands lines to ``log``: the share done, the last note, the time left."""

    def __init__(self, log: Callable[[str], None]) -> None:
        """Tell ``log``."""
        self._log = log

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Open a stage of ``total`` steps."""
        yield _Told(self._log, name, max(1, total))


class _Told:
    def __init__(self, log: Callable[[str], None], name: str, total: int) -> None:
        self._log, self._name, self._total = log, name, total
        self._done, self._note = 0, ""
        self._begin = self._last = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        told = self._done * PARTS // self._total
        self._done += steps
        now, finished = time.monotonic(), self._done >= self._total
        if self._done * PARTS // self._total == told or (now - self._last < APART and not finished):
            return
        self._last, share = now, self._done / self._total
        left = (now - self._begin) * max(0.0, 1.0 - share) / share
        parts = [f"{100 * share:.0f} %", *([self._note] if self._note else []), f"{left:.0f} s left"]
        self._log(f"{self._name}: {', '.join(parts)}")

    def note(self, text: str) -> None:
        self._note = text
