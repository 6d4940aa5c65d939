"""Evaluation of a model file, alone or against another one, as a report."""

from __future__ import annotations

import os
import time
from typing import Any

from onnxprune.config import CompressConfig
from onnxprune.errors import DataError
from onnxprune.evaluate.datasets import load_dataset
from onnxprune.evaluate.metrics import Metrics, evaluate_against, predict
from onnxprune.evaluate.preprocess import preprocess_of
from onnxprune.evaluate.scores import scores_warnings
from onnxprune.io.load import LoadedModel, ModelSource, load
from onnxprune.profile.session import open_session
from onnxprune.progress import Progress
from onnxprune.report.schema import Comparison, EvaluationReport, Fidelity, ModelFiles


def evaluate(
    config: CompressConfig | ModelSource,
    *,
    against: ModelSource | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> EvaluationReport:
    """Accuracy of ``config.model`` on ``config.data``, and its fidelity to the model ``against``.

    Takes a configuration, or a model and the options by keyword, as `compress` does. The
    preprocessing is the configuration's, else the one recorded in the model's metadata, else in that of
    ``against``. Without labels there is only the fidelity; DataError where there is neither.
    """
    config = CompressConfig.of(config, options)
    start = time.perf_counter()
    loaded = load(config.model)
    original = None if against is None else load(against)
    recorded = preprocess_of(loaded.model)
    if recorded is None and original is not None:
        recorded = preprocess_of(original.model)
    session = open_session(loaded.model, provider=config.provider, threads=config.threads)
    reference = (
        None
        if original is None
        else open_session(original.model, provider=config.provider, threads=config.threads)
    )
    dataset = load_dataset(
        config.data,
        session.input,
        preprocess=config.preprocess,
        recorded=recorded,
        split=config.split,
        seed=config.seed,
        threads=config.threads,
    )
    if reference is None and dataset.labels is None:
        raise DataError(
            "the data has no labels, so accuracy can't be measured",
            hint="give labels, or compare with the original model (--against)",
        )
    result = evaluate_against(session, reference, dataset, progress=progress)
    warnings = list(dataset.warnings)
    if dataset.class_names:
        warnings += dataset.named_otherwise(predict(session, dataset.subset([0])).shape[1])
    warnings += scores_warnings(session, dataset)
    if result.metrics is None:
        warnings.append("the data has no labels: only the fidelity to the other model is measured")
    warnings += not_finite_warning("the model", result.metrics)
    comparison = None
    if original is not None and result.fidelity is not None:
        comparison = Comparison(
            model=model_files(original),
            metrics=metric_values(result.reference_metrics),
            fidelity=Fidelity(result.fidelity.agreement, result.fidelity.kl),
        )
    return EvaluationReport(
        model=model_files(loaded),
        data=dataset.describe(),
        metrics=metric_values(result.metrics),
        samples=len(dataset),
        against=comparison,
        timings_s={"total": time.perf_counter() - start},
        warnings=tuple(warnings),
    )


def not_finite_warning(which: str, metrics: Metrics | None) -> tuple[str, ...]:
    """A warning where some scores hold a NaN."""
    if metrics is None or not metrics.not_finite:
        return ()
    count = f"{metrics.not_finite} of {metrics.samples} samples"
    return (f"{which} gives scores that are not numbers for {count}: they count as wrong",)


def metric_values(metrics: Metrics | None) -> dict[str, float]:
    """``top1`` and, where there are five classes, ``top5``, in percent; empty for None."""
    if metrics is None:
        return {}
    values = {"top1": metrics.top1, "top5": metrics.top5}
    return {name: value for name, value in values.items() if value is not None}


def model_files(loaded: LoadedModel) -> ModelFiles:
    """Where a model came from, and its digest."""
    return ModelFiles(
        input=None if loaded.path is None else os.fspath(loaded.path), sha256={"input": loaded.sha256}
    )
