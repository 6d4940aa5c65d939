"""Moving the layers in front of a refitted one, so that they serve it instead of their old outputs.

A producer's own fit keeps its remaining outputs what they were; what the layer behind misses is what
the removed ones carried. So the squared error at that reader's target is carried back to the producer's
output, the movement wanted there is fitted to the producer's inputs in closed form, and held-out samples
say how far to go: a Gauss-Newton step whose preconditioner is the inverse Gram matrix of the layer's
inputs (auxiliary coordinates: Carreira-Perpinan & Wang, AISTATS 2014; Benzing, ICML 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnxprune.graph.joins import Clip
from onnxprune.graph.weights import FloatArray
from onnxprune.recover.executor import Executor
from onnxprune.recover.fit import Ridge, Sums
from onnxprune.recover.problem import HELD_OUT, LayerWeights, Problem, rows_wanted
from onnxprune.recover.rows import nearest
from onnxprune.recover.walker import Walker

RIDGE = 0.1
"""The weakest ridge for movements. What a target lacks is mostly no function of the producer's inputs: with
a ridge that suits its outputs, weights explode where calibration samples hardly vary, and others may."""

SHARE = 0.25
"""Share of each sample's positions that is read, where fewer than all samples then give enough rows."""

STEPS = (2.0**-10, 4.0)
"""Shortest and longest movement looked at, as shares of the weights' norm."""

FIRST_STEP = 2.0**-4
"""The movement that is looked at first, as a share of the weights' norm."""

_GOAL_BYTES = 256 << 20
"""Most bytes of the original's values that are held to judge steps by."""


def move(
    producer: LayerWeights, reader: Problem, original: Walker, changed: Walker, generator: torch.Generator
) -> bool:
    """Move ``producer`` towards what brings ``reader`` closer to its target, and write its weights.

    ``changed`` walks the pruned model and stands in front of the producer; ``original`` stands nowhere
    behind the target. False, and the matrix as it was, where no step lowers the held-out error. Raises
    NoGradientError where the model from the producer to the target can't be run backwards. See `can_judge`.
    """
    behind = _Behind.of(producer.problem, reader, changed)
    step = _step(producer, reader, behind, original, changed, generator)
    if step is None:
        return False
    start, norm = producer.now, producer.problem.norm
    step = step * (norm(start) / (norm(step) or 1.0) or 1.0)
    judge = _judge(reader, original, changed)

    def error(length: float) -> float:
        producer.write(start + length * step)
        return judge()

    length, _ = line_search(error, judge())
    producer.write(start + length * step)
    return length > 0.0


def can_judge(changed: Walker) -> bool:
    """Whether held-out samples can say how far to move: there are some, and the model takes them alone."""
    return changed.takes_single_samples and changed.samples >= HELD_OUT


def line_search(error: Callable[[float], float], standing: float) -> tuple[float, float]:
    """The step with the lowest error, and that error: (0, ``standing``) where none improves on it.

    Doubles from `FIRST_STEP` while that helps, or halves until it does, then looks at the bottom of the
    parabola through the best step and its neighbours.
    """
    step = FIRST_STEP
    found = {0.0: standing, step: error(step)}
    if found[step] < standing:
        while found[step] == min(found.values()) and step < STEPS[1]:
            step *= 2
            found[step] = error(step)
    else:
        while not found[step] < standing and step > STEPS[0]:
            step /= 2
            found[step] = error(step)
    steps = sorted(found)
    best = min(steps, key=found.__getitem__)
    place = steps.index(best)
    if 0 < place < len(steps) - 1:
        around = steps[place - 1 : place + 2]
        curve, slope, _ = np.polyfit(around, [found[near] for near in around], 2)
        if curve > 0:
            bottom = float(-slope / (2 * curve))
            found[bottom] = error(bottom)
            best = min(found, key=found.__getitem__)
    return best, found[best]


