"""Plans compose: A then B is A and B at once; pruning a result to its own budget changes nothing.

The checks are those of tests/graph/test_composition.py. *Same file*: bit for bit. *Same outputs*: bit for
bit, from files that differ in the nodes that stand for a Slice. *Finer units*: the pruned model has units
that no plan of the original states (where what tied them is gone), so there is nothing to compare; further
cases are drawn for these.
"""

from __future__ import annotations

import argparse
import traceback
from collections import Counter
from collections.abc import Callable

import onnx
from hypothesis import HealthCheck, given, seed, settings

from bench.surgery.common import Say, tally
from tests.graph.test_composition import check_composition, check_repetition
from tests.strategies import models, plan_seeds


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=int, default=100, help="of each kind [default: 100]")
    parser.add_argument("--seed", type=int, default=0, help="random seed [default: 0]")


def run(options: argparse.Namespace, say: Say) -> int:
    compared: Counter[str] = Counter()
    repeated: Counter[str] = Counter()
    quiet = settings(
        max_examples=4 * options.cases, deadline=None, database=None, suppress_health_check=tuple(HealthCheck)
    )

    @seed(options.seed)
    @quiet
    @given(models(), plan_seeds(), plan_seeds())
    def composition(model: onnx.ModelProto, first: tuple[int, float], second: tuple[int, float]) -> None:
        if compared["same file"] + compared["same outputs"] < options.cases:
            compared[check_composition(model, first, second)] += 1

    @seed(options.seed)
    @quiet
    @given(models(), plan_seeds())
    def repetition(model: onnx.ModelProto, drawn: tuple[int, float]) -> None:
        if repeated["same file"] < options.cases:
            repeated[check_repetition(model, *drawn)] += 1

    failures = sum(failed(check, say) for check in (composition, repetition))
    tally(compared, ("A then B against A and B", "cases"), say)
    say("")
    tally(repeated, ("its own output, to the same budget", "cases"), say)
    enough = compared["same file"] + compared["same outputs"] >= options.cases <= repeated["same file"]
    return failures + (not enough)


def failed(check: Callable[[], None], say: Say) -> bool:
    try:
        check()
    except Exception:  # the example that hypothesis found, whatever went wrong in it
        say(f"```\n{traceback.format_exc()}```")
        return True
    return False
