"""Recovery in closed form: refit layer after layer, each on what the layers before really give.

In graph order, every layer behind the first removal is regressed on the pruned model's actual
inputs, towards what the original gives: its output, or at a residual join the original's join
minus the pruned model's shortcut (METHOD section 5), as far as the activation behind lets it be seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from onnxprune.graph.fold import captured
from onnxprune.graph.joins import Target, Targets
from onnxprune.graph.kept import Kept
from onnxprune.graph.plan import Plan, kept_indices
from onnxprune.graph.structure import Layer, PruningGraph
from onnxprune.graph.units import is_depthwise
from onnxprune.graph.weights import (
    Affine,
    Constants,
    FloatArray,
    add_shift,
    can_shift,
    read_bias,
    read_matrix,
    rounded_matrix,
    write_matrix,
)
from onnxprune.profile.geometry import Geometry, choose_positions, layer_geometry
from onnxprune.profile.session import open_session
from onnxprune.progress import Progress
from onnxprune.recover.clipped import fit_clipped
from onnxprune.recover.fit import Sums, fit_matrix
from onnxprune.recover.rows import Response, Rows
from onnxprune.recover.walker import Walker

ROWS = (16_384, 65_536)
"""Fewest and most rows aimed at for a layer."""

ROWS_PER_COLUMN = 128
"""Rows aimed at for each column of a layer's rows, between those bounds."""

_ROW_BYTES = 1 << 30
"""Most bytes of rows and targets held for a layer."""

HELD_OUT = 10
"""Every tenth sample chooses the ridge, decides whether a fit is kept, and joins none."""


@dataclass(frozen=True)
class LayerFit:
    """What recovery did to one layer.

    Errors are mean squared at the layer's target (the residual join that it feeds, or what follows it
    affinely), summed over channels, on held-out samples, with the layer's old weights and with the
    new ones; ``kept`` says whether the new ones stayed, ``reason`` why they did not.
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
    new_bias: bool = True,
    provider: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress,
) -> Recovery:
    """Refit the weights of ``pruned`` (= rewrite(graph, plan)) on calibration ``inputs`` (n, ...).

    ``batch`` is the batch size that the model insists on, where the caller knows it: samples beyond
    its last multiple are left out. ``new_bias`` lets a layer without any place for a constant have a
    bias, which adds parameters. ``pruned`` is not changed. Layers that can't be fitted, or whose
    fit raises the held-out error, keep their weights and say why.
    """
    if batch is None:
        session = open_session(graph.model, provider=provider, threads=threads)
        session.run_batched(inputs[:2])  # some models declare any batch but only take one sample
        batch = session.batch
    if batch is not None:
        inputs = _whole_batches(inputs, batch)
    model = onnx.ModelProto()
    model.CopyFrom(pruned)
    original = Walker(graph.model, inputs, graph.shapes, batch=batch, provider=provider, threads=threads)
    changed = Walker(
        model, inputs, _pruned_shapes(graph, plan), batch=batch, provider=provider, threads=threads
    )
    generator = torch.Generator().manual_seed(seed)
    run = _Run(graph, plan, original, changed, Constants(model), Targets(graph), generator, new_bias)
    affected = _affected(graph, plan)
    fits = []
    with progress.stage("recover", len(affected)) as stage:
        for layer in affected:
            fits.append(run.refit(layer))
            stage.advance()
    return Recovery(model, tuple(fits))


def _whole_batches(inputs: npt.NDArray[np.generic], batch: int) -> npt.NDArray[np.generic]:
    """As many samples as fill whole batches; one batch at least, filled by repeating them."""
    count = len(inputs) // batch * batch or batch
    return inputs[np.arange(count) % len(inputs)]


def _affected(graph: PruningGraph, plan: Plan) -> list[Layer]:
    """Layers whose inputs differ from the original's: they read removed units, or follow what does."""
    tainted: set[str] = set()
    layers = {layer.output: layer for layer in graph.layers}
    found = []
    for node in graph.model.graph.node:
        sources = [*node.input, *captured(node)]
        layer = layers.get(node.output[0])
        hit = any(name in tainted for name in sources)
        if layer is None or is_depthwise(layer):
            # Units that end here were summed over, as in a product of two activations.
            hit = hit or bool(_removed(graph, plan, sources) - _removed(graph, plan, node.output))
        else:
            hit = hit or not kept_indices(plan.keep, layer.in_units).all()
        if hit:
            tainted.update(node.output)
            if layer is not None:
                found.append(layer)
    return found


def _removed(graph: PruningGraph, plan: Plan, names: Iterable[str]) -> set[int]:
    """The units on any axis of the tensors named that the plan removes."""
    axes = [units for name in names for units in graph.axes.get(name, ()) if units is not None]
    return {int(unit) for units in axes for unit in np.unique(units[~kept_indices(plan.keep, units)])}


def _pruned_shapes(graph: PruningGraph, plan: Plan) -> dict[str, tuple[int, ...]]:
    kept = Kept(graph, plan)
    return {name: kept.new_shape(name) for name in graph.shapes}


