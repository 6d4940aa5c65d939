"""The stages, one after another: each arrow of ARCHITECTURE.md is one line here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from onnxprune.calibration import open_calibration
from onnxprune.compression import Clock, Run, check_weighed
from onnxprune.config import CompressConfig
from onnxprune.errors import BudgetError, UsageError
from onnxprune.evaluate.preprocess import record_preprocess
from onnxprune.goals import Original
from onnxprune.graph import analysis
from onnxprune.graph.apply import apply
from onnxprune.graph.plan import Plan, keep_all
from onnxprune.graph.structure import Group, PruningGraph
from onnxprune.io.load import LoadedModel, ModelSource, load
from onnxprune.io.place import resolved
from onnxprune.io.save import model_bytes, save
from onnxprune.io.text import save_text
from onnxprune.io.validate import check_numbers
from onnxprune.profile.benchmark import benchmark
from onnxprune.profile.cost import CostModel, count
from onnxprune.profile.statistics import LayerStatistics, collect_statistics
from onnxprune.progress import Progress, SilentProgress
from onnxprune.recover.memory import memory_errors
from onnxprune.recover.training.processes import is_main_process
from onnxprune.report.compression import compression_report
from onnxprune.report.evaluation import evaluate
from onnxprune.report.inspection import file_bytes, inspect
from onnxprune.report.schema import CompressionReport
from onnxprune.select.allocate import CostGoal, Limits
from onnxprune.select.budget import Budget
from onnxprune.select.rankings import STATISTICS_METHODS
from onnxprune.select.select import plan_within, prunable_groups, rank
from onnxprune.sensitivity import analyze
from onnxprune.values import shown

__all__ = [
    "CompressionResult",
    "analyze",
    "analyze_graph",
    "apply",
    "benchmark",
    "compress",
    "evaluate",
    "gather_statistics",
    "inspect",
    "is_main_process",
    "select",
]


@dataclass(frozen=True)
class CompressionResult:
    """A smaller model, the plan that made it, and the report."""

    model: onnx.ModelProto
    plan: Plan
    report: CompressionReport
    graph: PruningGraph = field(repr=False)
    source: LoadedModel = field(repr=False)
    size_limit: float | None = None
    """Most bytes that its files may take, where a budget says so."""

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> CompressionReport:
        """Write the model; returns the report with the file's name and digest.

        The input's files are never overwritten; an existing file only with ``force``. Raises BudgetError
        where the names of its files make it larger than the budget on its size.
        """
        if self.size_limit is not None:
            size = model_bytes(self.model, resolved(Path(path)), external_data=self.source.external_data)
            if size > self.size_limit:
                raise BudgetError(
                    f"{os.fspath(path)} would have {size:,} bytes, {self.size_limit:,.0f} are allowed",
                    hint="give it a shorter name, or raise the budget",
                )
        written = save(
            self.model,
            Path(path),
            external_data=self.source.external_data,
            overwrite=force,
            protect=self.source.files,
        )
        files = load(written[0])
        digests = {**self.report.model.sha256, "output": files.sha256}
        model = replace(self.report.model, output=os.fspath(path), sha256=digests)
        return replace(self.report, model=model, after=replace(self.report.after, bytes=file_bytes(files)))

    def save_plan(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON; UsageError where that fails."""
        text = self.plan.to_json(self.graph, model_sha256=self.source.sha256)
        save_text(Path(path), text, "--save-plan")


