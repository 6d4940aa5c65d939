"""The entry point: finds the command, turns errors into one line, a hint and an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from onnxprune.errors import OnnxPruneError

from .analyze import analyze
from .benchmark import benchmark
from .compress import compress
from .evaluate import evaluate
from .inspect import inspect
from .output import prepare_streams, printing, tell

EXIT_BUG = 1
EXIT_INTERRUPTED = 130
COMMANDS = (compress, inspect, analyze, evaluate, benchmark)


class _InOrder(click.Group):
    """A group that lists its commands in the order of their definition."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the arguments, and print the version or the help where they ask for it."""
        with printing():
            return super().make_context(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if not value or ctx.resilient_parsing:
        return
    from onnxprune.version import package_version

    click.echo(f"onnxprune {package_version()}")
    ctx.exit()


@click.group(
    "onnxprune",
    cls=_InOrder,
    commands={command.name or "": command for command in COMMANDS},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def group() -> None:
    """Make trained ONNX classifiers smaller and faster by removing whole channels.

    Exit status: 0 done, 1 a bug, 2 usage, 3 the model is refused, 4 a budget can't be met, 5 the data,
    130 interrupted.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; errors are printed, never raised."""
    # Threads that spin while they wait make torch several times slower on a machine that others use too;
    # those that never do have to be woken for every small product. These spin for a tenth of a millisecond.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # Torch's large tensors on huge pages: a third of the page faults, where the system allows it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    settings: dict[str, Any] = {}
    prepare_streams()
    try:
        status = group.main(
            None if arguments is None else list(arguments),
            prog_name="onnxprune",
            obj=settings,
            standalone_mode=False,
        )
    except OnnxPruneError as error:
        return _fail(str(error), error.hint, error.exit_code, settings)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "onnxprune"
        return _fail(error.format_message(), f"see {path} --help", error.exit_code, settings)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", "", EXIT_INTERRUPTED, settings)
    except Exception as error:  # the last line of defence: whatever else is raised is a bug of ours
        what = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "this is a bug in onnxprune; run again with --debug and report the traceback"
        return _fail(f"internal error: {what}", hint, EXIT_BUG, settings)
    return status if isinstance(status, int) else 0


def main() -> NoReturn:
    """Run the command line and end the process with its exit status."""
    sys.exit(run())


def _fail(message: str, hint: str, status: int, settings: dict[str, Any]) -> int:
    if settings.get("debug"):
        tell(traceback.format_exc().rstrip())
    tell(f"error: {' '.join(message.split())}")
    if hint:
        tell(f"hint: {hint}")
    return status
