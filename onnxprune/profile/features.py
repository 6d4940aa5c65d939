"""Pooled features of units, sample by sample: what the kernel data term compares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.evaluate.datasets import Dataset
from onnxprune.graph.structure import Group, Layer, PruningGraph
from onnxprune.profile.session import open_session
from onnxprune.progress import Progress

POOLED = 4
"""Values that a unit's feature map is averaged to, over equal stretches of its positions."""


def collect_features(
    graph: PruningGraph,
    groups: Sequence[Group],
    dataset: Dataset,
    *,
    provider: str = "auto",
    threads: int | None = None,
    progress: Progress,
) -> dict[str, npt.NDArray[np.float32]]:
    """Features (n, p, d) of each group's units where their first consumer reads them, by group name.

    Memory: n * d floats for each unit.
    """
    readers = {group.name: graph.layer(group.consumers[0]) for group in groups if group.consumers}
    taps = list(dict.fromkeys(layer.input for layer in readers.values()))
    session = open_session(graph.model, provider=provider, threads=threads, outputs=taps)
    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in readers}
    with progress.stage("features", len(dataset)) as stage:
        for batch in dataset.batches(32):
            values = session.run_torch(batch.inputs)
            for group in groups:
                if group.name in readers:
                    layer = readers[group.name]
                    pooled = _pooled(values[layer.input].float(), layer, group)
                    parts[group.name].append(pooled.cpu().numpy())
            stage.advance(len(batch.inputs))
    return {name: np.concatenate(chunks) for name, chunks in parts.items()}


def _pooled(source: Tensor, layer: Layer, group: Group) -> Tensor:
    """(n, p, d): positions averaged in equal stretches, several channels of one unit averaged."""
    front = source.movedim(layer.channel_axis, 1)
    maps = front.reshape(*front.shape[:2], -1)
    if maps.shape[2] > POOLED:
        maps = functional.adaptive_avg_pool1d(maps, POOLED)
    channels = np.flatnonzero(np.isin(layer.in_units, group.units))
    owner = torch.from_numpy(np.searchsorted(group.units, layer.in_units[channels])).to(maps.device)
    total = maps.new_zeros(len(maps), len(group.units), maps.shape[2])
    total.index_add_(1, owner, maps.index_select(1, torch.from_numpy(channels).to(maps.device)))
    return total / torch.bincount(owner, minlength=len(group.units)).clamp_min(1)[:, None]
