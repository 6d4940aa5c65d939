"""Fine-tuning: the pruned graph learns from the original by gradient steps, and stays the same graph.

The loss compares both models on the same, randomly changed inputs, so no labels are needed. What is
returned is never worse than the start on samples kept out of training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from torch import Tensor

from onnxprune.errors import DataError, UsageError
from onnxprune.evaluate.datasets import Batch, Dataset
from onnxprune.evaluate.metrics import are_probabilities
from onnxprune.evaluate.scores import scores_output
from onnxprune.profile.providers import algebra_device, choose_provider
from onnxprune.profile.session import open_session
from onnxprune.progress import Progress, SilentProgress, Stage
from onnxprune.recover.executor import Executor
from onnxprune.recover.training.augment import Augmentation, image_augmentation
from onnxprune.recover.training.distill import (
    Join,
    Objective,
    Teacher,
    divergence,
)
from onnxprune.recover.training.learner import Learner
from onnxprune.recover.training.precision import has_bfloat16
from onnxprune.recover.training.processes import Processes, join_processes
from onnxprune.recover.training.schedule import Clock, Horizon, ema_decay, learning_rate
from onnxprune.recover.training.state import Check, TrainingState, assign, read_checkpoint
from onnxprune.recover.training.workers import Workers

HELD_OUT = 5
"""At most every fifth sample is kept out of training, to judge it."""

_CHECK_BATCH = 128


@dataclass(frozen=True)
class FinetuneSettings:
    """How to fine-tune; the defaults are what measured best.

    ``epochs`` and ``time_limit_s`` (seconds) bound the run, whichever is met first; without either it
    is `DEFAULT_EPOCHS` epochs, more for few samples. ``lr`` is the peak rate of AdamW,
    ``auto`` the largest of `RATES` that a short test finds to be safe. ``ema`` is the decay of the average of
    the weights, which is what is judged and returned.
    ``clip`` bounds the gradient's norm. ``temperature``, ``joins`` and ``labels`` are those of `Objective`.
    With ``half``, layers are trained in bfloat16 where the hardware multiplies that faster.
    ``held_out`` bounds the samples kept out of training; they are looked at ``checks`` times, and the run
    ends early when ``patience`` looks in a row came no further, neither in agreement nor in divergence.

    Raises UsageError for values that make no sense.
    """

    epochs: float | None = None
    time_limit_s: float | None = None
    lr: float | Literal["auto"] = "auto"
    batch_size: int = 64
    augment: bool = True
    ema: float = 0.99
    clip: float = 5.0
    temperature: float = 4.0
    joins: float = 0.0
    labels: float = 0.1
    weight_decay: float = 1e-4
    half: bool = True
    held_out: int = 1000
    checks: int = 20
    patience: int = 8

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        for name in ("epochs", "time_limit_s", "batch_size", "clip", "temperature", "checks", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(
                    f"fine-tuning needs {name.replace('_', ' ')} above 0, not {value}",
                    hint=f"leave out {name} to take the default",
                )
        if self.lr != "auto" and not (isinstance(self.lr, int | float) and 0.0 < self.lr < 10.0):
            raise UsageError(
                f"--lr {self.lr!r} is no learning rate", hint="give a number such as 0.001, or auto"
            )
        if not 0.0 <= self.ema < 1.0:
            raise UsageError(
                f"the decay of the average must be at least 0 and below 1, not {self.ema}",
                hint="0 averages nothing; leave out ema to take the default",
            )


DEFAULT_EPOCHS = 10.0
DEFAULT_STEPS = 200
"""Epochs and steps, whichever is more, of a run that nothing bounds."""

SMALLEST_BATCH = 8
"""Few samples are taken in smaller batches, down to this, so that an epoch has eight steps or more."""

RATES = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
"""Peak rates that ``lr="auto"`` tries, in this order."""

PROBE_STEPS = 12
"""Steps of each trial."""

PROBE_SAMPLES = 256
"""Most held-out samples that judge a trial."""

TOLERANCE = 2.0
"""How many times the start's divergence a trial may end with: a useful rate makes it rise at first."""


