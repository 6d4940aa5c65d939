"""Class-wise statistics of what layers read, streamed from the original model.

For each layer that reads prunable units: the Gram matrix of its input rows, and for each class the
Gram matrix of what the units contribute to its output. Nothing grows with the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnxprune.errors import DataError
from onnxprune.evaluate.datasets import Dataset
from onnxprune.graph.joins import Target, Targets
from onnxprune.graph.structure import FIXED, IntArray, Layer, PruningGraph
from onnxprune.graph.units import is_depthwise
from onnxprune.graph.weights import Constants, FloatArray, read_bias, read_matrix
from onnxprune.profile.geometry import Geometry, choose_positions, layer_geometry
from onnxprune.profile.gram import add_gram, gram_matrix, mirror
from onnxprune.profile.providers import algebra_device
from onnxprune.profile.session import open_session
from onnxprune.progress import Progress

ROWS = 32_768
"""Rows aimed at for each layer."""

_TAP_BYTES = 384 << 20
_GRAM_BYTES = 1 << 30


@dataclass(frozen=True)
class LayerStatistics:
    """What one layer reads, over all calibration rows (r of them) and for each class.

    ``units`` (u,) are the prunable units on its input channels, and ``columns`` (G, d) the position
    in ``units`` of each matrix row, -1 where the channel is fixed. ``gram`` (G, d + 1, d + 1) is the
    sum of outer products of the rows with a one appended; ``matrix`` (G, d + 1, O) maps rows to the
    target's scale. ``contributions`` (C, u, u) holds <Z_k, Z_l> for each class, where Z_k is what unit k
    adds to the output (METHOD section 3), and ``responses`` (C, G * O) the classes' mean outputs.
    ``energy`` is the summed variance of the target tensor over its channels, for each row. The rows of
    one sample resemble each other: ``independent`` is how many independent ones they are worth, by the
    variance of the samples' means (the effective size of a cluster sample, Kish 1965). ``depth`` is the share
    of the model's layers that come before this one, 0 for the first.
    """

    layer: Layer
    units: IntArray
    columns: IntArray
    gram: Tensor
    matrix: Tensor
    contributions: npt.NDArray[np.float32]
    responses: FloatArray
    energy: float
    rows: int
    independent: float
    depth: float


@dataclass
class _Accumulator:
    """One layer's running sums."""

    layer: Layer
    geometry: Geometry
    target: Target
    units: IntArray
    columns: IntArray
    matrix: Tensor
    gram: Tensor
    of_class: Tensor
    contributions: Tensor
    responses: Tensor
    class_rows: Tensor
    moments: Tensor
    means: Tensor

    def add(
        self,
        label: int,
        source: Tensor,
        target: Tensor,
        count: int,
        samples: int,
        generator: torch.Generator,
    ) -> None:
        """Take one batch of ``count`` samples of one class, out of ``samples`` in all."""
        per_sample = self.geometry.positions(source.shape)
        chosen = choose_positions(per_sample, samples, ROWS, generator)
        rows = _with_ones(self.geometry.rows(source, chosen)).transpose(0, 1)
        add_gram(self.of_class, rows)
        self.responses[label] += (rows.sum(1, keepdim=True) @ self.matrix).reshape(-1)
        self.class_rows[label] += rows.shape[1]
        clusters = count if rows.shape[1] % count == 0 else len(source)
        means = rows[..., :-1].reshape(rows.shape[0], clusters, -1, rows.shape[2] - 1).mean(2)
        self.means[0] += clusters
        self.means[1] += means.double().square().sum()
        values = self.geometry.targets(target, chosen).flatten(1)
        self.moments[0] += values.sum(0)
        self.moments[1] += values.square().sum(0)

    def end_class(self, label: int) -> None:
        """Reduce the class's Gram matrix to contributions, and add it to the whole."""
        mirror(self.of_class)
        size = len(self.units)
        for group, columns in enumerate(self.columns):
            index = torch.from_numpy(np.append(np.where(columns < 0, size, columns), size)).to(
                self.gram.device
            )
            product = gram_matrix(self.matrix[group].T[None])[0].mul_(self.of_class[group])
            rows = torch.zeros(size + 1, len(index), dtype=product.dtype, device=product.device)
            rows.index_add_(0, index, product)
            square = torch.zeros(size + 1, size + 1, dtype=product.dtype, device=product.device)
            square.index_add_(1, index, rows)
            self.contributions[label] += square[:size, :size]
        self.gram += self.of_class
        self.of_class.zero_()

    def finish(self, depth: float) -> LayerStatistics:
        """The statistics, their sums complete, of a layer at that ``depth``.

        Raises DataError where they went beyond what single precision holds.
        """
        if not bool(self.gram.isfinite().all() and self.contributions.isfinite().all()):
            raise DataError(
                f"the squares of what '{self.layer.name}' reads go beyond single precision",
                hint="some calibration sample is far from what the model was made for: leave it out",
            )
        rows = self.class_rows.sum()
        energy = float((self.moments[1] / rows - (self.moments[0] / rows).square()).clamp_min(0).sum())
        return LayerStatistics(
            self.layer,
            self.units,
            self.columns,
            self.gram,
            self.matrix,
            self.contributions.cpu().numpy(),
            (self.responses / self.class_rows.clamp_min(1)[:, None]).cpu().double().numpy(),
            energy,
            int(rows),
            self._independent(),
            depth,
        )

    def _independent(self) -> float:
        """The rows' effective number: that of clusters, times a row's variance over a cluster mean's."""
        rows, clusters = float(self.class_rows.sum()), float(self.means[0])
        mean_square = float((self.gram[:, -1, :-1].double() / rows).square().sum())
        total = float(self.gram.diagonal(dim1=1, dim2=2)[:, :-1].double().sum()) / rows - mean_square
        between = float(self.means[1]) / clusters - mean_square
        if between <= max(total, 0.0) * clusters / rows:
            return rows
        return max(clusters, clusters * total / between)


