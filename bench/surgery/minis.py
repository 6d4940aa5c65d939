"""Small networks exported by torch: pruned to half of their MACs (transformers: 60 %), exactly.

Each of the twelve families goes through both exporters (the dynamo one needs onnxscript), with normalisation
kept and folded, in three opsets, the middle one with a dynamic batch. Error: of the pruned
model to the masked original, relative. Effect: what the removal itself does to the output.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from bench.surgery.common import LEAST_EFFECT, Say, check
from bench.surgery.mini_models import MINIS, Mini
from onnxprune.graph.analysis import analyze_graph
from onnxprune.io.load import load
from onnxprune.pipeline import select
from onnxprune.profile.cost import CostModel
from onnxprune.report.inspection import coverage

OPSETS = {"older": (11, 13, 17), "dynamo": (18, 20, 23)}


@dataclass(frozen=True)
class Export:
    """How a network is exported."""

    exporter: str
    opset: int
    folded: bool
    dynamic: bool

    def __str__(self) -> str:
        batch = ", dynamic batch" if self.dynamic else ""
        return f"{self.exporter} {self.opset}, {'folded' if self.folded else 'kept'}{batch}"


def exports(mini: Mini) -> Iterator[Export]:
    """Every way that a network is exported; some ops need a later opset than the oldest."""
    for exporter, opsets in OPSETS.items():
        for position, opset in enumerate(
            sorted(max(opset, mini.least_opset + i) for i, opset in enumerate(opsets))
        ):
            for folded in (False, True):
                yield Export(exporter, opset, folded, position == 1)


def export(mini: Mini, how: Export) -> onnx.ModelProto:
    """The network as that exporter writes it, read again from its file."""
    model, sample = mini.build()
    if how.exporter == "dynamo":
        options: dict[str, Any] = {"dynamo": True, "optimize": how.folded}
        if how.dynamic:
            options["dynamic_shapes"] = ({0: torch.export.Dim("batch", min=1, max=64)},)
            sample = sample.repeat(2, *([1] * (sample.dim() - 1)))
    else:
        options = {"dynamo": False, "do_constant_folding": how.folded}
        if not how.folded:
            options["training"] = torch.onnx.TrainingMode.PRESERVE
        if how.dynamic:
            options["dynamic_axes"] = {"x": {0: "batch"}, "y": {0: "batch"}}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                torch.onnx.export(
                    model, (sample,), Path(folder, "m.onnx"), opset_version=how.opset, input_names=["x"],
                    output_names=["y"], verbose=False, **options,
                )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
        return load(Path(folder, "m.onnx")).model


def row(mini: Mini, how: Export) -> tuple[str, str]:
    """What is wrong ("" if nothing), and the figures of a row."""
    model = export(mini, how)
    graph = analyze_graph(model)
    costs = CostModel.of(graph)
    plan = select(graph, None, mini.macs, method="l2")
    found = check(graph, plan, model)
    wrong = found.wrong or ("the removal changes nothing" if found.effect < LEAST_EFFECT else "")
    share = costs.macs(plan.keep) / costs.macs(np.ones_like(plan.keep))
    figures = f"{100 * coverage(graph, costs).macs:.1f} % | {100 * share:.1f} %"
    return wrong, f"{figures} | {found.error:.1e} | {found.effect:.1e}"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--net", action="append", choices=sorted(MINIS), help="only these networks")
    parser.add_argument("--export", default="", help="exports whose description holds this")


def run(options: argparse.Namespace, say: Say) -> int:
    say("| network | export | result | prunable MACs | after | error | effect |")
    say("|---|---|---|---|---|---|---|")
    exact: Counter[str] = Counter()
    failures = 0
    for name in options.net or MINIS:
        for how in exports(MINIS[name]):
            if options.export not in str(how):
                continue
            try:
                wrong, figures = row(MINIS[name], how)
            except Exception as error:  # a row that fails, whatever it is; the others go on
                wrong, figures = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}", "| | | "
            failures += bool(wrong)
            exact[name] += not wrong
            say(f"| {name} | {how} | {wrong or 'exact'} | {figures} |")
    say("")
    say(", ".join(f"{name} {count}" for name, count in exact.items()) + " exports exact")
    return failures