def _pruned_layer(layer: Layer, plan: Plan, node: onnx.NodeProto) -> Layer:
    """The layer as the pruned model has it."""
    groups = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    return replace(
        layer,
        groups=groups,
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
    new_bias: bool

    def refit(self, layer: Layer) -> LayerFit:
        """Fit one layer on the activations at the current cut, and write its weights."""
        geometry = layer_geometry(self.graph, layer)
        if geometry is None:
            return LayerFit(layer.name, 0.0, 0.0, 0.0, False, f"a {layer.op} of this form is not fitted")
        if not self.constants.writable(layer.weight):
            return LayerFit(layer.name, 0.0, 0.0, 0.0, False, "its weights are packed below a byte")
        self.original.advance(layer.name)
        self.changed.advance(layer.name)
        small = _pruned_layer(layer, self.plan, self.constants.node(layer.name))
        target = self.targets.of(layer)
        stays = kept_indices(self.plan.keep, layer.out_units)
        affine = target.affine.select(stays)
        constant = can_shift(self.constants, small, affine, new_bias=self.new_bias)
        problem = _Problem(
            small, replace(geometry, groups=small.groups), target, affine, torch.from_numpy(stays), constant
        )
        matrix = read_matrix(self.constants, small)
        if constant:
            bias = read_bias(self.constants, small, len(stays.nonzero()[0]))
            matrix = np.concatenate([matrix, bias.reshape(small.groups, 1, -1)], axis=1)
        shape = (small.groups, matrix.shape[1], matrix.shape[2])
        response = problem.response(self.changed.device)
        old = torch.from_numpy(matrix).to(self.changed.device)
        fit, held_out = self._rows(problem, shape)
        sums, held_sums = response.sums(fit, shape), response.sums(held_out, shape)
        rounded = partial(self._rounded, problem) if self.constants.quantized(layer.weight) else None
        result = fit_matrix(
            sums, held_sums, old, constant=constant, weights=response.importance, rounded=rounded
        )
        if target.clip.clips:
            result = fit_clipped(response, fit, held_out, old, result, rounded=rounded)
        if result.helps:
            self._write(problem, matrix, result.matrix.cpu().numpy())
        return LayerFit(
            layer.name,
            result.error_before,
            result.error_after,
            result.ridge,
            result.helps,
            "" if result.helps else _why_not(held_sums),
        )

    def _rows(self, problem: _Problem, shape: tuple[int, int, int]) -> tuple[list[Rows], list[Rows]]:
        """Rows of the pruned model with what the original gives for them: (for fitting, held out).

        ``shape`` is that of the matrix to fit: (groups, d, outputs).
        """
        layer, geometry, target = problem.layer, problem.geometry, problem.target
        device = self.changed.device
        groups, size, outputs = shape
        sources = [layer.input, *([target.shortcut] if target.shortcut else [])]
        step = min(self.original.batch_size([target.tensor]), self.changed.batch_size(sources))
        rows = min(
            ROWS[1], max(ROWS[0], ROWS_PER_COLUMN * size), _ROW_BYTES // (4 * groups * (size + 2 * outputs))
        )
        kept = problem.stays.nonzero()[:, 0]
        fit: list[Rows] = []
        held_out: list[Rows] = []
        streams = zip(
            self.changed.stream(sources, step), self.original.stream([target.tensor], step), strict=True
        )
        for (samples, actual), (_, true) in streams:
            source = actual[layer.input].to(device)
            chosen = choose_positions(
                geometry.positions(source.shape), self.changed.samples, rows, self.generator
            )

            def at(values: Tensor, channels: Tensor | None = None, chosen: Tensor = chosen) -> Tensor:
                return geometry.targets(values.to(device), chosen, channels).transpose(0, 1).contiguous()

            goal = at(true[target.tensor], kept)
            inputs = geometry.rows(source, chosen).transpose(0, 1)
            if problem.constant:
                inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], dim=-1)
            found = Rows(inputs.contiguous(), goal, at(actual[target.shortcut]) if target.shortcut else None)
            count = samples.stop - samples.start
            number = samples.start + torch.arange(inputs.shape[1], device=device) * count // inputs.shape[1]
            held = number % HELD_OUT == HELD_OUT - 1
            fit.append(found.select(~held))
            held_out.append(found.select(held))
        return fit, held_out

    def _rounded(self, problem: _Problem, matrix: Tensor) -> Tensor:
        """What is left of a fitted matrix when it is stored on the scale of the weights."""
        values = matrix.cpu().numpy()
        weights = values[:, :-1] if problem.constant else values
        stored = rounded_matrix(self.constants, problem.layer, weights)
        whole = np.concatenate([stored, values[:, weights.shape[1] :]], axis=1)
        return torch.from_numpy(whole).to(matrix)

    def _write(self, problem: _Problem, old: FloatArray, new: FloatArray) -> None:
        """Write the fitted matrix, and the change of its constant, leaving out channels without effect."""
        layer, affine = problem.layer, problem.affine
        new = np.where(affine.dead.reshape(layer.groups, 1, -1), old, new)
        write_matrix(self.constants, layer, new[:, :-1] if problem.constant else new)
        if problem.constant:
            add_shift(self.constants, layer, affine, (new[:, -1] - old[:, -1]).reshape(-1))


@dataclass(frozen=True)
class _Problem:
    """One layer's regression, as the pruned model has the layer.

    ``stays`` (C_out,) masks the original's channels that stay; ``affine`` is that of those. With
    ``constant`` the matrix has a last row for a column of ones.
    """

    layer: Layer
    geometry: Geometry
    target: Target
    affine: Affine
    stays: Tensor
    constant: bool

    def response(self, device: torch.device) -> Response:
        """How the layer's output becomes its target, in single precision."""
        groups = self.layer.groups

        def shaped(values: npt.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values).reshape(groups, 1, -1)).to(device)

        affine = self.affine
        return Response(
            shaped(affine.scale).float(), shaped(affine.shift).float(), shaped(affine.dead), self.target.clip
        )


def _why_not(held_out: Sums) -> str:
    return "the fit would raise the held-out error" if held_out.count else "too few samples to hold any out"
