"""The JSON report: schema version 1, strict JSON, nothing lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.report.encode import report_dict, report_json
from onnxprune.report.schema import Figures, ModelFiles
from onnxprune.version import package_version
from tests.report.examples import compression


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def parsed(text: str) -> Any:
    return json.loads(text, parse_constant=refuse)


def test_the_compression_report_has_the_contracts_names() -> None:
    report = parsed(report_json(compression()))
    assert set(report) >= {
        "schema", "onnxprune", "model", "before", "after", "method", "data", "groups", "skipped",
        "timings_s", "warnings",
    }  # fmt: skip
    assert (report["schema"], report["onnxprune"]) == (1, package_version())
    assert set(report["model"]) == {"input", "output", "sha256"}
    assert set(report["before"]) == {"macs", "params", "bytes", "latency_ms", "metrics"}
    assert set(report["after"]) == set(report["before"]) | {"fidelity"}
    assert set(report["after"]["fidelity"]) == {"agreement", "kl"}
    assert set(report["before"]["metrics"]) == {"top1", "top5"}
    assert set(report["groups"][0]) == {"name", "channels_before", "channels_after", "nodes"}
    assert set(report["skipped"][0]) >= {"name", "reason"}


def test_what_was_not_measured_is_left_out() -> None:
    report = replace(compression(), before=Figures(1, 2, 3), classes=None)
    plain = parsed(report_json(report))
    assert plain["before"] == {"macs": 1, "params": 2, "bytes": 3, "metrics": {}}
    assert "classes" not in plain


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_numbers_that_are_not_finite_become_null(value: float) -> None:
    report = replace(compression(), timings_s={"x": value})
    assert parsed(report_json(report))["timings_s"] == {"x": None}


def test_numpy_values_and_paths_become_plain() -> None:
    method = {"a": np.int64(3), "b": np.float32(0.5), "c": np.array([1, 2]), "d": Path("x/y"), "e": (1, "z")}
    plain = parsed(report_json(replace(compression(), method=method)))
    assert plain["method"] == {"a": 3, "b": 0.5, "c": [1, 2], "d": "x/y", "e": [1, "z"]}


def test_the_text_is_the_dictionary_and_ends_its_line() -> None:
    report = replace(compression(), model=ModelFiles("Modell-ä.onnx"))
    text = report_json(report)
    assert parsed(text) == parsed(json.dumps(report_dict(report)))
    assert text.endswith("}\n") and "Modell-ä" in text
