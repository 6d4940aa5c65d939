"""A quick part of the rule validator (``python -m bench.surgery rules``), and the ops without a rule."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.surgery.rule_cases import made_cases
from bench.surgery.rules import Tally, usable, validate
from bench.surgery.unruled import run
from onnxprune.graph.ops.registry import ruled_ops

RESULTS = Path(__file__).parents[3] / "bench" / "results"


def test_no_rule_is_incorrect_on_random_shapes_and_opsets() -> None:
    ruled, tally = set(ruled_ops()), Tally()
    for case in made_cases(15):
        if usable(case, ruled):
            for seed in range(2):
                validate(case, seed, tally)
    assert not tally.wrong
    assert tally.models > 150 and tally.pruned > 50 and tally.worst <= 1e-5


def test_the_committed_list_of_ops_without_a_rule_is_what_the_command_prints() -> None:
    lines: list[str] = []
    run(argparse.Namespace(), lines.append)
    assert "\n".join(lines) in (RESULTS / "surgery_unruled.md").read_text(encoding="utf-8")
