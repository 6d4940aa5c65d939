"""Recovery in closed form: refit layer after layer, each on what the layers before really give.

In graph order, every layer behind the first removal is regressed on the pruned model's actual
inputs, towards what the original gives: its output, or at a residual join the original's join
minus the pruned model's shortcut (METHOD section 5), as far as the activation behind lets it be seen.
Then the layers in front that serve it alone are moved to what it still lacks; see `producers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx
import torch

from onnxprune.errors import NoGradientError
from onnxprune.graph.joins import Targets
from onnxprune.graph.kept import Kept
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure import Layer, PruningGraph, ResidualBranch, removed_branches
from onnxprune.graph.weights import Constants
from onnxprune.io.share import tied_initializers
from onnxprune.profile.geometry import layer_geometry
from onnxprune.profile.session import open_session
from onnxprune.progress import Progress, Stage
from onnxprune.recover.affected import Branch, affected_layers, find_branches
from onnxprune.recover.clipped import fit_clipped
from onnxprune.recover.fit import Ridge, fit_matrix
from onnxprune.recover.problem import HELD_OUT, LayerWeights, Problem, split
from onnxprune.recover.producers import RIDGE, can_judge, move
from onnxprune.recover.removed import settle
from onnxprune.recover.rows import Rows
from onnxprune.recover.walker import Mark, Walker


@dataclass(frozen=True)
class LayerFit:
    """What recovery did to one layer.

    Errors are mean squared at the layer's target (the residual join that it feeds, or what follows it
    affinely), summed over channels, on held-out samples, with the layer's old weights and with the
    new ones; ``kept`` says whether the new ones stayed, ``reason`` why they did not, ``unmoved`` why layers
    in front of it could not be moved.
    """

    layer: str
    error_before: float
    error_after: float
    ridge: float
    kept: bool
    reason: str = ""
    unmoved: str = ""


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
    affected, targets = affected_layers(graph, plan), Targets(graph)
    left = {node.name for node in model.graph.node}
    ends = {branch.reader: branch for branch in removed_branches(graph.residual_branches, plan.keep)}
    affected = [layer for layer in affected if layer.name in left or layer.name in ends]
    branches = find_branches(graph, plan, [layer for layer in affected if layer.name in left], targets)
    constants = Constants(model, tied_initializers(model))
    run = _Run(graph, plan, original, changed, constants, targets, branches, ends, generator, new_bias)
    with progress.stage("recover", len(affected)) as stage:
        fits = tuple(run.fits(affected, stage))
    return Recovery(model, fits)


def _whole_batches(inputs: npt.NDArray[np.generic], batch: int) -> npt.NDArray[np.generic]:
    """As many samples as fill whole batches; one batch at least, filled by repeating them."""
    count = len(inputs) // batch * batch or batch
    return inputs[np.arange(count) % len(inputs)]


def _pruned_shapes(graph: PruningGraph, plan: Plan) -> dict[str, tuple[int, ...]]:
    kept = Kept(graph, plan)
    return {name: kept.new_shape(name) for name in graph.shapes}


@dataclass(frozen=True)
class _Run:
    """Both walkers and what is needed to fit one layer after another."""

    graph: PruningGraph
    plan: Plan
    original: Walker
    changed: Walker
    constants: Constants
    targets: Targets
    branches: dict[str, Branch]
    removed: dict[str, ResidualBranch]
    generator: torch.Generator
    new_bias: bool
    weights: dict[str, LayerWeights] = field(default_factory=dict)

    @property
    def producing(self) -> set[str]:
        """Names of the layers that are moved."""
        return {layer.name for branch in self.branches.values() for layer in branch.producers}

    def fits(self, affected: list[Layer], stage: Stage) -> Iterator[LayerFit]:
        """Fit every affected layer in graph order; at the end of each branch, move those in front of it."""
        names = {layer.name for layer in affected}
        starts: dict[str, tuple[Branch, Mark]] = {}
        for layer in self.graph.layers:
            if layer.name in self.branches:
                self.changed.advance(layer.name)
                branch = self.branches[layer.name]
                starts[branch.reader.name] = branch, self.changed.mark()
            if layer.name not in names:
                continue
            fit = self.settle(layer) if layer.name in self.removed else self.refit(layer)
            if layer.name in starts:
                fit = self.serve(*starts.pop(layer.name), fit)
            if layer.name not in self.producing:
                self.weights.pop(layer.name, None)
            yield fit
            stage.advance()

    def serve(self, branch: Branch, start: Mark, fit: LayerFit) -> LayerFit:
        """Move the branch's producers to what its reader lacks, one after another, and fit that anew."""
        producers = [self.weights[layer.name] for layer in branch.producers if self._opened(layer) is None]
        unmoved = "" if can_judge(self.changed) else "the model takes samples in batches alone"
        moved = False
        if fit.kept and not unmoved:
            reader = self.weights[branch.reader.name].problem
            self.changed.rewind(start)
            for producer in producers:
                self.changed.advance(producer.problem.layer.name)
                try:
                    moved |= move(producer, reader, self.original, self.changed, self.generator)
                except NoGradientError as error:
                    unmoved = str(error)
            if moved:
                again = self.refit(branch.reader)
                fit = replace(again, error_before=fit.error_before) if again.kept else fit
        if fit.kept and producers and not moved:
            fit = replace(fit, unmoved=unmoved)
        for layer in branch.producers:
            self.weights.pop(layer.name, None)
        return fit

    def refit(self, layer: Layer) -> LayerFit:
        """Fit one layer on the activations at the current cut, and write its weights."""
        reason = self._opened(layer)
        if reason is not None:
            return LayerFit(layer.name, 0.0, 0.0, 0.0, False, reason)
        self.original.advance(layer.name)
        self.changed.advance(layer.name)
        weights = self.weights[layer.name]
        problem, shape = weights.problem, weights.shape
        response = problem.response(self.changed.device)
        before, now = (
            torch.from_numpy(matrix).to(self.changed.device) for matrix in (weights.before, weights.now)
        )
        fit, held_out = self._rows(weights)
        sums, held_sums = response.sums(fit, shape), response.sums(held_out, shape)
        rounded = weights.rounded if weights.quantized else None
        result = fit_matrix(
            sums, held_sums, before, constant=problem.constant, weights=response.importance, rounded=rounded
        )
        if layer.name in self.producing:
            weak = result.ridge < RIDGE
            weights.solver = Ridge(sums, before, RIDGE, problem.constant) if weak else result.solver
        if problem.target.clip.clips:
            result = fit_clipped(response, fit, held_out, before, result, rounded=rounded)
        standing = result.error_before
        if weights.now is not weights.before:
            standing = min(standing, response.error(held_out, now if rounded is None else rounded(now)))
        kept = result.error_after < standing
        if kept:
            weights.write(result.matrix.cpu().numpy())
        return LayerFit(
            layer.name,
            result.error_before,
            result.error_after,
            result.ridge,
            kept,
            "" if kept else _why_not(held_sums.count),
        )

    def settle(self, layer: Layer) -> LayerFit:
        """Fit the constant that a residual join adds instead of the branch that ended with ``layer``."""
        result = settle(
            self.removed[layer.name], layer, self.targets.of(layer), self.plan, self.constants,
            self.original, self.changed, self.generator,
        )  # fmt: skip
        reason = "" if result.helps else _why_not(self.changed.samples // HELD_OUT)
        return LayerFit(layer.name, result.error_before, result.error_after, 0.0, result.helps, reason)

    def _opened(self, layer: Layer) -> str | None:
        """Read the layer's weights, once; why it can't be fitted, or None."""
        if layer.name not in self.weights:
            geometry = layer_geometry(self.graph, layer)
            if geometry is None:
                return f"a {layer.op} of this form is not fitted"
            if not self.constants.writable(layer.weight):
                return "its weights are packed below a byte"
            if self.constants.tied(layer.weight):
                return "its weights are shared with another layer"
            problem = Problem.of(
                layer, geometry, self.targets.of(layer), self.plan, self.constants, new_bias=self.new_bias
            )
            self.weights[layer.name] = LayerWeights(self.constants, problem)
        return None

    def _rows(self, weights: LayerWeights) -> tuple[list[Rows], list[Rows]]:
        """Rows of the pruned model with what the original gives for them: (for fitting, held out)."""
        problem = weights.problem
        layer, target, device = problem.layer, problem.target, self.changed.device
        sources = [layer.input, *([target.shortcut] if target.shortcut else [])]
        step = min(self.original.batch_size([target.tensor]), self.changed.batch_size(sources))
        fit: list[Rows] = []
        held_out: list[Rows] = []
        streams = zip(
            self.changed.stream(sources, step), self.original.stream([target.tensor], step), strict=True
        )
        for (samples, actual), (_, true) in streams:
            source = actual[layer.input].to(device)
            chosen = problem.choose(source, self.changed.samples, weights.shape, self.generator)
            goal = problem.at_output(true[target.tensor].to(device), chosen, problem.kept)
            shortcut = (
                problem.at_output(actual[target.shortcut].to(device), chosen) if target.shortcut else None
            )
            learning, held = split(Rows(problem.rows(source, chosen), goal, shortcut), samples)
            fit.append(learning)
            held_out.append(held)
        return fit, held_out


def _why_not(held_out: int) -> str:
    """Why a fit did not stay, with so many rows or samples held out."""
    return "the fit would raise the held-out error" if held_out else "too few samples to hold any out"
