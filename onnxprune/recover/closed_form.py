"""Recovery in closed form: refit layer after layer, each on what the layers before really give.

In graph order, every layer behind the first removal is regressed on the pruned model's actual
inputs, towards what the original gives: its output, or at a residual join the original's join
minus the pruned model's shortcut (METHOD section 5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from onnxprune.graph.joins import Target, Targets
from onnxprune.graph.kept import Kept
from onnxprune.graph.plan import Plan, kept_indices
from onnxprune.graph.structure import Layer, PruningGraph
from onnxprune.graph.weights import (
    Affine,
    Constants,
    FloatArray,
    add_shift,
    can_shift,
    read_bias,
    read_matrix,
    write_matrix,
)
from onnxprune.profile.geometry import Geometry, choose_positions, layer_geometry
from onnxprune.progress import Progress
from onnxprune.recover.fit import Sums, fit_matrix
from onnxprune.recover.walker import Walker

ROWS = (8_192, 65_536)
"""Fewest and most rows aimed at for a layer."""

ROWS_PER_COLUMN = 64
"""Rows aimed at for each column of a layer's rows, between those bounds."""

HELD_OUT = 5
"""Every fifth sample helps to choose the ridge and decides whether a fit is kept."""


@dataclass(frozen=True)
class LayerFit:
    """What recovery did to one layer.

    Errors are mean squared, on held-out samples, with the layer's old weights and with the new
    ones; ``kept`` says whether the new ones stayed, ``reason`` why they did not.
    """

    layer: str
    error_before: float
    error_after: float
    ridge: float
    kept: bool
    reason: str = ""


@dataclass(frozen=True)
class Recovery:
    """A recovered model and what was done to each layer."""

    model: onnx.ModelProto
    fits: tuple[LayerFit, ...]