@dataclass(frozen=True)
class Finetuned:
    """The trained model, its course, and whether training was kept.

    ``start`` is the look before the first step, ``best`` the one whose weights are returned. Where
    nothing later was better, ``kept`` is False, ``model`` has the weights of the start, and ``reason``
    says so.
    """

    model: onnx.ModelProto
    history: tuple[Check, ...]
    start: Check
    best: Check
    kept: bool
    lr: float
    steps: int
    seconds: float
    reason: str = ""


def check_trainable(model: onnx.ModelProto, provider: str, threads: int | None) -> None:
    """Raise NoGradientError where the executor lacks an op on the way to the scores of ``model``."""
    scores = scores_output(open_session(model, provider=provider, threads=threads))
    Executor(model, trainable=(), outputs=[scores.name])


def finetune(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    dataset: Dataset,
    settings: FinetuneSettings | None = None,
    *,
    joins: Sequence[Join] = (),
    checkpoint: Path | None = None,
    provider: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Finetuned:
    """Train the weights of ``pruned`` on ``dataset`` to do what ``original`` does.

    Neither model is changed. The data's labels, where it has any, count by ``settings.labels``, and the
    activations at ``joins`` (see `residual_joins`) by ``settings.joins``. With
    ``checkpoint``, a folder, the run is saved at every look and goes on from there when called again
    with the same models, data and settings: bit for bit the run that was not interrupted, where epochs
    bound it (a time limit follows the clock). Started with torchrun, the processes share each step.

    Raises ModelError where an op of the model can't be trained through, DataError for data that is
    too small, UsageError for a checkpoint of another run.
    """
    settings = settings or FinetuneSettings()
    progress = progress or SilentProgress()
    if len(dataset) < HELD_OUT:
        raise DataError(f"{len(dataset)} samples are too few to fine-tune on", hint="give some hundred")
    # A GPU takes a batch as a whole.
    shares = 1 if algebra_device(choose_provider(provider)).type == "cuda" else settings.batch_size
    with Workers(threads, shares) as workers:
        run = _Run(original, pruned, dataset, settings, joins, provider, workers, seed)
        return run.train(checkpoint, progress)


class _Run:
    """Everything that one fine-tuning run holds."""

    def __init__(
        self,
        original: onnx.ModelProto,
        pruned: onnx.ModelProto,
        dataset: Dataset,
        settings: FinetuneSettings,
        joins: Sequence[Join],
        provider: str,
        workers: Workers,
        seed: int,
    ) -> None:
        self.settings, self.seed, self.dataset = settings, seed, dataset
        joins = tuple(joins) if settings.joins else ()
        taps = [join.name for join in joins]
        start = partial(open_session, original, provider=provider, threads=workers.kernel_threads)
        session = start()
        scores = scores_output(session)
        self.processes: Processes = join_processes(algebra_device(session.provider))
        self.device = self.processes.device
        student = Executor(pruned, outputs=[scores.name, *taps], device=self.device)
        if not student.weights:
            raise UsageError("the model has no weights to fine-tune", hint="use --recover closed-form")
        self.weights = list(student.weights.values())
        self.processes.share(weight.data for weight in self.weights)
        self.average = [weight.detach().clone() for weight in self.weights]
        self.horizon = Horizon(None, None)
        self.augmentation: Augmentation | None = image_augmentation(dataset) if settings.augment else None
        order = np.random.default_rng(seed).permutation(len(dataset))
        held = min(settings.held_out, max(1, len(dataset) // HELD_OUT))
        self.held_out, self.training = order[:held], np.sort(order[held:])
        raw = torch.cat(
            [
                part
                for batch in self._judging_batches()
                for part in workers.over(
                    len(batch.inputs), partial(_output, Teacher(session, scores, ()), batch)
                )
            ]
        ).to(self.device)
        # Asking is what shows a batch size of 1 that is baked into the model.
        insisted = session.batch
        teacher = Teacher(
            start(outputs=[scores.name, *taps]) if taps else session,
            scores,
            joins,
            are_probabilities(scores.of(raw.float()).cpu().numpy()),
        )
        self.goal = teacher.logits(raw)
        objective = Objective(settings.temperature, settings.joins, settings.labels)
        # Just below 1, bfloat16 has no digits for what a Sigmoid gives.
        half = settings.half and not scores.sigmoid and has_bfloat16(self.device)
        self.learner = Learner(student, teacher, objective, workers, insisted, half)
        share = len(self.training) // self.processes.world
        self.batch_size = min(settings.batch_size, max(SMALLEST_BATCH, share // 8))
        whole = share // self.batch_size
        self.steps_per_epoch = max(1, whole)
        digest = hashlib.sha256(pruned.SerializeToString(deterministic=True))
        digest.update(original.SerializeToString(deterministic=True))
        digest.update(json.dumps([asdict(settings), seed, len(dataset), self.processes.world]).encode())
        for batch in self._judging_batches():
            digest.update(batch.inputs.tobytes())
        digest.update(b"" if dataset.labels is None else dataset.labels.tobytes())
        self.fingerprint = digest.hexdigest()

    def train(self, folder: Path | None, progress: Progress) -> Finetuned:
        """Run to the end, or go on from the checkpoint in ``folder``."""
        stored = read_checkpoint(folder, self.fingerprint)
        clock = Clock(0.0 if stored is None else float(stored[1]["seconds"]))
        rate = self.settings.lr
        if stored is not None:
            rate = float(stored[1]["lr"])
        elif rate == "auto":
            rate = self._probed_rate(progress)
        self.optimizer = self._optimizer(rate)
        best = [value.clone() for value in self.average]
        state = TrainingState(
            self.learner.student.weights, self.optimizer, rate, self._look(0, 0.0, 0.0), self.average, best
        )
        if stored is not None:
            state.restore(stored)
        epochs = self.settings.epochs
        if epochs is None and self.settings.time_limit_s is None:
            epochs = max(DEFAULT_EPOCHS, DEFAULT_STEPS / self.steps_per_epoch)
        steps = None if epochs is None else max(1, round(epochs * self.steps_per_epoch))
        self.horizon = Horizon(steps, self.settings.time_limit_s)
        with progress.stage("fine-tune", 1000) as stage:
            self._loop(state, clock, folder, stage)
        return self._result(state)

    def _loop(self, state: TrainingState, clock: Clock, folder: Path | None, stage: Stage) -> None:
        shown = 0
        losses: list[float] = []
        done = self._done(state, clock)
        next_check = (int(done * self.settings.checks) + 1) / self.settings.checks
        batches = self._batches(state.step)
        while done < 1.0 and state.since_best < self.settings.patience:
            rate = learning_rate(state.lr, max(done, 1e-4))
            losses.append(self._step(next(batches), state.step, rate))
            state.step += 1
            done = self._done(state, clock)
            stage.advance(int(done * 1000) - shown)
            shown = max(shown, int(done * 1000))
            stage.note(f"loss {losses[-1]:.4f}, rate {rate:.2g}")
            if done >= next_check or done >= 1.0:
                next_check = (int(done * self.settings.checks) + 1) / self.settings.checks
                state.seconds = clock.elapsed()
                state.take(self._look(state.step, float(np.mean(losses)), rate))
                if folder is not None and self.processes.main:
                    state.save(folder, self.fingerprint)
                losses.clear()
        state.seconds = clock.elapsed()

    def _done(self, state: TrainingState, clock: Clock) -> float:
        return self.processes.agreed(self.horizon.progress(state.step, clock.elapsed()))

    def _batches(self, step: int) -> Iterator[Batch]:
        """Batches of this process from step number ``step`` on, epoch after epoch, without end."""
        size, world = self.batch_size, self.processes.world
        while True:
            epoch, done = divmod(step, self.steps_per_epoch)
            order = np.random.default_rng([self.seed, 1, epoch]).permutation(self.training)
            mine = order[self.processes.rank :: world] if len(order) >= world else order
            for batch in self.dataset.batches(size, mine[done * size : self.steps_per_epoch * size]):
                yield batch
                step += 1

    def _step(self, batch: Batch, number: int, rate: float) -> float:
        """One gradient step; gives the loss before it."""
        if self.augmentation is not None:
            # Drawn anew from the step's number, so that a resumed run needs no generator's state.
            random = np.random.default_rng([self.seed, 2, number, self.processes.rank])
            batch = replace(batch, inputs=self.augmentation(batch.inputs, random))
        loss, gradients = self.learner.gradients(batch)
        self.processes.average(gradient for gradient in gradients if gradient is not None)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.settings.clip)
        if bool(torch.isfinite(norm)):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            with torch.no_grad():
                keep = ema_decay(self.settings.ema, number)
                torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - keep)
        return loss

    def _held_out_logits(self, most: int | None = None) -> Tensor:
        """The averaged weights' logits on the held-out samples, or ``most`` of them: (n, C)."""
        with self._averaged():
            return self.learner.logits(self._judging_batches(most))

    def _judging_batches(self, most: int | None = None) -> Iterator[Batch]:
        """The held-out samples, or ``most`` of them, each augmented once and for all.

        Data that the original was trained on it knows by heart, and its answers there say little of others.
        """
        place = 0
        for batch in self.dataset.batches(_CHECK_BATCH, self.held_out[:most]):
            if self.augmentation is not None:
                changed = [
                    self.augmentation(image[None], np.random.default_rng([self.seed, 3, place + index]))
                    for index, image in enumerate(batch.inputs)
                ]
                batch = replace(batch, inputs=np.concatenate(changed))
            place += len(batch.inputs)
            yield batch

    def _look(self, step: int, loss: float, rate: float) -> Check:
        """Judge the averaged weights on the held-out samples."""
        same, kl = (self.processes.agreed(value) for value in self._judged())
        return Check(step, step / self.steps_per_epoch, loss, rate, 100.0 * same, kl, len(self.held_out))

    def _judged(self) -> tuple[float, float]:
        """The share of held-out samples on which both name the same class, and the divergence in nats."""
        logits = self._held_out_logits()
        same = (logits.argmax(1) == self.goal.argmax(1)).double().mean()
        return float(same), float(divergence(logits, self.goal.double()))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in place of the current ones."""
        current = [weight.detach().clone() for weight in self.weights]
        assign(self.weights, self.average)
        try:
            yield
        finally:
            assign(self.weights, current)

    def _result(self, state: TrainingState) -> Finetuned:
        kept = state.best_check is not state.start
        values = dict(zip(state.weights, state.best, strict=True)) if kept else {}
        reason = "" if kept else "no step helped on the held-out samples: the weights stay as they were"
        return Finetuned(
            self.learner.student.write_back(values), tuple(state.history), state.start, state.best_check,
            kept, state.lr, state.step, state.seconds, reason,
        )  # fmt: skip

    def _optimizer(self, rate: float) -> torch.optim.Optimizer:
        """AdamW, which takes the same rates for very different models; only matrices decay."""
        matrices = [weight for weight in self.weights if weight.dim() > 1]
        vectors = [weight for weight in self.weights if weight.dim() <= 1]
        return torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": self.settings.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=rate,
        )

    def _probed_rate(self, progress: Progress) -> float:
        """The first of `RATES` with which a short run does not lose the start.

        Within a dozen steps every rate worth using moves away from a good start, and small ones always
        look best: what a long run wants is the largest one that stays near.
        """
        start = [weight.detach().clone() for weight in self.weights]
        bound = TOLERANCE * self._distance()
        with progress.stage("learning rate", PROBE_STEPS * len(RATES)) as stage:
            for left, rate in zip(reversed(range(len(RATES))), RATES, strict=True):
                self.optimizer = self._optimizer(rate)
                batches = self._batches(0)
                for number in range(PROBE_STEPS):
                    self._step(next(batches), number, learning_rate(rate, (number + 0.5) / PROBE_STEPS))
                    stage.advance()
                near = self._distance() <= bound
                assign(self.weights, start)
                assign(self.average, start)
                if self.processes.agreed(float(near)):
                    stage.advance(left * PROBE_STEPS)
                    return rate
        return RATES[-1]

    def _distance(self) -> float:
        """The softened divergence that is trained, on some held-out samples."""
        soft = self.settings.temperature
        logits = self._held_out_logits(PROBE_SAMPLES)
        return float(divergence(logits / soft, self.goal[:PROBE_SAMPLES].double() / soft))


def _output(teacher: Teacher, batch: Batch, share: slice) -> Tensor:
    """The original's scores, as it gives them, on a share of a batch: (n, ...)."""
    return teacher(batch.inputs[share], torch.device("cpu"))[teacher.scores.name]


__all__ = ["Check", "FinetuneSettings", "Finetuned", "finetune"]
