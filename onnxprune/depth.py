"""How much dearer an error is in a late layer than in an early one, where nobody says: by trial.

The fits behind an early layer mend part of its error (`LassoSettings`). How much differs from network to
network, and no loss of the selection tells. So where that is cheap, plans with each of a few weights are made
and recovered, and the one whose model stays closest to the original on the calibration samples is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.config import CompressConfig
from onnxprune.graph.structure import PruningGraph
from onnxprune.profile.cost import CostModel
from onnxprune.select.rankings import PRICED_METHODS

WEIGHTS = (1.0, 3.0)
"""The weights tried; the first is taken where none is."""

MOST_MACS = 5e10
"""Most multiply-accumulates of one pass over the calibration samples with which weights are tried."""


def depth_weights(graph: PruningGraph, config: CompressConfig, samples: int) -> tuple[float, ...]:
    """The weights to try: that of ``config``; with ``auto`` several, if recovery on ``samples`` is cheap."""
    if config.depth_weight != "auto":
        return (config.depth_weight,)
    costs = CostModel.of(graph)
    cheap = samples * costs.macs(np.ones(costs.unit_count, dtype=np.bool_)) <= MOST_MACS
    return WEIGHTS if cheap and config.recover != "none" and config.method in PRICED_METHODS else WEIGHTS[:1]


def closest(divergences: Sequence[npt.NDArray[np.float64]]) -> int:
    """Which of several models has the lowest divergences (n,) from the original, sample by sample.

    The first of them, unless the mean difference to another's is more than its standard error. A model with
    fewer samples without a finite divergence (NaN scores) goes first.
    """
    best = 0
    for index in range(1, len(divergences)):
        old, new = divergences[best], divergences[index]
        lost = int(np.isnan(new).sum()) - int(np.isnan(old).sum())
        change = (new - old)[np.isfinite(new - old)]
        closer = len(change) > 1 and -change.mean() > change.std(ddof=1) / np.sqrt(len(change))
        if lost < 0 or (lost == 0 and closer):
            best = index
    return best
