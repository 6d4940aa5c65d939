"""``--max-drop``: the search for the smallest model that keeps the accuracy, with and without a dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import pipeline
from onnxprune.errors import BudgetError

SAMPLE = Path(__file__).resolve().parent.parent / "samples/quickstart"
OPTIONS: dict[str, Any] = {"data": str(SAMPLE / "digits.npz"), "calibration": 64, "threads": 1}


def compress(**options: Any) -> pipeline.CompressionResult:
    return pipeline.compress(str(SAMPLE / "digits.onnx"), **OPTIONS, **options)


def test_a_dry_run_plans_what_the_search_would_write() -> None:
    """It once skipped the measurement, and printed the smallest plan there is."""
    dry, real = (compress(max_drop=2.0, dry_run=dry_run) for dry_run in (True, False))
    assert np.array_equal(dry.plan.keep, real.plan.keep)
    report = dry.report
    assert report.after.metrics["top1"] >= report.before.metrics["top1"] - 2.0
    assert report.after.macs < report.before.macs
    smallest = compress(macs=0.05, max_group_ratio=1.0, recover="none", dry_run=True)
    assert report.after.macs > smallest.report.after.macs


def test_with_a_budget_a_larger_loss_is_refused() -> None:
    with pytest.raises(BudgetError) as caught:
        compress(macs=0.05, max_group_ratio=1.0, recover="none", max_drop=1.0)
    assert caught.value.exit_code == 4 and caught.value.hint
