"""Learning from the original: its scores, and its activations at residual joins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.graph.shapes import infer_concrete
from onnxprune.profile.session import Session

_SMALLEST = 1e-12
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Teacher:
    """The original, giving the scores named ``scores`` and the activations named ``joins``.

    ``probabilities`` says that its scores went through a softmax already.
    """

    session: Session
    scores: str
    joins: tuple[str, ...]
    probabilities: bool = False

    def __call__(self, inputs: npt.NDArray[np.generic], device: torch.device) -> dict[str, Tensor]:
        """Scores and activations for model-ready ``inputs`` (n, ...)."""
        return {name: value.to(device) for name, value in self.session.run_torch(inputs).items()}

    def logits(self, scores: Tensor) -> Tensor:
        """Scores as logits (n, C) in single precision."""
        flat = scores.float().flatten(1)
        return flat.clamp_min(_SMALLEST).log() if self.probabilities else flat


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
        logits, goal = teacher.logits(actual[teacher.scores]), teacher.logits(wanted[teacher.scores])
        loss = divergence(logits / self.temperature, goal / self.temperature) * self.temperature**2
        if self.joins:
            for name in teacher.joins:
                spread = wanted[name].float().var() + _SMALLEST
                error = F.mse_loss(actual[name].float(), wanted[name].float())
                loss = loss + self.joins / len(teacher.joins) * error / spread
        if labels is not None and self.labels:
            loss = loss + self.labels * F.cross_entropy(logits, labels)
        return loss


def divergence(logits: Tensor, goal: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of softmax(logits) from softmax(goal), both (n, C), in nats."""
    return F.kl_div(F.log_softmax(logits, 1), F.log_softmax(goal, 1), reduction="batchmean", log_target=True)


def are_probabilities(scores: npt.NDArray[np.floating[npt.NBitBase]]) -> bool:
    """Whether scores (n, C) are distributions already."""
    return bool((scores >= 0).all() and (np.abs(scores.sum(axis=1) - 1.0) <= _TOLERANCE).all())


def common_joins(original: onnx.ModelProto, pruned: onnx.ModelProto, most: int) -> tuple[str, ...]:
    """Up to ``most`` residual joins, evenly from first to last, that both models have in the same shape."""
    shapes, others = infer_concrete(original), infer_concrete(pruned)
    constants = {tensor.name for tensor in pruned.graph.initializer}
    found = []
    for node in pruned.graph.node:
        if node.op_type not in ("Add", "Sum") or len(node.input) != 2 or constants & set(node.input):
            continue
        name = node.output[0]
        alike = name in shapes and shapes[name] == others.get(name)
        same = others.get(node.input[0]) == others.get(node.input[1]) == others.get(name)
        if alike and same:
            found.append(name)
    if len(found) <= most:
        return tuple(found)
    return tuple(found[round((number + 1) * len(found) / most) - 1] for number in range(most))
