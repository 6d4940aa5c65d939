"""What changes while training, looked at, saved and restored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onnxprune.errors import UsageError
from onnxprune.recover.training.checkpoint import load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class Check:
    """One look at the held-out samples.

    ``loss`` is the mean training loss since the last look, ``rate`` the learning rate, ``agreement`` the
    percentage of the ``samples`` held out on which model and original name the same class, ``kl`` in nats.
    """

    step: int
    epoch: float
    loss: float
    rate: float
    agreement: float
    kl: float

    samples: int

    def beats(self, other: Check, start: Check) -> bool:
        """Whether this look is better than ``other``, neither being worse than ``start``.

        More agreement is, by more than its standard error sqrt(p (1 - p) / n); within that error, which
        is a few samples, less divergence is. Never, where it agrees less than the start, or diverges more.
        """
        share = other.agreement / 100.0
        error = 100.0 * math.sqrt(share * (1.0 - share) / self.samples)
        if self.agreement < start.agreement or self.kl > start.kl:
            return False
        if self.agreement > other.agreement + error:
            return True
        return self.kl < other.kl and self.agreement >= other.agreement - error


@dataclass
class TrainingState:
    """The weights by name, their running average, the best average so far, and the course of the run.

    ``lr`` is the peak rate, ``start`` the look before the first step, ``seconds`` the time trained.
    """

    weights: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    lr: float
    start: Check
    average: list[Tensor]
    best: list[Tensor]
    step: int = 0
    seconds: float = 0.0
    since_best: int = 0
    best_look: int | None = None
    """Which look of the history the best average is from; None: the start."""
    history: list[Check] = field(default_factory=list)

    @property
    def best_check(self) -> Check:
        """The look at which the average was the best so far."""
        return self.start if self.best_look is None else self.history[self.best_look]

    def take(self, check: Check) -> None:
        """Note a look at the current average; keep that where it is the best so far.

        ``since_best`` counts looks without progress of the run itself, in agreement or in divergence: a
        useful rate first moves away from a good start, and comes back above it as it falls.
        """
        if check.beats(self.best_check, self.start):
            self.best = [value.clone() for value in self.average]
            self.best_look = len(self.history)
        agreed = all(check.agreement > earlier.agreement for earlier in self.history)
        nearer = all(check.kl < earlier.kl for earlier in self.history)
        self.since_best = 0 if agreed or nearer else self.since_best + 1
        self.history.append(check)

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write all of it as a checkpoint of the run that ``fingerprint`` stands for."""
        tensors: dict[str, Tensor] = {}
        for (name, weight), average, best in zip(self.weights.items(), self.average, self.best, strict=True):
            tensors |= {f"weight/{name}": weight, f"average/{name}": average, f"best/{name}": best}
            for key, value in self.optimizer.state[weight].items():
                tensors[f"optimizer.{key}/{name}"] = value
        record = {
            "fingerprint": fingerprint,
            "lr": self.lr,
            "step": self.step,
            "seconds": self.seconds,
            "since_best": self.since_best,
            "best_look": self.best_look,
            "start": asdict(self.start),
            "history": [asdict(check) for check in self.history],
        }
        save_checkpoint(folder, tensors, record)

    def restore(self, stored: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
        """Take over what a checkpoint of the same run holds."""
        tensors, record = stored
        self.step, self.seconds = record["step"], record["seconds"]
        self.since_best, self.best_look = record["since_best"], record["best_look"]
        self.start = Check(**record["start"])
        self.history = [Check(**entry) for entry in record["history"]]
        keys = sorted({name.split("/", 1)[0] for name in tensors if name.startswith("optimizer.")})
        with torch.no_grad():
            for (name, weight), average, best in zip(
                self.weights.items(), self.average, self.best, strict=True
            ):
                weight.copy_(tensors[f"weight/{name}"])
                average.copy_(tensors[f"average/{name}"])
                best.copy_(tensors[f"best/{name}"])
                held: dict[str, Any] = self.optimizer.state[weight]
                for key in keys:
                    if f"{key}/{name}" not in tensors:  # no gradient reached this weight
                        continue
                    value = tensors[f"{key}/{name}"]
                    # Counters stay on the CPU; moments lie in memory as their weights do.
                    moved = torch.empty_like(weight).copy_(value) if value.dim() else value
                    held[key.removeprefix("optimizer.")] = moved.detach()


def read_checkpoint(folder: Path | None, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The checkpoint in ``folder`` if there is one; UsageError where it is of another run."""
    stored = None if folder is None else load_checkpoint(folder)
    if stored is not None and stored[1].get("fingerprint") != fingerprint:
        raise UsageError(
            f"the checkpoint in {folder} is of another run: models, data or settings differ",
            hint="choose another folder, or remove it",
        )
    return stored


def assign(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy ``values`` into ``targets``, outside of any gradient."""
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)
