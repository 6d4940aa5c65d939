"""What a command prints and where: tables and JSON on stdout, progress and warnings on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

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
        console = _console(stderr=self._json_path == STANDARD_OUTPUT)
        with _printing():
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
            with _printing():
                sys.stdout.write(text)
        else:
            save_text(Path(self._json_path), text, "--json")


def check_outputs(
    outputs: Mapping[str, str | Path | None], models: Iterable[object], others: Iterable[object] = ()
) -> None:
    """Raise UsageError, before any work, where a file can't be written that an option asks for.

    ``outputs`` maps options to files, or None where they were not given. None of them may be a file of the
    ``models`` that are read, one of the ``others``, or another output. Devices and pipes are let through.
    """
    taken: dict[object, str] = {}
    read = {_identity(path) for path in _paths((*models, *others))}
    for option, name in outputs.items():
        if name is None or (option == "--json" and name == STANDARD_OUTPUT):
            continue
        path = Path(name)
        try:
            if _is_special(path):
                continue
            _check_writable(path, option)
            identity = _identity(path)
            if path.exists():  # only then it can be a file that a model keeps weights in
                read.update(_identity(file) for model in _paths(models) for file in _files(model))
        except (OSError, ValueError) as error:  # ValueError: a name that no path can have
            raise UsageError(
                f"{option}: can't write {path}: {getattr(error, 'strerror', None) or error}",
                hint="choose another file",
            ) from error
        if identity in read:
            raise UsageError(
                f"{option} {path} is the input, which is never overwritten",
                hint=f"choose another output with {option}",
            )
        if identity in taken:
            raise UsageError(
                f"{taken[identity]} and {option} name the same file: {path}", hint="give each its own"
            )
        taken[identity] = option
        if option == "-o":  # the result may keep its weights beside it
            from onnxprune.io.save import data_name

            taken[_identity(path.with_name(data_name(path)))] = option


def _paths(values: Iterable[object]) -> list[Path]:
    return [Path(value) for value in values if isinstance(value, str | Path) and "\0" not in str(value)]


def _files(model: Path) -> tuple[Path, ...]:
    from onnxprune.io.load import files_of

    return files_of(model)


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe, which is written to and not replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _check_writable(path: Path, option: str) -> None:
    if str(path) == STANDARD_OUTPUT:
        raise UsageError(f"{option} takes a file, not '-'", hint="name one; --json - writes to stdout")
    path = Path(os.path.realpath(path))  # links are followed
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder", hint="name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: no such folder: {path.parent}", hint="create it first")
    for place in (path.parent, path):
        # Files are written beside their place and moved there, so that both have to allow it.
        if place.exists() and not os.access(place, os.W_OK):
            raise UsageError(f"{option} {path}: {place} can't be written", hint="choose another place")


def _identity(path: Path) -> object:
    """What two paths to the same file have in common, links included."""
    try:
        status = path.stat()
    except OSError:  # there is no such file yet
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def discard_output() -> None:
    """Let standard output go nowhere from now on."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # open until the process ends


@contextmanager
def _printing() -> Iterator[None]:
    """Flush what is printed, and end in order where it can't be: UsageError, or no word to a closed pipe."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        discard_output()  # what is left in the buffer would fail once more when the process ends
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
