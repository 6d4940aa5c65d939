"""What a command prints and where: tables and JSON on stdout, progress and warnings on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.errors import UsageError
from onnxprune.progress import Progress, SilentProgress, Stage

if TYPE_CHECKING:
    import rich.progress
    from rich.console import Console, RenderableType

    from onnxprune.report.schema import Report

STANDARD_OUTPUT = "-"
_PIPE_WIDTH = 110
"""Columns where nobody's terminal sets them."""


class Output:
    """Where one command's output goes.

    With ``--json -`` only JSON reaches standard output, and tables go to standard error;
    with ``--quiet`` nothing is printed but that JSON.
    """

    def __init__(self, *, json_path: str | None, quiet: bool) -> None:
        self.quiet = quiet
        self._json_path = json_path
        if json_path not in (None, STANDARD_OUTPUT):
            check_writable(Path(str(json_path)), "--json")

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A progress observer that draws bars where standard error is a terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield SilentProgress()
            return
        from rich import progress as bars

        with bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            console=_console(stderr=True),
            transient=True,
        ) as display:
            yield _BarProgress(display)

    def show(self, *renderables: RenderableType) -> None:
        """Print tables and lines for people."""
        if self.quiet:
            return
        console = _console(stderr=self._json_path == STANDARD_OUTPUT)
        for item in renderables:
            console.print(item)

    def warn(self, messages: Iterable[str]) -> None:
        """Print warnings, one line each, on standard error."""
        if self.quiet:
            return
        for message in messages:
            print(f"warning: {' '.join(message.split())}", file=sys.stderr)

    def report(self, report: Report) -> None:
        """Write the JSON report where ``--json`` says, if it does."""
        if self._json_path is None:
            return
        from onnxprune.report.encode import report_json

        text = report_json(report)
        if self._json_path == STANDARD_OUTPUT:
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            write_text(Path(self._json_path), text, "--json")


def check_writable(path: Path, option: str) -> None:
    """Raise UsageError, before any work, where a file can't be written there."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder", hint="name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: no such folder: {path.parent}", hint="create it first")


def write_text(path: Path, text: str, option: str) -> None:
    """Write a file that the user asked for; UsageError where that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{option}: can't write {path}: {error.strerror or error}") from error


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Names come from models: they are printed as they are, never read as markup or emoji.
    return Console(
        file=stream,
        markup=False,
        emoji=False,
        highlight=False,
        width=None if stream.isatty() else _PIPE_WIDTH,
    )


class _BarStage:
    def __init__(self, display: rich.progress.Progress, task: rich.progress.TaskID, name: str) -> None:
        self._display = display
        self._task = task
        self._name = name

    def advance(self, steps: int = 1) -> None:
        self._display.advance(self._task, steps)

    def note(self, text: str) -> None:
        self._display.update(self._task, description=f"{self._name}: {text}")


class _BarProgress:
    def __init__(self, display: rich.progress.Progress) -> None:
        self._display = display

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        task = self._display.add_task(name, total=total)
        try:
            yield _BarStage(self._display, task, name)
        finally:
            self._display.remove_task(task)
