"""How much each group can lose: the output's change when a share of one group's units goes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from onnxprune.calibration import labelled, open_calibration
from onnxprune.config import CompressConfig
from onnxprune.errors import UsageError
from onnxprune.evaluate.metrics import evaluate_against
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.plan import Plan, keep_all
from onnxprune.graph.rewrite import rewrite
from onnxprune.io.load import ModelSource, load
from onnxprune.profile.session import open_session
from onnxprune.profile.statistics import LayerStatistics, collect_statistics
from onnxprune.progress import Progress, SilentProgress
from onnxprune.report.evaluation import metric_values, model_files
from onnxprune.report.schema import (
    AnalysisReport,
    ClassEdge,
    ClassMerge,
    ClassStructure,
    Fidelity,
    GroupSensitivity,
    SensitivityPoint,
    SkippedGroup,
)
from onnxprune.select.classes import ClassGraph, ClassTree, class_correlation
from onnxprune.select.select import prunable_groups, rank

SHARES = (0.25, 0.5, 0.75)
"""Shares of a group's units that are taken."""

SAMPLES = 128
"""Most samples that each point is measured on."""


def analyze(
    config: CompressConfig | ModelSource, *, progress: Progress | None = None, **options: Any
) -> AnalysisReport:
    """Measure what removing a share of each group alone, without recovery, does to the output.

    Takes a configuration, or a model and the options by keyword, as `compress` does. Units go in
    the order of ``config.method``. Also reports the class tree and graph that the schemes use, from what the
    last layer with prunable inputs gives each class.
    """
    config = CompressConfig.of(config, options)
    if config.method == "taylor":
        raise UsageError("analyze can't rank by taylor", hint="take another --method")
    progress = progress or SilentProgress()
    start = time.perf_counter()
    source = load(config.model)
    graph = analyze_graph(source.model, in_place=source.owned)
    data = open_calibration(graph.model, config, progress)
    if data.input_shapes is not None:  # what was guessed is now known
        graph = analyze_graph(graph.model, input_shapes=data.input_shapes, in_place=True)
    groups = prunable_groups(graph, config.keep, config.only)
    start_session = partial(open_session, provider=config.provider, threads=config.threads)
    statistics = collect_statistics(
        graph,
        data.samples,
        data.classes,
        seed=config.seed,
        progress=progress,
        provider=config.provider,
        threads=config.threads,
    )
    rankings = rank(graph, groups, config.method, statistics=statistics, seed=config.seed)
    profiled = time.perf_counter()
    reference = start_session(graph.model)
    judged = labelled(data.evaluation or data.samples, reference, progress)
    judged = judged.subset(range(min(SAMPLES, len(judged)))).in_memory()
    curves, metrics = [], {}
    with progress.stage("sensitivity", len(rankings) * len(SHARES)) as stage:
        for ranking in rankings:
            points = []
            for share in SHARES:
                keep = keep_all(graph).keep.copy()
                count = min(len(ranking.order) - 1, round(share * len(ranking.order)))
                keep[ranking.group.units[ranking.order[:count]]] = False
                session = start_session(rewrite(graph, Plan(keep)))
                result = evaluate_against(session, reference, judged)
                metrics = metric_values(result.reference_metrics)
                if result.fidelity is not None:
                    likeness = Fidelity(result.fidelity.agreement, result.fidelity.kl)
                    points.append(
                        SensitivityPoint(count / len(ranking.order), likeness, metric_values(result.metrics))
                    )
                stage.advance()
            curves.append(GroupSensitivity(ranking.group.name, len(ranking.order), tuple(points)))
    end = time.perf_counter()
    return AnalysisReport(
        model=model_files(source),
        data={"calibration": data.samples.describe(), "evaluation": judged.describe()},
        metrics=metrics,
        groups=tuple(curves),
        skipped=tuple(SkippedGroup(item.name, item.reason, item.channels) for item in graph.skipped),
        timings_s={"profile": profiled - start, "sensitivity": end - profiled},
        warnings=data.warnings,
        classes=class_structure(statistics, data.names),
    )


def class_structure(
    statistics: Mapping[str, LayerStatistics], names: tuple[str, ...]
) -> ClassStructure | None:
    """The class tree and graph, for reports: what the last layer with prunable inputs tells apart.

    None where no layer has statistics.
    """
    last = list(statistics.values())[-1:]
    if not last:
        return None
    correlation = class_correlation(last[0].responses)
    tree, graph = ClassTree.from_correlation(correlation), ClassGraph.from_correlation(correlation)
    return ClassStructure(
        names,
        tuple(ClassMerge(row.children, row.height) for row in tree.rows()),
        tuple(ClassEdge(row.first, row.second, row.correlation) for row in graph.rows()),
    )
