"""Random graphs of 3 to about 30 nodes, all families mixed, under random plans: the long run.

Each example is drawn and checked as in the test run (tests/graph/test_random.py): the result passes the
full check, loads in onnxruntime, equals the masked original to 1e-5, keeps inputs, outputs and versions, has
fewer bytes, and costs what was predicted. hypothesis shrinks the first failure and prints how to repeat it.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter

import onnx
from hypothesis import HealthCheck, given, seed, settings

from bench.surgery.common import Say, tally
from tests.graph.test_random import check_pruned
from tests.strategies import models, plan_seeds

BATCH = 250
"""Graphs that are drawn from one seed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--examples", type=int, default=5000, help="graphs [default: 5000]")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no batch after this")
    parser.add_argument("--seed", type=int, default=0, help="first random seed [default: 0]")


def run(options: argparse.Namespace, say: Say) -> int:
    seen: Counter[str] = Counter()
    sizes: list[int] = []

    def example(model: onnx.ModelProto, drawn: tuple[int, float]) -> None:
        graph, plan = check_pruned(model, drawn)
        sizes.append(len(model.graph.node))
        seen.update({"graphs": 1, "pruned": not plan.keep.all(), "with units": graph.unit_count > 0})
        seen.update(f"{node.op_type} nodes" for node in model.graph.node)

    failures, start = 0, time.monotonic()
    for batch in range(-(-options.examples // BATCH)):
        if time.monotonic() - start > 60 * options.minutes:
            break
        count = min(BATCH, options.examples - batch * BATCH)
        drawing = settings(
            max_examples=count, deadline=None, database=None, print_blob=True,
            suppress_health_check=tuple(HealthCheck),
        )  # fmt: skip
        try:
            seed(options.seed + batch)(drawing(given(models(), plan_seeds())(example)))()
        except Exception:  # the example that hypothesis found, whatever went wrong in it
            failures += 1
            say(f"```\n{traceback.format_exc()}```")
        print(f"{seen['graphs']} graphs", file=sys.stderr, flush=True)
    say(
        f"{seen['graphs']} graphs of {min(sizes, default=0)} to {max(sizes, default=0)} nodes; "
        f"{seen['with units']} had units, {seen['pruned']} were pruned"
    )
    say("")
    tally({op: n for op, n in seen.items() if op.endswith(" nodes")}, ("op", "nodes"), say)
    return failures
