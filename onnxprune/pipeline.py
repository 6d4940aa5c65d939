"""The stages, one after another: each arrow of ARCHITECTURE.md is one line here."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.calibration import Calibration, labelled, open_calibration
from onnxprune.config import CompressConfig
from onnxprune.errors import BudgetError, ModelError, UsageError
from onnxprune.evaluate.gates import drop_gate
from onnxprune.evaluate.metrics import Evaluation, evaluate_against
from onnxprune.evaluate.preprocess import record_preprocess
from onnxprune.goals import SEARCH_STEPS, Latencies, Original, macs_goal, plan_for, require_budgets
from onnxprune.graph import analysis
from onnxprune.graph.apply import apply
from onnxprune.graph.check import verify
from onnxprune.graph.plan import Plan
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import Group, PruningGraph
from onnxprune.io.load import LoadedModel, load
from onnxprune.io.save import model_bytes, save
from onnxprune.io.share import united
from onnxprune.io.text import save_text
from onnxprune.io.validate import check_numbers
from onnxprune.profile.benchmark import benchmark
from onnxprune.profile.cost import CostModel, count
from onnxprune.profile.features import collect_features
from onnxprune.profile.gradients import collect_importance
from onnxprune.profile.session import open_session
from onnxprune.profile.statistics import collect_statistics
from onnxprune.progress import Progress, SilentProgress
from onnxprune.recover.closed_form import LayerFit, recover
from onnxprune.recover.finetune import Finetuned, FinetuneSettings, finetune
from onnxprune.recover.training.distill import residual_joins
from onnxprune.recover.training.processes import is_main_process
from onnxprune.report.compression import compression_report
from onnxprune.report.evaluation import as_source, evaluate
from onnxprune.report.inspection import file_bytes, inspect
from onnxprune.report.schema import ClassStructure, CompressionReport
from onnxprune.select.allocate import CostGoal, Limits, Ranking
from onnxprune.select.rankings import LASSO_METHODS, PRICED_METHODS, STATISTICS_METHODS
from onnxprune.select.select import chosen_groups, plan_within, protect_branches, rank, require_choices
from onnxprune.sensitivity import analyze, class_structure

__all__ = [
    "CompressionResult",
    "analyze",
    "analyze_graph",
    "apply",
    "benchmark",
    "compress",
    "evaluate",
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
            size = model_bytes(self.model, Path(path), external_data=self.source.external_data)
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


@dataclass(frozen=True)
class _Candidate:
    """A plan, the model it leads to, and what that model scores."""

    plan: Plan
    model: onnx.ModelProto
    evaluation: Evaluation | None
    fits: tuple[LayerFit, ...]
    tuning: Finetuned | None = None
    classes: ClassStructure | None = None
    latencies: Latencies | None = None


class _Clock:
    """Seconds spent in each stage, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def compress(
    config: CompressConfig | str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> CompressionResult:
    """Compress a model to its budgets: the main job.

    Takes a configuration, or a model and the options by keyword: ``compress("model.onnx",
    data="photos/", macs=0.5)``. Nothing is written. Raises the errors of `onnxprune.errors`; a
    BudgetError where a budget or ``max_drop`` can't be met.
    """
    config = _config(config, options)
    config.check_goal()
    progress = progress or SilentProgress()
    clock = _Clock()
    with clock("load"):
        source = load(as_source(config.model))
        original = Original(count(source.model), file_bytes(source), source.external_data, config.target)
    with clock("analyse"):
        graph = analysis.analyze_graph(source.model, in_place=source.owned)
        # It computes what the file does; from here on it stands for the original, held once.
        source = replace(source, model=graph.model)
        check_numbers(graph.model)
    with clock("data"):
        data = open_calibration(source.model, config, progress)
    sizes = _sizes(data)
    if sizes is not None:  # what analysis guessed is now known
        graph = analysis.analyze_graph(graph.model, input_shapes=sizes, in_place=True)
        macs = count(graph.model, sizes).macs
        original = replace(original, cost=replace(original.cost, macs=macs), input_shapes=sizes)
    if data.samples.preprocess is not None:  # before any budget is counted: it takes bytes
        record_preprocess(graph.model, data.samples.preprocess)
    run = _Run(config, source, graph, original, data, progress, clock)
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
    )
    size = config.budget("size")
    limit = None if size is None else size.limit(original.bytes)
    return CompressionResult(chosen.model, chosen.plan, report, graph, source, limit)