@dataclass(frozen=True)
class _Behind:
    """The pruned model from where a walker stands, in front of a producer, to its reader's target, in torch.

    Movements of the producer's output are measured behind the normalisation that follows it, as if that
    were folded into the layer: ``metric`` (C,) is its inverse squared scale, 0 for channels without effect.
    """

    executor: Executor
    output: str
    channel_axis: int
    metric: Tensor
    target: str
    clip: Clip

    @classmethod
    def of(cls, producer: Problem, reader: Problem, changed: Walker) -> _Behind:
        """Cut it out; NoGradientError where the executor can't run it."""
        layer, target = producer.layer, reader.target.tensor
        outputs = [target, layer.input, layer.output]
        executor = Executor(changed.segment([target]), trainable=(), outputs=outputs, device=changed.device)
        scale = np.where(producer.affine.dead, np.inf, producer.affine.scale)
        metric = torch.from_numpy(scale**-2.0).float().to(changed.device)
        return cls(executor, layer.output, layer.channel_axis, metric, target, reader.target.clip)

    def pull(self, given: Mapping[str, Tensor], goal: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The values in between, and where the producer's should go: down the squared error's gradient."""
        for value in given.values():
            value.requires_grad_(value.is_floating_point())
        values: dict[str, Tensor] = self.executor(given)
        seen, made = values[self.target], values[self.output]
        loss = 0.5 * (nearest(goal, seen.detach(), self.clip) - seen).square().sum()
        gradient: Tensor | None = None
        if loss.requires_grad and made.requires_grad:
            (gradient,) = torch.autograd.grad(loss, made, allow_unused=True)
        if gradient is None:  # what lies between knows steps only, such as a cast to integers
            gradient = torch.zeros_like(made)
        pull = -(gradient.movedim(self.channel_axis, -1) * self.metric).movedim(-1, self.channel_axis)
        return {name: value.detach() for name, value in values.items()}, pull


def _step(
    producer: LayerWeights,
    reader: Problem,
    behind: _Behind,
    original: Walker,
    changed: Walker,
    generator: torch.Generator,
) -> FloatArray | None:
    """The change (G, d, O) of the producer's matrix that samples which learn ask for; None: nothing."""
    problem, target, device = producer.problem, reader.target.tensor, changed.device
    learning = _learning(producer, changed)
    original, changed = original.only(learning), changed.only(learning)
    size = min(original.batch_size([target]), changed.batch_size(behind.executor.outputs))
    sums = Sums.zeros(*producer.shape, device)
    streams = zip(changed.stream(behind.executor.inputs, size), original.stream([target], size), strict=True)
    for (_, given), (_, true) in streams:
        goal = reader.common(true[target].to(device))
        values, pull = behind.pull({name: value.to(device) for name, value in given.items()}, goal)
        source = values[problem.layer.input]
        chosen = problem.choose(source, changed.samples, producer.shape, generator)
        rows = problem.rows(source, chosen)
        sums.add(rows, problem.at_output(pull, chosen), gram=producer.solver is None)
    if producer.solver is None:
        zero = torch.zeros(producer.shape, dtype=torch.float64, device=device)
        producer.solver = Ridge(sums, zero, RIDGE, problem.constant)
    step = producer.solver.change(sums).cpu().numpy()
    return step if np.isfinite(step).all() and step.any() else None


def _learning(producer: LayerWeights, changed: Walker) -> npt.NDArray[np.int64]:
    """Samples that learn: as many as it takes for the rows if a `SHARE` of each one's positions is read."""
    problem = producer.problem
    every: npt.NDArray[np.int64] = np.arange(changed.samples)
    every = every[every % HELD_OUT != HELD_OUT - 1]
    positions = problem.geometry.positions(changed.shape(problem.layer.input))
    wanted = math.ceil(rows_wanted(producer.shape) / (SHARE * positions))
    return every[:: max(1, len(every) // wanted)]


def _judge(reader: Problem, original: Walker, changed: Walker) -> Callable[[], float]:
    """The squared error at the target with the weights of the moment, on samples that are held out."""
    target = reader.target.tensor
    size = changed.batch_size([target])
    most = max(1, _GOAL_BYTES // original.bytes_of(target))
    held = np.arange(HELD_OUT - 1, changed.samples, HELD_OUT)[:most]
    goals = reader.common(torch.from_numpy(original.only(held).compute([target])[target]).float())
    goals = goals.reshape(len(held), -1, *goals.shape[1:])
    walker = changed.only(held)

    def error() -> float:
        total = 0.0
        for samples, values in walker.stream([target], size):
            seen = values[target]
            missing = nearest(goals[samples].reshape(seen.shape), seen, reader.target.clip) - seen
            total += float(missing.square().sum(dtype=torch.float64))
        return total

    return error
