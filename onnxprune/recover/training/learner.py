"""What one batch teaches: the student's outputs beside the original's, the loss, and its gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from onnxprune.evaluate.datasets import Batch
from onnxprune.recover.executor import Executor
from onnxprune.recover.training.distill import Objective, Teacher
from onnxprune.recover.training.precision import mixed_precision
from onnxprune.recover.training.workers import Workers

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Learner:
    """The student with its teacher and what it is held to.

    ``batch`` is the batch size that the models insist on, or None. With ``half``, layers are trained in
    bfloat16; `logits` are always those of the model as it will be written.
    """

    student: Executor
    teacher: Teacher
    objective: Objective
    workers: Workers
    batch: int | None
    half: bool

    @property
    def weights(self) -> list[nn.Parameter]:
        """What is trained."""
        return list(self.student.weights.values())

    def gradients(self, batch: Batch) -> tuple[float, list[Tensor | None]]:
        """The mean loss of a batch, and for each weight the gradient, None where nothing depends on it.

        Shares of the batch are added in their order, so that a run repeats bit for bit.
        """
        parts = self.workers.over(len(batch.inputs), partial(self._share, batch))
        losses, gradients = zip(*parts, strict=True)
        return float(sum(losses)), [_total(each) for each in zip(*gradients, strict=True)]

    def logits(self, batches: Iterable[Batch]) -> Tensor:
        """The student's logits (n, C) in double precision."""

        def work(batch: Batch, share: slice) -> Tensor:
            with torch.no_grad():
                return self.teacher.logits(self._forward(batch.inputs[share])[self.teacher.scores.name])

        parts = [
            part for batch in batches for part in self.workers.over(len(batch.inputs), partial(work, batch))
        ]
        return torch.cat(parts).double()

    def _share(self, batch: Batch, share: slice) -> tuple[float, tuple[Tensor | None, ...]]:
        """A share's part of the batch's loss and gradients."""
        inputs, device = batch.inputs[share], self.student.device
        wanted = self.teacher(inputs, device)
        labels = None if batch.labels is None else torch.from_numpy(batch.labels[share]).to(device)
        with mixed_precision(device, self.half):
            actual = self._forward(inputs)
        loss = self.objective(self.teacher, actual, wanted, labels) * (len(inputs) / len(batch.inputs))
        return float(loss.detach()), torch.autograd.grad(loss, self.weights, allow_unused=True)

    def _forward(self, inputs: Array) -> dict[str, Tensor]:
        """The student's outputs for (n, ...), a batch size that the model insists on respected."""
        size, given = self.batch, torch.from_numpy(np.ascontiguousarray(inputs))
        if size is None or len(given) == size:
            return self.student(given)  # type: ignore[no-any-return]  # Module.__call__ is untyped
        parts = []
        for start in range(0, len(given), size):
            chunk = given[start : start + size]
            count = len(chunk)
            if count < size:
                chunk = torch.cat([chunk, chunk[-1:].expand(size - count, *chunk.shape[1:])])
            outputs = self.student(chunk)
            parts.append(
                {name: (value if value.ndim else value[None])[:count] for name, value in outputs.items()}
            )
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _total(values: tuple[Tensor | None, ...]) -> Tensor | None:
    known = [value for value in values if value is not None]
    return torch.stack(known).sum(0) if known else None
