"""``--depth-weight`` from end to end: later layers keep more, earlier ones less, within the same budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import compression, pipeline
from onnxprune.config import CompressConfig
from onnxprune.depth import MOST_MACS, WEIGHTS, closest, depth_weights
from onnxprune.errors import BudgetError, UsageError
from onnxprune.evaluate.metrics import fidelity
from onnxprune.pipeline import CompressionResult

SAMPLE = Path(__file__).resolve().parent.parent / "samples/quickstart"


def compress(**options: Any) -> CompressionResult:
    return pipeline.compress(
        str(SAMPLE / "digits.onnx"), data=str(SAMPLE / "digits.npz"), threads=1, **{"macs": 0.5, **options}
    )


@pytest.mark.parametrize("method", ("stlp-ib", "obs"))
def test_later_layers_keep_more(method: str) -> None:
    kept = []
    for weight in (0.01, 1.0, 100.0):
        report = compress(
            calibration=64, method=method, recover="none", dry_run=True, depth_weight=weight
        ).report
        kept.append([group.channels_after for group in report.groups])
    # The last group feeds the classifier, which costs next to nothing.
    earlier, later = np.array(kept)[:, 1:3].T
    assert (np.diff(earlier) < 0).all() and (np.diff(later) > 0).all(), kept


def test_select_takes_it_as_compress_does() -> None:
    graph = pipeline.analyze_graph(str(SAMPLE / "digits.onnx"))
    plans = [
        pipeline.select(graph, None, 0.5, method="l1", depth_weight=weight).keep.sum()
        for weight in ("auto", 1)
    ]
    assert plans[0] == plans[1]
    with pytest.raises(UsageError, match="--depth-weight is of no use"):
        pipeline.select(graph, None, 0.5, method="l1", depth_weight=2.0)


def test_it_is_refused_where_no_losses_are_compared() -> None:
    with pytest.raises(UsageError, match="--depth-weight is of no use with --method l1") as caught:
        compress(method="l1", depth_weight=2.0)
    assert "stlp-ib" in str(caught.value.hint)


@pytest.mark.parametrize("seed", (0, 1, 2))
def test_auto_takes_what_stays_closer_on_the_calibration_samples(seed: int) -> None:
    """Every sample calibrates, so that the divergence in the report is the one that decides."""
    shared = {"calibration": 10_000, "macs": 0.3, "seed": seed}
    tried = {weight: compress(**shared, depth_weight=weight) for weight in WEIGHTS}
    auto = compress(**shared)
    divergence = {
        weight: result.report.after.fidelity.kl
        for weight, result in tried.items()
        if result.report.after.fidelity is not None
    }
    taken = auto.report.method["depth_weight"]
    assert taken in WEIGHTS
    assert auto.model.SerializeToString() == tried[taken].model.SerializeToString()
    assert taken == WEIGHTS[0] or divergence[taken] < divergence[WEIGHTS[0]]


@pytest.mark.parametrize("index", (0, 1))
def test_the_plan_is_that_of_the_weight_that_is_closest(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "closest", lambda divergences: index)
    wanted = compress(calibration=100, depth_weight=WEIGHTS[index], dry_run=True)
    auto = compress(calibration=100, dry_run=True)
    assert auto.report.method["depth_weight"] == WEIGHTS[index]
    assert (auto.plan.keep == wanted.plan.keep).all()


def test_a_weight_without_a_plan_leaves_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    real = compression.plan_for
    given = iter((True, False))

    def failing(*arguments: Any) -> Any:
        if next(given):
            raise BudgetError("not met this time")
        return real(*arguments)

    monkeypatch.setattr(compression, "plan_for", failing)
    assert compress(calibration=100, dry_run=True).report.method["depth_weight"] == WEIGHTS[1]
    given = iter((True, True))
    with pytest.raises(BudgetError, match="not met this time"):
        compress(calibration=100, dry_run=True)


def test_a_dry_run_has_the_plan_of_the_run(tmp_path: Path) -> None:
    real, dry = (compress(calibration=200, macs=0.3, dry_run=dry) for dry in (False, True))
    assert (real.plan.keep == dry.plan.keep).all()
    assert dry.report.method["depth_weight"] == real.report.method["depth_weight"]
    assert dry.report.after.fidelity is None


def test_a_drop_is_searched_among_both_weights() -> None:
    result = compress(macs=None, max_drop=3.0, calibration=200)
    scores = fidelity(result.model, str(SAMPLE / "digits.onnx"), pipeline_data())
    assert result.report.method["depth_weight"] in WEIGHTS
    assert scores.agreement > 90.0


def pipeline_data() -> Any:
    from onnxprune.evaluate.datasets import load_dataset
    from onnxprune.profile.session import open_session

    spec = open_session(str(SAMPLE / "digits.onnx")).input
    return load_dataset(str(SAMPLE / "digits.npz"), spec)


def test_weights_are_tried_only_where_that_is_cheap_and_tells_something() -> None:
    graph = pipeline.analyze_graph(str(SAMPLE / "digits.onnx"))
    config = CompressConfig(model=graph.model)
    macs = pipeline.inspect(str(SAMPLE / "digits.onnx")).cost.macs
    assert depth_weights(graph, config, int(MOST_MACS // macs)) == WEIGHTS
    assert depth_weights(graph, config, int(MOST_MACS // macs) + 1) == WEIGHTS[:1]
    assert depth_weights(graph, CompressConfig(model=graph.model, recover="none"), 10) == WEIGHTS[:1]
    assert depth_weights(graph, CompressConfig(model=graph.model, method="l1"), 10) == WEIGHTS[:1]
    assert depth_weights(graph, CompressConfig(model=graph.model, depth_weight=2.0), 10) == (2.0,)


def test_the_first_stays_unless_another_is_closer_by_more_than_the_standard_error() -> None:
    noise = np.random.default_rng(0).standard_normal(400)
    first = np.full(400, 1.0)
    error = noise.std(ddof=1) / 20
    noise -= noise.mean()
    assert closest([first, first]) == 0
    assert closest([first, first + noise - 0.9 * error]) == 0
    assert closest([first, first + noise - 1.1 * error]) == 1
    assert closest([first, first + noise + 1.1 * error]) == 0
    assert closest([first, first - 0.1, first - 0.2]) == 2
    assert closest([first]) == 0


def test_the_model_with_fewer_scores_that_are_not_numbers_goes_first() -> None:
    first, second = np.full(10, 1.0), np.full(10, 0.5)
    second[3] = np.nan
    assert closest([first, second]) == 0
    assert closest([second, first]) == 1
    assert closest([second, np.where(np.isnan(second), second, 0.1)]) == 1
    assert closest([first, np.full(10, np.nan)]) == 0
    assert closest([np.full(10, np.nan), first]) == 1