def compress(
    config: CompressConfig | ModelSource,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> CompressionResult:
    """Compress a model to its budgets: the main job.

    Takes a configuration, or a model and the options by keyword: ``compress("model.onnx",
    data="photos/", macs=0.5)``. Nothing is written. Raises the errors of `onnxprune.errors`; a
    BudgetError where a budget or ``max_drop`` can't be met.
    """
    config = CompressConfig.of(config, options)
    config.check_goal()
    progress = progress or SilentProgress()
    clock = Clock()
    with clock("load"):
        source = load(config.model)
        check_numbers(source.model)
        original = Original(
            count(source.model),
            file_bytes(source),
            source.external_data,
            config.target and resolved(config.target),
        )
    with clock("analyse"):
        graph = analysis.analyze_graph(source.model, in_place=source.owned)
        # It computes what the file does; from here on it stands for the original, held once.
        source = replace(source, model=graph.model)
    with clock("data"):
        data = open_calibration(source.model, config, progress)
    config = replace(config, provider=data.provider)  # one for the whole run, whatever auto found
    sizes = data.input_shapes
    if sizes is not None:  # what analysis guessed is now known
        with clock("analyse"):
            graph = analysis.analyze_graph(graph.model, input_shapes=sizes, in_place=True)
            macs = count(graph.model, sizes).macs
            original = replace(original, cost=replace(original.cost, macs=macs), input_shapes=sizes)
    if data.samples.preprocess is not None:  # before any budget is counted: it takes bytes
        record_preprocess(graph.model, data.samples.preprocess)
    run = Run(config, source, graph, original, data, progress, clock)
    with memory_errors():
        chosen = run.best()
    if config.plan is None and np.all(chosen.plan.keep):
        data = replace(
            data, warnings=(*data.warnings, "the budget is met by the original: nothing was removed")
        )
    report = compression_report(
        config,
        source,
        graph,
        chosen.plan,
        chosen.model,
        original,
        data,
        chosen.evaluation,
        chosen.fits,
        clock.seconds,
        chosen.tuning,
        chosen.classes,
        chosen.latencies,
        chosen.depth_weight,
    )
    size = config.budget("size")
    limit = None if size is None else size.limit(original.bytes)
    return CompressionResult(chosen.model, chosen.plan, report, graph, source, limit)


def analyze_graph(
    model: ModelSource,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> PruningGraph:
    """Find which channels of a model can be removed together, which can't and why.

    ``model`` is left as it is. ``input_shapes`` gives sizes for inputs with dynamic axes other than the
    batch; without it usual sizes are tried. Raises ModelError for a model that is refused, UsageError
    for shapes that don't fit it.
    """
    loaded = load(model)
    return analysis.analyze_graph(loaded.model, input_shapes=input_shapes, in_place=loaded.owned)


def gather_statistics(
    graph: PruningGraph, data: object, *, progress: Progress | None = None, **options: Any
) -> dict[str, LayerStatistics]:
    """Class-wise statistics of what the layers of ``graph`` read, by layer, for `select`.

    One pass over the calibration samples of ``data``, which `compress` would draw; ``options`` are its own
    that concern data and runtime, such as ``calibration`` and ``preprocess``. Raises as it does.
    """
    config = CompressConfig.from_options({**options, "model": graph.model, "data": data})
    progress = progress or SilentProgress()
    calibration = open_calibration(graph.model, config, progress)
    return collect_statistics(
        graph, calibration.samples, calibration.classes,
        provider=calibration.provider, threads=config.threads, seed=config.seed, progress=progress,
    )  # fmt: skip


def select(
    graph: PruningGraph,
    statistics: Mapping[str, Any] | None,
    budget: str | float | Budget,
    *,
    method: str = "stlp-ib",
    limits: Limits | None = None,
    depth_weight: float | Literal["auto"] = "auto",
    seed: int = 0,
) -> Plan:
    """The plan that brings the MACs of ``graph`` down to ``budget``; see `rank`.

    ``budget`` is what `compress` takes as ``macs``, such as 0.5 or "12M". ``statistics`` are those of
    `gather_statistics`; the lasso methods, obs and wanda need them, taylor can't be used here. Without a
    ``depth_weight`` all depths weigh alike: trying several takes a recovery. Raises UsageError for what is
    no analysed graph, for statistics that are missing and for options that make no sense.
    """
    if not isinstance(graph, PruningGraph):
        raise UsageError(
            f"the graph is {shown(graph)}, not an analysed one", hint="give what analyze_graph(model) returns"
        )
    config = CompressConfig.from_options(
        {
            "model": graph.model,
            "macs": budget,
            "method": method,
            "depth_weight": depth_weight,
            "seed": seed,
        }
    )
    config.check_goal()
    costs = CostModel.of(graph)
    goal = CostGoal(costs, "macs", config.budgets[0].limit(costs.macs(keep_all(graph).keep)))
    groups = prunable_groups(graph)
    _require_statistics(groups, statistics, config.method)
    weight = 1.0 if config.depth_weight == "auto" else config.depth_weight
    check_weighed(config)
    rankings = rank(
        graph, groups, config.method, statistics=statistics, depth_weight=weight, seed=config.seed
    )
    return plan_within(graph, rankings, [goal], limits or Limits(), config.method)


def _require_statistics(groups: Sequence[Group], statistics: object, method: str) -> None:
    """Raise UsageError where the method needs statistics of the layers that read ``groups``, and has none."""
    readers = {name for group in groups for name in group.consumers}
    found = isinstance(statistics, Mapping) and not readers.isdisjoint(statistics)
    if method in STATISTICS_METHODS and readers and not found:
        raise UsageError(
            f"{method} needs statistics of the layers, and these are {shown(statistics)}",
            hint="give what gather_statistics returns for this graph, or take a method without data, as l1",
        )