def collect_statistics(
    graph: PruningGraph,
    dataset: Dataset,
    classes: IntArray,
    *,
    provider: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress,
) -> dict[str, LayerStatistics]:
    """Statistics of every layer that reads prunable units, by name.

    ``classes`` (n,) numbers each sample's class, 0 to C - 1. Layers are tapped in sets whose Gram
    matrices fit into about 1 GiB, each set with one pass over the data; batches hold samples of one
    class, as many as keep the tapped tensors under 384 MiB.
    """
    wanted = [
        (layer, geometry)
        for layer in graph.layers
        if (layer.in_units != FIXED).any()
        and not is_depthwise(layer)
        and (geometry := layer_geometry(graph, layer)) is not None
    ]
    targets, constants = Targets(graph), Constants(graph.model)
    depths = {layer.name: place / len(graph.layers) for place, layer in enumerate(graph.layers)}
    sets = list(_bounded_sets(wanted))
    found: dict[str, LayerStatistics] = {}
    with progress.stage("profile", len(sets) * len(dataset)) as stage:
        for chosen in sets:
            taps = list(
                dict.fromkeys(name for layer, _ in chosen for name in (layer.input, targets.of(layer).tensor))
            )
            session = open_session(graph.model, provider=provider, threads=threads, outputs=taps)
            device = algebra_device(session.provider)
            running = [
                _start(layer, geometry, targets.of(layer), constants, int(classes.max()) + 1, device)
                for layer, geometry in chosen
            ]
            generator = torch.Generator().manual_seed(seed)
            size = max(1, _TAP_BYTES // max(1, sum(_bytes(graph.shapes[name]) for name in taps)))
            for label in np.unique(classes):
                for batch in dataset.batches(min(size, 256), np.flatnonzero(classes == label)):
                    values = session.run_torch(batch.inputs)
                    for entry in running:
                        source, target = values[entry.layer.input], values[entry.target.tensor]
                        entry.add(
                            int(label),
                            source.float(),
                            target.float(),
                            len(batch.inputs),
                            len(dataset),
                            generator,
                        )
                    stage.advance(len(batch.inputs))
                for entry in running:
                    entry.end_class(int(label))
            found |= {entry.layer.name: entry.finish(depths[entry.layer.name]) for entry in running}
    return found


def _start(
    layer: Layer, geometry: Geometry, target: Target, constants: Constants, classes: int, device: torch.device
) -> _Accumulator:
    units = np.unique(layer.in_units[layer.in_units != FIXED])
    position = np.where(layer.in_units == FIXED, -1, np.searchsorted(units, layer.in_units))
    columns = np.repeat(position, geometry.taps).reshape(layer.groups, -1)
    matrix = read_matrix(constants, layer)
    outputs = layer.groups * matrix.shape[2]
    bias = read_bias(constants, layer, outputs).reshape(layer.groups, 1, -1)
    scale = np.broadcast_to(target.affine.scale, (outputs,)).reshape(layer.groups, 1, -1)
    scaled = torch.from_numpy(np.concatenate([matrix, bias], axis=1) * scale).float().to(device)
    rows = matrix.shape[1] + 1
    gram = torch.zeros(layer.groups, rows, rows, device=device)
    return _Accumulator(
        layer, geometry, target, units, columns, scaled, gram, torch.zeros_like(gram),
        torch.zeros(classes, len(units), len(units), device=device),
        torch.zeros(classes, outputs, device=device),
        torch.zeros(classes, device=device),
        torch.zeros(2, outputs, dtype=torch.float64, device=device),
        torch.zeros(2, dtype=torch.float64, device=device),
    )  # fmt: skip


def _bounded_sets(layers: Sequence[tuple[Layer, Geometry]]) -> Iterator[list[tuple[Layer, Geometry]]]:
    chosen: list[tuple[Layer, Geometry]] = []
    used = 0
    for layer, geometry in layers:
        size = 8 * layer.groups * (len(layer.in_units) // layer.groups * geometry.taps) ** 2
        if chosen and used + size > _GRAM_BYTES:
            yield chosen
            chosen, used = [], 0
        chosen.append((layer, geometry))
        used += size
    if chosen:
        yield chosen


def _with_ones(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)


def _bytes(shape: Sequence[int]) -> int:
    return 4 * int(np.prod(shape))


Statistics = Mapping[str, LayerStatistics]
