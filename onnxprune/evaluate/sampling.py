"""Which samples are used for what: class-balanced, deterministic subsets."""

from __future__ import annotations

import numpy as np

from onnxprune.errors import DataError
from onnxprune.graph.structure import IntArray


def calibration_indices(total: int, count: int, seed: int, labels: IntArray | None = None) -> IntArray:
    """Ascending indices of ``count`` out of ``total`` samples; all of them where there are fewer.

    With ``labels`` (total,), classes are represented as evenly as their sizes allow: no class has two
    samples more than another that still has samples left. The same arguments give the same indices.
    """
    if count < 1 or total < 1:
        raise DataError(f"{count} of {total} samples can't be drawn", hint="ask for at least one")
    if count >= total:
        return np.arange(total, dtype=np.int64)
    random = np.random.default_rng(seed)
    order = random.permutation(total)
    if labels is None:
        return np.sort(order[:count]).astype(np.int64)
    return np.sort(order[np.argsort(_turns(labels[order], random), kind="stable")[:count]]).astype(np.int64)


def _turns(labels: IntArray, random: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The turn at which each sample is drawn when classes take turns; ties are broken at random by class.

    Sample i of its class has turn i, plus the class's place in a random order as the fraction, so that
    which classes get the odd samples depends on the seed and not on the label numbers.
    """
    classes, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.argsort(inverse, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(starts, sizes)
    place = random.permutation(len(classes)) / len(classes)
    return np.asarray(rank + place[inverse], dtype=np.float64)
