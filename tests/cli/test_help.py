"""Help: as the README states it, complete, and instant."""

from __future__ import annotations

import resource
import subprocess
import sys

import click
import pytest

from onnxprune_cli.main import COMMANDS
from tests.readme import ROOT, help_page, stated_help

NAMES = ["", *(command.name or "" for command in COMMANDS)]
HEAVY = ("torch", "onnx", "onnxruntime", "onnx_graphsurgeon", "numpy", "rich", "PIL", "jinja2")


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_states_the_help_as_it_is(name: str) -> None:
    stated = stated_help((ROOT / "README.md").read_text(encoding="utf-8"))
    assert stated.get(name) == help_page(name), "refresh it with: python -m tests.readme"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_option_says_what_it_does(command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} has no help"


@pytest.mark.parametrize("name", NAMES)
def test_help_imports_nothing_heavy(name: str) -> None:
    script = (
        "import sys, io, contextlib\n"
        "from onnxprune_cli.main import run\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    status = run({[name, '--help'] if name else ['--help']!r})\n"
        f"print(status, sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "0 []\n"


def test_help_takes_under_300_ms_of_processor_time() -> None:
    # Processor time, the best of five: the wall clock belongs to everything else that runs here.
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "onnxprune", "compress", "--help"],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3, times
