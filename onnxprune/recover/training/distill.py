"""Learning from the original: its scores, and its activations at residual joins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.evaluate.scores import ScoresOutput
from onnxprune.graph.kept import Kept
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure import BoolArray, PruningGraph, removed_branches
from onnxprune.profile.session import Session

_SMALLEST = 1e-12

MOST_JOINS = 3
"""Joins at which activations are compared."""


@dataclass(frozen=True)
class Join:
    """A residual join, the tensor ``name`` in both models.

    ``kept`` says for each axis which of the original's indices the pruned model has, (dim,); None: all.
    """

    name: str
    kept: tuple[BoolArray | None, ...]

    def common(self, value: Tensor) -> Tensor:
        """What of the original's ``value`` the pruned model has too."""
        for axis, mask in enumerate(self.kept):
            if mask is not None:
                value = value.index_select(axis, torch.from_numpy(np.flatnonzero(mask)).to(value.device))
        return value


@dataclass(frozen=True)
class Teacher:
    """The original, giving its output ``scores`` and its activations at ``joins``.

    ``probabilities`` says that its scores went through a softmax already.
    """

    session: Session
    scores: ScoresOutput
    joins: tuple[Join, ...]
    probabilities: bool = False

    def __call__(self, inputs: npt.NDArray[np.generic], device: torch.device) -> dict[str, Tensor]:
        """Scores and activations for model-ready ``inputs`` (n, ...)."""
        return {name: value.to(device) for name, value in self.session.run_torch(inputs).items()}

    def logits(self, values: Tensor) -> Tensor:
        """The output's values (n, ...) as logits (n, C) in single precision."""
        scores = self.scores.of(values.float())
        return scores.clamp_min(_SMALLEST).log() if self.probabilities else scores


@dataclass(frozen=True)
class Objective:
    """The weights of the loss's parts.

    ``temperature`` T softens both distributions of the divergence (Hinton et al., 2015), which counts T^2
    times; ``joins`` weighs the squared error at joins, relative to the original's variance there;
    ``labels`` the cross entropy with labels.
    """

    temperature: float
    joins: float
    labels: float

    def __call__(
        self,
        teacher: Teacher,
        actual: Mapping[str, Tensor],
        wanted: Mapping[str, Tensor],
        labels: Tensor | None,
    ) -> Tensor:
        """The mean loss of a batch, from both models' outputs by name and labels (n,)."""
        logits, goal = (teacher.logits(each[teacher.scores.name]) for each in (actual, wanted))
        loss = divergence(logits / self.temperature, goal / self.temperature) * self.temperature**2
        if self.joins:
            for join in teacher.joins:
                goals = join.common(wanted[join.name].float())
                spread = goals.var() + _SMALLEST
                error = F.mse_loss(actual[join.name].float(), goals)
                loss = loss + self.joins / len(teacher.joins) * error / spread
        if labels is not None and self.labels:
            loss = loss + self.labels * F.cross_entropy(logits, labels)
        return loss


def divergence(logits: Tensor, goal: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of softmax(logits) from softmax(goal), both (n, C), in nats."""
    return F.kl_div(F.log_softmax(logits, 1), F.log_softmax(goal, 1), reduction="batchmean", log_target=True)


def residual_joins(graph: PruningGraph, plan: Plan, most: int = MOST_JOINS) -> tuple[Join, ...]:
    """Up to ``most`` residual joins of ``graph``, evenly from first to last, as ``plan`` leaves them."""
    kept, constants = Kept(graph, plan), {tensor.name for tensor in graph.model.graph.initializer}
    removed = removed_branches(graph.residual_branches, plan.keep)
    found = []
    for node in graph.model.graph.node:
        if any(node.name in branch.nodes for branch in removed):
            continue
        if node.op_type not in ("Add", "Sum") or len(node.input) != 2 or constants & set(node.input):
            continue
        name = node.output[0]
        if all(kept.known(each) and kept.shape(each) == kept.shape(name) for each in (name, *node.input)):
            axes = range(len(kept.shape(name)))
            found.append(
                Join(name, tuple(kept.mask(name, axis) if kept.pruned(name, axis) else None for axis in axes))
            )
    if len(found) <= most:
        return tuple(found)
    return tuple(found[round((number + 1) * len(found) / most) - 1] for number in range(most))
