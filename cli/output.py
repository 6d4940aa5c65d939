"""What a command prints and where: tables and JSON on stdout, progress and warnings on stderr."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from onnxprune.errors import UsageError
from onnxprune.io.text import save_text
from onnxprune.progress import Progress, SilentProgress, Stage

if TYPE_CHECKING:
    import rich.progress
    from rich.console import Console, RenderableType

    from onnxprune.report.schema import Report

STANDARD_OUTPUT = "-"
_PIPE_WIDTH = 110
"""Columns where nobody's terminal sets them."""

_EXIT_PIPE = 141
"""Status of a command whose reader has gone, as shells give it: 128 + SIGPIPE."""


class Output:
    """Where one command's output goes.

    With ``--json -`` only JSON reaches standard output, and tables go to standard error;
    with ``--quiet`` nothing is printed but that JSON.
    """

    def __init__(self, *, json_path: str | None, quiet: bool) -> None:
        self.quiet = quiet
        self._json_path = json_path

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A progress observer that draws bars where standard error is a terminal.

        What the user's own code prints meanwhile goes to standard error where the JSON has the other.
        """
        with redirect_stdout(sys.stderr) if self._json_path == STANDARD_OUTPUT else nullcontext():
            yield from self._progress()

    def _progress(self) -> Iterator[Progress]:
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
        stderr = self._json_path == STANDARD_OUTPUT
        console = _console(stderr=stderr)
        with _telling() if stderr else printing():
            for item in renderables:
                console.print(item)

    def warn(self, messages: Iterable[str]) -> None:
        """Print warnings, one line each, on standard error."""
        if self.quiet:
            return
        for message in messages:
            tell(f"warning: {' '.join(message.split())}")

    def report(self, report: Report) -> None:
        """Write the JSON report where ``--json`` says, if it does."""
        if self._json_path is None:
            return
        from onnxprune.report.encode import report_json

        text = report_json(report)
        if self._json_path == STANDARD_OUTPUT:
            with printing():
                sys.stdout.write(text if _speaks_unicode(sys.stdout) else _in_ascii(text))
        else:
            save_text(Path(self._json_path), text, "--json")


def prepare_streams() -> None:
    """Let standard output and error take all that is printed, whatever the caller made of them.

    Those that are closed go nowhere; characters that standard output's encoding lacks become escapes.
    """
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def tell(line: str) -> None:
    """Print a line on standard error, if that can be."""
    with _telling():
        print(line, file=sys.stderr)


@contextmanager
def _telling() -> Iterator[None]:
    """Let standard error go nowhere from when it can't be written: there is no place left to say so."""
    try:
        yield
        sys.stderr.flush()
    except OSError:
        sys.stderr = _nowhere()


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # open until the process ends


def _speaks_unicode(stream: TextIO) -> bool:
    """Whether it takes every character; one without an encoding keeps them as they are."""
    return stream.encoding is None or codecs.lookup(stream.encoding).name == "utf-8"


def _in_ascii(text: str) -> str:
    """The same JSON with JSON's own escapes."""
    return json.dumps(json.loads(text), indent=2) + "\n"


@contextmanager
def printing() -> Iterator[None]:
    """Flush what is printed, and end in order where it can't be: UsageError, or no word to a closed pipe."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = _nowhere()  # what is left in the buffer would fail once more when the process ends
        if isinstance(error, BrokenPipeError):
            raise click.exceptions.Exit(_EXIT_PIPE) from error
        raise UsageError(
            f"can't write to standard output: {error.strerror}", hint="is the disk full?"
        ) from error


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich's own answer is exit status 1, which means a bug here

    stream = sys.stderr if stderr else sys.stdout
    # Names come from models: they are printed as they are, never read as markup or emoji.
    return Plain(
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
