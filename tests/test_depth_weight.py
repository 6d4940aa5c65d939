"""``--depth-weight`` from end to end: later layers keep more, earlier ones less, within the same budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune import pipeline
from onnxprune.errors import UsageError

SAMPLE = Path(__file__).resolve().parent.parent / "samples/quickstart"


@pytest.mark.parametrize("method", ("stlp-ib", "obs"))
def test_later_layers_keep_more(method: str) -> None:
    kept = []
    for weight in (0.01, 1.0, 100.0):
        report = pipeline.compress(
            str(SAMPLE / "digits.onnx"), data=str(SAMPLE / "digits.npz"), calibration=64, threads=1,
            macs=0.5, method=method, recover="none", dry_run=True, depth_weight=weight,
        ).report  # fmt: skip
        kept.append([group.channels_after for group in report.groups])
    # The last group feeds the classifier, which costs next to nothing.
    earlier, later = np.array(kept)[:, 1:3].T
    assert (np.diff(earlier) < 0).all() and (np.diff(later) > 0).all(), kept


def test_it_is_refused_where_no_losses_are_compared() -> None:
    with pytest.raises(UsageError, match="--depth-weight is of no use with --method l1") as caught:
        pipeline.compress(
            str(SAMPLE / "digits.onnx"),
            data=str(SAMPLE / "digits.npz"),
            macs=0.5,
            method="l1",
            depth_weight=2.0,
        )
    assert "stlp-ib" in str(caught.value.hint)
