"""The report of one compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxprune.calibration import Calibration
from onnxprune.config import MAX_GROUP_RATIO, CompressConfig
from onnxprune.evaluate.metrics import Evaluation
from onnxprune.goals import Latencies, Original
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure import PruningGraph
from onnxprune.io.load import LoadedModel
from onnxprune.recover.closed_form import LayerFit
from onnxprune.recover.finetune import Finetuned
from onnxprune.report.channels import odd_channels_warning
from onnxprune.report.evaluation import metric_values, model_files, not_finite_warning
from onnxprune.report.inspection import uncounted_warning
from onnxprune.report.schema import (
    ClassStructure,
    CompressionReport,
    Fidelity,
    Figures,
    GroupChange,
    SkippedGroup,
)
from onnxprune.select.rankings import LASSO_METHODS, PRICED_METHODS


def compression_report(
    config: CompressConfig,
    source: LoadedModel,
    graph: PruningGraph,
    plan: Plan,
    model: onnx.ModelProto,
    original: Original,
    data: Calibration,
    evaluation: Evaluation | None,
    fits: Sequence[LayerFit],
    timings: Mapping[str, float],
    tuning: Finetuned | None = None,
    classes: ClassStructure | None = None,
    latencies: Latencies | None = None,
    depth_weight: float | None = None,
) -> CompressionReport:
    """What was done and measured; the counts are taken on ``model`` itself."""
    cost = original.count(model)
    fidelity = None
    if evaluation is not None and evaluation.fidelity is not None:
        fidelity = Fidelity(evaluation.fidelity.agreement, evaluation.fidelity.kl)
    return CompressionReport(
        model=model_files(source),
        before=Figures(
            macs=original.cost.macs,
            params=original.cost.params,
            bytes=original.bytes,
            latency_ms=None if latencies is None else latencies.before,
            metrics=metric_values(None if evaluation is None else evaluation.reference_metrics),
        ),
        after=Figures(
            macs=cost.macs,
            params=cost.params,
            bytes=original.stored(model),
            latency_ms=None if latencies is None else latencies.after,
            metrics=metric_values(None if evaluation is None else evaluation.metrics),
            fidelity=fidelity,
        ),
        method={
            **_selection(config, depth_weight),
            "plan": None if config.plan is None else str(config.plan),
            "recover": config.recover,
            "budgets": [str(budget) for budget in config.budgets],
            "max_drop": config.max_drop,
            "round_to": config.round_to,
            "max_group_ratio": _group_ratio(config),
            "seed": config.seed,
            "provider": data.provider,
            **({} if tuning is None else {"finetune": _tuning_figures(tuning)}),
        },
        data={
            "calibration": data.samples.describe(),
            "classes": list(data.names),
            "evaluation": None if data.evaluation is None else data.evaluation.describe(),
        },
        groups=tuple(
            GroupChange(
                group.name, len(group.units), int(np.count_nonzero(plan.keep[group.units])), group.nodes
            )
            for group in graph.groups
        ),
        skipped=tuple(SkippedGroup(item.name, item.reason, item.channels) for item in graph.skipped),
        timings_s={name: round(seconds, 3) for name, seconds in timings.items()},
        warnings=(
            *data.warnings,
            *uncounted_warning(graph),
            *_score_warnings(evaluation),
            *_fit_warnings(fits),
            *_tuning_warnings(tuning),
            *odd_channels_warning(graph, plan),
        ),
        classes=classes,
    )


def _selection(config: CompressConfig, depth_weight: float | None) -> dict[str, str | float | None]:
    """How channels were chosen; None for what had no part in it, such as all where a saved plan decided."""
    method = None if config.plan is not None else config.method
    return {
        "name": method,
        "data_term": config.data_term if method in LASSO_METHODS else None,
        "depth_weight": depth_weight if method in PRICED_METHODS else None,
    }


def _group_ratio(config: CompressConfig) -> float | None:
    """The largest share of a group that may go; None where a saved plan decides alone."""
    usual = MAX_GROUP_RATIO if config.plan is None else None
    return usual if config.max_group_ratio is None else config.max_group_ratio


def _score_warnings(evaluation: Evaluation | None) -> tuple[str, ...]:
    if evaluation is None:
        return ()
    return (
        *not_finite_warning("the original", evaluation.reference_metrics),
        *not_finite_warning("the smaller model", evaluation.metrics),
    )


def _fit_warnings(fits: Sequence[LayerFit]) -> tuple[str, ...]:
    left, unmoved = [fit for fit in fits if not fit.kept], [fit for fit in fits if fit.unmoved]
    warnings = []
    if left:
        count = f"{len(left)} of {len(fits)} layers"
        warnings.append(f"{count} kept their weights in recovery ({_some(left)}): {left[0].reason}")
    if unmoved:
        warnings.append(f"no layers were moved in front of {_some(unmoved)}: {unmoved[0].unmoved}")
    return tuple(warnings)


def _some(fits: Sequence[LayerFit]) -> str:
    return ", ".join(fit.layer for fit in fits[:3]) + (", ..." if len(fits) > 3 else "")


def _tuning_figures(tuning: Finetuned) -> dict[str, float | bool]:
    """How fine-tuning went; the held-out figures are the original's predictions met, in percent."""
    return {
        "kept": tuning.kept,
        "lr": tuning.lr,
        "steps": tuning.steps,
        "seconds": round(tuning.seconds, 1),
        "held_out_agreement_before": tuning.start.agreement,
        "held_out_agreement_after": tuning.best.agreement,
    }


def _tuning_warnings(tuning: Finetuned | None) -> tuple[str, ...]:
    return () if tuning is None or tuning.kept else (f"fine-tuning was not kept: {tuning.reason}",)