def recover(
    graph: PruningGraph,
    plan: Plan,
    pruned: onnx.ModelProto,
    inputs: npt.NDArray[np.generic],
    *,
    batch: int | None = None,
    provider: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress,
) -> Recovery:
    """Refit the weights of ``pruned`` (= rewrite(graph, plan)) on calibration ``inputs`` (n, ...).

    ``batch`` is the batch size that the model insists on, if any. ``pruned`` is not changed. Layers
    that can't be fitted, or whose fit raises the held-out error, keep their weights and say why.
    """
    if batch is not None:
        inputs = inputs[: len(inputs) // batch * batch]
    model = onnx.ModelProto()
    model.CopyFrom(pruned)
    original = Walker(graph.model, inputs, graph.shapes, batch=batch, provider=provider, threads=threads)
    changed = Walker(
        model, inputs, _pruned_shapes(graph, plan), batch=batch, provider=provider, threads=threads
    )
    run = _Run(
        graph, plan, original, changed, Constants(model), Targets(graph), torch.Generator().manual_seed(seed)
    )
    affected = _affected(graph, plan)
    fits = []
    with progress.stage("recover", len(affected)) as stage:
        for layer in affected:
            fits.append(run.refit(layer))
            stage.advance()
    return Recovery(model, tuple(fits))


def _affected(graph: PruningGraph, plan: Plan) -> list[Layer]:
    """Layers whose inputs differ from the original's: they read removed units, or follow what does."""
    tainted: set[str] = set()
    layers = {layer.output: layer for layer in graph.layers}
    found = []
    for node in graph.model.graph.node:
        hit = any(name in tainted for name in node.input)
        for name in node.output:
            layer = layers.get(name)
            if layer is not None and (hit or not kept_indices(plan.keep, layer.in_units).all()):
                found.append(layer)
                hit = True
        if hit:
            tainted.update(node.output)
    return found


def _pruned_shapes(graph: PruningGraph, plan: Plan) -> dict[str, tuple[int, ...]]:
    kept = Kept(graph, plan)
    return {name: kept.new_shape(name) for name in graph.shapes}


def _pruned_layer(layer: Layer, plan: Plan, node: onnx.NodeProto) -> Layer:
    """The layer as the pruned model has it."""
    groups = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    return replace(
        layer,
        groups=groups if layer.op == "Conv" else 1,
        in_units=layer.in_units[kept_indices(plan.keep, layer.in_units)],
        out_units=layer.out_units[kept_indices(plan.keep, layer.out_units)],
    )


@dataclass(frozen=True)
class _Run:
    """Both walkers and what is needed to fit one layer after another."""

    graph: PruningGraph
    plan: Plan
    original: Walker
    changed: Walker
    constants: Constants
    targets: Targets
    generator: torch.Generator

    def refit(self, layer: Layer) -> LayerFit:
        """Fit one layer on the activations at the current cut, and write its weights."""
        geometry = layer_geometry(self.graph, layer)
        if geometry is None:
            return LayerFit(layer.name, 0.0, 0.0, 0.0, False, f"a {layer.op} of this form is not fitted")
        self.original.advance(layer.name)
        self.changed.advance(layer.name)
        small = _pruned_layer(layer, self.plan, self.constants.node(layer.name))
        geometry = replace(geometry, groups=small.groups)
        target = self.targets.of(layer)
        stays = kept_indices(self.plan.keep, layer.out_units)
        affine = target.affine.select(stays)
        matrix = read_matrix(self.constants, small)
        bias = read_bias(self.constants, small, len(small.out_units))
        old = np.concatenate([matrix, bias.reshape(small.groups, 1, -1)], axis=1)
        constant = can_shift(self.constants, small, affine)
        fit, held_out = self._sums(small, geometry, target, affine, torch.from_numpy(stays), old, constant)
        start = torch.from_numpy(old if constant else matrix).to(fit.rows_rows.device)
        result = fit_matrix(fit, held_out, start, constant=constant)
        if result.helps:
            self._write(
                small, affine, target.shortcut is not None, old, result.matrix.cpu().numpy(), constant
            )
        return LayerFit(
            layer.name,
            result.error_before,
            result.error_after,
            result.ridge,
            result.helps,
            "" if result.helps else "the fit would raise the held-out error",
        )

    def _sums(
        self,
        layer: Layer,
        geometry: Geometry,
        target: Target,
        affine: Affine,
        stays: Tensor,
        old: FloatArray,
        constant: bool,
    ) -> tuple[Sums, Sums]:
        """Stream rows of the pruned model and targets of the original: (for fitting, held out).

        At a join the target is mapped back through the affine map: (join - shortcut - shift) / scale.
        """
        size = old.shape[1] if constant else old.shape[1] - 1
        device = self.changed.device
        both = [Sums.zeros(layer.groups, size, old.shape[2], device) for _ in range(2)]
        wanted = target.tensor if target.shortcut else layer.output
        sources = [layer.input, *([target.shortcut] if target.shortcut else [])]
        step = min(self.original.batch_size([wanted]), self.changed.batch_size(sources))
        rows = min(ROWS[1], max(ROWS[0], ROWS_PER_COLUMN * size))
        scale = torch.from_numpy(np.where(affine.dead, 1.0, affine.scale)).float().to(device)
        shift = torch.from_numpy(affine.shift).float().to(device)
        streams = zip(self.changed.stream(sources, step), self.original.stream([wanted], step), strict=True)
        for (samples, actual), (_, true) in streams:
            source = actual[layer.input].to(device)
            chosen = choose_positions(
                geometry.positions(source.shape), self.changed.samples, rows, self.generator
            )
            values = (
                true[wanted].to(device).index_select(layer.channel_axis, stays.nonzero()[:, 0].to(device))
            )
            goal = geometry.targets(values, chosen)
            if target.shortcut:
                goal = goal - geometry.targets(actual[target.shortcut].to(device), chosen)
                flat = goal.flatten(1)
                goal = ((flat - shift) / scale).view_as(goal)
            columns = geometry.rows(source, chosen)
            if constant:
                columns = torch.cat([columns, columns.new_ones(*columns.shape[:-1], 1)], dim=-1)
            number = torch.arange(samples.start, samples.stop).repeat_interleave(len(chosen)).to(device)
            held = number % HELD_OUT == HELD_OUT - 1
            both[0].add(columns[~held], goal[~held])
            both[1].add(columns[held], goal[held])
        return both[0], both[1]

    def _write(
        self, layer: Layer, affine: Affine, joined: bool, old: FloatArray, new: FloatArray, constant: bool
    ) -> None:
        """Write the fitted matrix, and the change of its constant, leaving out channels without effect."""
        matrix, shift = new, np.zeros(len(layer.out_units))
        if constant:
            matrix = new[:, :-1]
            shift = (new[:, -1] - old[:, -1]).reshape(-1)
        if joined:
            dead = affine.dead.reshape(layer.groups, 1, -1)
            matrix = np.where(dead, old[:, :-1], matrix)
            shift = np.where(affine.dead, 0.0, shift)
        write_matrix(self.constants, layer, matrix)
        if constant:
            add_shift(self.constants, layer, affine, shift)
