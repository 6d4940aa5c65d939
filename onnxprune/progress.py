"""Progress is an observer: silent by default, drawn by the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Stage(Protocol):
    """One running stage of work."""

    def advance(self, steps: int = 1) -> None:
        """Report that ``steps`` more units of work are done."""

    def note(self, text: str) -> None:
        """Say in a few words how the work goes."""


class Progress(Protocol):
    """Observer of long work; implement it to draw bars or to log."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Stage]:
        """Open a stage of ``total`` steps, used as a context manager."""


class _Silent:
    def advance(self, steps: int = 1) -> None:
        del steps

    def note(self, text: str) -> None:
        del text


class SilentProgress:
    """The default observer: says nothing."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Open a stage that reports to nobody."""
        del name, total
        yield _Silent()
