"""Fine-tuning as the compression runs it: after the closed form, on all data that does not judge."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import compression, pipeline
from onnxprune.config import CompressConfig
from onnxprune.errors import NoGradientError, UsageError
from onnxprune.recover.closed_form import Recovery
from onnxprune.report.html import report_html
from tests.model_builder import Builder
from tests.recover.test_finetune import colours, net

OPTIONS = {"macs": 0.4, "calibration": 32, "provider": "cpu", "threads": 1}


def images(n: int = 160) -> Any:
    return colours(n)


def test_compress_fine_tunes_and_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So small a net is recovered in closed form all but exactly; without it there is something to gain.
    monkeypatch.setattr(
        compression, "recover", lambda graph, plan, pruned, *rest, **options: Recovery(pruned, ())
    )
    model = net()
    plain = pipeline.compress(model, data=images(), eval_data=images(20), **OPTIONS)
    tuning = {"recover": "finetune", "epochs": 8, "lr": 3e-3, "checkpoint": tmp_path}
    tuned = pipeline.compress(model, data=images(), eval_data=images(20), **tuning, **OPTIONS)
    figures = tuned.report.method["finetune"]
    assert figures["kept"] and figures["steps"] == 8 * 8
    assert figures["held_out_agreement_after"] >= figures["held_out_agreement_before"]
    assert (tmp_path / "finetune.safetensors").is_file()
    assert list(tuned.model.graph.node) == list(plain.model.graph.node)
    assert tuned.model.graph.initializer != plain.model.graph.initializer
    assert "fine-tune" in tuned.report.timings_s
    assert "held_out_agreement_after" in report_html(tuned.report)
    assert "finetune" not in plain.report.method


def test_a_run_goes_on_without_selection_and_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU both differ in the last bits, and the checkpoint would be of another start."""
    model, tuning = net(), {"recover": "finetune", "epochs": 2, "lr": 1e-3, "checkpoint": tmp_path}
    first = pipeline.compress(model, data=images(), eval_data=images(20), **tuning, **OPTIONS)

    def never(*given: object, **options: object) -> None:
        raise AssertionError("the start was kept")

    with monkeypatch.context() as patch:
        patch.setattr(compression, "recover", never)
        patch.setattr(compression, "collect_statistics", never)
        again = pipeline.compress(model, data=images(), eval_data=images(20), **tuning, **OPTIONS)
    assert first.model.SerializeToString() == again.model.SerializeToString()
    assert (first.plan.keep == again.plan.keep).all()
    assert first.report.classes == again.report.classes and first.report.classes is not None
    methods = [dict(result.report.method) for result in (first, again)]
    tunings = [method.pop("finetune") for method in methods]
    assert methods[0] == methods[1] and tunings[0]["steps"] == tunings[1]["steps"]
    assert first.report.warnings == again.report.warnings
    labelled = (images(), np.arange(160) % 2)
    for other in ({"macs": 0.5}, {"seed": 1}, {"data": images() // 2}, {"data": labelled}, {"method": "l1"}):
        options = {"data": images(), "eval_data": images(20), **tuning, **OPTIONS, **other}
        with pytest.raises(UsageError, match="of another run"):
            pipeline.compress(model, **options)
    for damage in (b"nothing of the kind", b""):
        (tmp_path / "start.onnx").write_bytes(damage)
        with pytest.raises(UsageError, match="not a start of fine-tuning"):
            pipeline.compress(model, data=images(), eval_data=images(20), **tuning, **OPTIONS)


def test_a_run_that_goes_on_is_verified_if_asked_and_a_dry_one_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"data": images(), "recover": "finetune", "epochs": 1, "lr": 1e-3, "checkpoint": tmp_path}
    pipeline.compress(net(), dry_run=True, max_drop=100.0, **options, **OPTIONS)
    assert not list(tmp_path.iterdir())
    pipeline.compress(net(), **options, **OPTIONS)
    seen: list[object] = []
    monkeypatch.setattr(compression, "verify", lambda graph, plan, pruned, **rest: seen.append(plan))
    pipeline.compress(net(), verify=True, **options, **OPTIONS)
    assert len(seen) == 1


def test_training_never_sees_what_judges() -> None:
    model = net()
    seen = []

    def spy(original: object, pruned: object, dataset: object, *rest: object, **options: object) -> object:
        seen.append(dataset)
        return real(original, pruned, dataset, *rest, **options)

    real = compression.finetune
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "finetune", spy)
        for extra in ({}, {"eval_data": images(20) // 2}):
            tuning = {"recover": "finetune", "epochs": 1, "lr": 1e-4}
            options = {"model": model, "data": images(), **tuning, **OPTIONS, **extra}
            config = CompressConfig.from_options(options)
            pipeline.compress(dataclasses.replace(config, seed=1))
    without, given = seen
    assert len(without) == 32
    assert len(given) == 160


def test_what_has_no_gradients_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **options: object) -> None:
        raise AssertionError("statistics were gathered")

    monkeypatch.setattr("onnxprune.compression.collect_statistics", fail)
    b = Builder()
    x = b.relu(b.conv(b.input((1, 2, 6, 6), dynamic=True), 8, 3))
    sequence = b.transpose(b.reshape(x, 0, 8, 36), 2, 0, 1)
    weights = [b.weight(1, 16, 8), b.weight(1, 16, 4)]
    y = b.shaped(b.node("LSTM", [sequence, *weights], hidden_size=4), 36, 1, 1, 4)
    model = b.model(b.gemm(b.flatten(b.transpose(y, 2, 0, 1, 3)), 3))
    inputs = np.random.default_rng(0).standard_normal((24, 2, 6, 6)).astype(np.float32)
    with pytest.raises(NoGradientError, match="no gradients through LSTM"):
        pipeline.compress(model, data=inputs, macs="80%", recover="finetune", epochs=1)
