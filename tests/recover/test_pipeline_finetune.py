"""Fine-tuning as the compression runs it: after the closed form, on all data that does not judge."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from onnxprune import compression, pipeline
from onnxprune.config import CompressConfig
from onnxprune.recover.closed_form import Recovery
from onnxprune.report.html import report_html
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
