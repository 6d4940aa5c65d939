from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxprune.errors import DataError
from onnxprune.evaluate.sampling import calibration_indices

LABELS = hnp.arrays(np.int64, st.integers(2, 60), elements=st.integers(0, 6))


@settings(max_examples=100, deadline=None)
@given(labels=LABELS, seed=st.integers(0, 1000), data=st.data())
def test_classes_are_as_even_as_their_sizes_allow(labels: np.ndarray, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(labels) + 3))
    chosen = calibration_indices(len(labels), count, seed, labels)
    assert len(chosen) == min(count, len(labels))
    assert np.all(np.diff(chosen) > 0) and chosen.dtype == np.int64
    assert np.array_equal(chosen, calibration_indices(len(labels), count, seed, labels))
    drawn = {label: int((labels[chosen] == label).sum()) for label in np.unique(labels)}
    left = {label for label in drawn if drawn[label] < (labels == label).sum()}
    for label in left:
        assert max(drawn.values()) - drawn[label] <= 1


def test_seeds_choose_different_samples_and_classes() -> None:
    labels = np.repeat(np.arange(20), 5)
    draws = {tuple(calibration_indices(100, 30, seed, labels)) for seed in range(10)}
    assert len(draws) == 10
    # With fewer samples than classes, no class is favoured for its number.
    counts = np.zeros(20)
    for seed in range(200):
        counts[labels[calibration_indices(100, 5, seed, labels)]] += 1
    assert counts.sum() == 1000
    assert counts.min() > 20 and counts.max() < 90


def test_without_labels_a_plain_draw() -> None:
    chosen = calibration_indices(1000, 100, 0)
    assert len(np.unique(chosen)) == 100 and chosen.max() > 800 and chosen.min() < 200
    assert np.array_equal(calibration_indices(5, 9, 0), np.arange(5))
    for total, count in ((0, 1), (5, 0)):
        with pytest.raises(DataError):
            calibration_indices(total, count, 0)