def analyze_graph(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> PruningGraph:
    """Find which channels of a model can be removed together, which can't and why.

    ``model`` is left as it is. ``input_shapes`` gives sizes for inputs with dynamic axes other than the
    batch; without it usual sizes are tried. Raises ModelError for a model that is refused, UsageError
    for shapes that don't fit it.
    """
    loaded = load(as_source(model))
    return analysis.analyze_graph(loaded.model, input_shapes=input_shapes, in_place=loaded.owned)


def select(
    graph: PruningGraph,
    statistics: Mapping[str, Any] | None,
    budget: float,
    *,
    method: str = "stlp-ib",
    limits: Limits | None = None,
    seed: int = 0,
) -> Plan:
    """The plan that brings ``graph`` down to a share ``budget`` of its MACs; see `rank`.

    ``statistics`` are those of `collect_statistics`; the lasso methods, obs and wanda need them, taylor
    can't be used here.
    """
    groups = _groups(graph, CompressConfig(model=graph.model))
    rankings = rank(graph, groups, method, statistics=statistics, seed=seed)
    return plan_within(graph, rankings, [macs_goal(CostModel.of(graph), budget)], limits or Limits(), method)


@dataclass(frozen=True)
class _Run:
    """One compression under way."""

    config: CompressConfig
    source: LoadedModel
    graph: PruningGraph
    original: Original
    data: Calibration
    progress: Progress
    clock: _Clock

    def best(self) -> _Candidate:
        """The plan that was asked for and what it leads to, all budgets counted once more on that."""
        chosen = self._chosen()
        with self.clock("check"):
            latencies = require_budgets(self.graph, chosen.plan, chosen.model, self.config, self.original)
        return replace(chosen, latencies=latencies)

    def _chosen(self) -> _Candidate:
        config = self.config
        if config.plan is not None:
            return self._finish(self._saved_plan(config.plan))
        rankings, classes = self._rankings()
        if config.budgets:
            with self.clock("plan"):
                plan = plan_for(
                    self.graph, config, self.original, lambda goals: self._allocate(rankings, goals)
                )
            return replace(self._finish(plan), classes=classes)
        return replace(self._smallest_within_drop(rankings), classes=classes)

    def _saved_plan(self, path: Path) -> Plan:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"can't read the plan {path}: {error}", hint="--save-plan writes one") from error
        plan = Plan.from_json(self.graph, text, model_sha256=self.source.sha256)
        ratio = self.config.max_group_ratio
        stated = ratio != CompressConfig.max_group_ratio  # else plans may go further than selection does
        limits = Limits(
            self.config.round_to, ratio if stated else 1.0, whole_branches=not stated or ratio == 1.0
        )
        require_choices(self.graph, plan, self.config.keep, self.config.only, limits)
        return plan

    def _rankings(self) -> tuple[list[Ranking], ClassStructure | None]:
        """The ranking of every group, and the classes' structure where the method looks at classes."""
        config, data = self.config, self.data
        if config.data_term != "contribution" and config.method not in LASSO_METHODS:
            raise UsageError(
                f"--data-term is of no use with --method {config.method}",
                hint=f"it is what these fit: {', '.join(LASSO_METHODS)}",
            )
        if config.depth_weight != 1.0 and config.method not in PRICED_METHODS:
            raise UsageError(
                f"--depth-weight is of no use with --method {config.method}",
                hint=f"it weighs losses, which these have: {', '.join(PRICED_METHODS)}",
            )
        groups = _groups(self.graph, config)
        if config.method == "taylor":
            with self.clock("profile"):
                importance = collect_importance(
                    self.graph, groups, data.samples,
                    provider=config.provider, threads=config.threads, progress=self.progress,
                )  # fmt: skip
            return rank(self.graph, groups, config.method, importance=importance), None
        if config.method not in STATISTICS_METHODS:
            return rank(self.graph, groups, config.method, seed=config.seed), None
        with self.clock("profile"):
            statistics = collect_statistics(
                self.graph, data.samples, data.classes,
                provider=config.provider, threads=config.threads, seed=config.seed, progress=self.progress,
            )  # fmt: skip
            features = None
            if config.data_term == "hsic" and config.method in LASSO_METHODS:
                features = collect_features(
                    self.graph, groups, data.samples,
                    provider=config.provider, threads=config.threads, progress=self.progress,
                )  # fmt: skip
        with self.clock("select"):
            rankings = rank(
                self.graph, groups, config.method,
                statistics=statistics, features=features, classes=data.classes,
                depth_weight=config.depth_weight, seed=config.seed,
            )  # fmt: skip
        return rankings, class_structure(statistics, data.names)

    def _allocate(self, rankings: list[Ranking], goals: tuple[CostGoal, ...]) -> Plan:
        ratio = self.config.max_group_ratio
        limits = Limits(self.config.round_to, ratio, whole_branches=ratio == 1.0)
        graph = protect_branches(self.graph, self.config.keep)
        return plan_within(graph, rankings, goals, limits, self.config.method)

    def _finish(self, plan: Plan, *, tune: bool = True) -> _Candidate:
        """Rewrite, verify, recover and evaluate; BudgetError where ``max_drop`` is exceeded.

        Without ``tune``, fine-tuning is left out.
        """
        with self.clock("rewrite"):
            pruned = rewrite(self.graph, plan)
        if self.config.verify:
            with self.clock("verify"):
                verify(self.graph, plan, pruned, seed=self.config.seed)
        if self.config.dry_run and self.config.max_drop is None:
            return _Candidate(plan, pruned, None, ())
        recovered, fits = self._recovered(plan, pruned)
        tuning = None
        if tune and self.config.recover == "finetune" and not plan.keep.all():
            tuning = self._tuned(plan, recovered)
            recovered = tuning.model
        candidate = replace(self._scored(plan, recovered, fits), tuning=tuning)
        if self.config.max_drop is not None:
            if candidate.evaluation is None:
                raise BudgetError("--max-drop needs data to measure accuracy on", hint="give --eval-data")
            drop_gate(candidate.evaluation, self.config.max_drop).require()
        return candidate

    def _recovered(self, plan: Plan, pruned: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[LayerFit, ...]]:
        if self.config.recover == "none" or plan.keep.all():
            return pruned, ()
        with self.clock("recover"):
            recovery = recover(
                self.graph, plan, pruned, self.data.samples.arrays().inputs,
                batch=self.data.batch, provider=self.config.provider, threads=self.config.threads,
                # A new bias would go past a budget that the plan just meets.
                new_bias=not (self.config.budget("params") or self.config.budget("size")),
                seed=self.config.seed, progress=self.progress,
            )  # fmt: skip
        return recovery.model, recovery.fits

    def _tuned(self, plan: Plan, model: onnx.ModelProto) -> Finetuned:
        config = self.config
        settings = FinetuneSettings(epochs=config.epochs, time_limit_s=config.time_limit, lr=config.lr)
        with self.clock("fine-tune"):
            return finetune(
                self.graph.model, united(model), self.data.training.in_memory(), settings,
                joins=residual_joins(self.graph, plan), checkpoint=config.checkpoint,
                provider=config.provider, threads=config.threads, seed=config.seed, progress=self.progress,
            )  # fmt: skip

    def _scored(self, plan: Plan, model: onnx.ModelProto, fits: tuple[LayerFit, ...]) -> _Candidate:
        if self.data.evaluation is None:
            return _Candidate(plan, model, None, fits)
        with self.clock("evaluate"):
            start = partial(open_session, provider=self.config.provider, threads=self.config.threads)
            reference, session = start(self.source.model), start(model)
            judged = labelled(self.data.evaluation, reference, self.progress)
            result = evaluate_against(session, reference, judged, progress=self.progress)
        return _Candidate(plan, model, result, fits)

    def _smallest_within_drop(self, rankings: list[Ranking]) -> _Candidate:
        """Bisect on the share of MACs for the smallest model that loses at most ``max_drop`` points.

        Candidates are recovered in closed form; fine-tuning is for the one that is chosen.
        """
        costs = CostModel.of(self.graph)
        best: _Candidate | None = None
        low, high = 0.0, 1.0
        for _ in range(SEARCH_STEPS):
            share = 0.5 * (low + high)
            try:
                plan = self._allocate(rankings, (macs_goal(costs, share),))
                best, high = self._finish(plan, tune=False), share
            except BudgetError:
                low = share
        if best is None:
            raise BudgetError(
                f"nothing could be removed within --max-drop {self.config.max_drop:g}",
                hint="allow more points, or give more calibration data",
            )
        return self._finish(best.plan) if self.config.recover == "finetune" else best


def _config(
    config: CompressConfig | str | os.PathLike[str] | bytes | onnx.ModelProto, options: Mapping[str, Any]
) -> CompressConfig:
    if isinstance(config, CompressConfig):
        if options:
            raise UsageError("give a configuration or options, not both", hint="use dataclasses.replace")
        return config
    return CompressConfig.from_options({"model": config, **options})


def _sizes(data: Calibration) -> dict[str, tuple[int, ...]] | None:
    """The shape of the data's samples, where the model leaves more than the batch free."""
    spec = data.samples.spec
    if None not in spec.shape[1:]:
        return None
    return {spec.name: (spec.shape[0] or 1, *data.samples.arrays([0]).inputs.shape[1:])}


def _groups(graph: PruningGraph, config: CompressConfig) -> list[Group]:
    groups = chosen_groups(graph, config.keep, config.only)
    if not groups:
        reason = f": {graph.skipped[0].reason}" if graph.skipped and not graph.groups else ""
        raise ModelError(
            f"nothing in the model can be pruned{reason}",
            hint="onnxprune inspect MODEL.onnx says why, group by group",
        )
    return groups
