"""What a classifier is worth: top-1 and top-5, counted exactly, and fidelity to the original."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.errors import DataError, ModelError
from onnxprune.evaluate.datasets import Dataset
from onnxprune.evaluate.scores import FloatArray, scores_output
from onnxprune.graph.structure import IntArray
from onnxprune.profile.session import Session, open_session
from onnxprune.progress import Progress, SilentProgress

Runnable = Session | onnx.ModelProto | bytes | str | os.PathLike[str]
"""A session, or a model that `open_session` takes."""

BATCH_SIZE: Final = 64
_SUM_TOLERANCE: Final = 1e-3
_SMALLEST: Final = 1e-12
"""Floor of probabilities inside logarithms: it bounds the divergence of one sample."""
_WORST_KL: Final = float(-np.log(_SMALLEST))


@dataclass(frozen=True)
class Metrics:
    """Correct answers out of ``samples``; ``correct_top5`` is None where there are fewer than 5 classes.

    Samples whose scores hold a NaN, ``not_finite`` of them, count as wrong.
    """

    samples: int
    correct_top1: int
    correct_top5: int | None
    not_finite: int = 0

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100.0 * self.correct_top1 / self.samples

    @property
    def top5(self) -> float | None:
        """Top-5 accuracy in percent, or None."""
        return None if self.correct_top5 is None else 100.0 * self.correct_top5 / self.samples

    def to_dict(self) -> dict[str, float | int | None]:
        """For the report: ``top1`` and ``top5`` in percent, and ``samples``."""
        return {"top1": self.top1, "top5": self.top5, "samples": self.samples}


@dataclass(frozen=True)
class Fidelity:
    """How close a model stays to its original: same top-1 class on ``agreeing`` of ``samples``.

    ``kl`` is the mean Kullback-Leibler divergence of the model's class distribution from the
    original's, in nats: the mean over samples of sum_c p_c log(p_c / q_c), p the original's.
    """

    samples: int
    agreeing: int
    kl: float

    @property
    def agreement(self) -> float:
        """Share of samples with the same top-1 class, in percent."""
        return 100.0 * self.agreeing / self.samples

    def to_dict(self) -> dict[str, float]:
        """For the report: ``agreement`` in percent and ``kl`` in nats."""
        return {"agreement": self.agreement, "kl": self.kl}


@dataclass(frozen=True)
class Evaluation:
    """One pass over a data set: ``metrics`` where it has labels, ``fidelity`` where there is an original.

    ``reference_metrics`` are the original's, counted on the same samples.
    """

    metrics: Metrics | None
    fidelity: Fidelity | None = None
    reference_metrics: Metrics | None = None


def count_correct(scores: FloatArray, labels: IntArray) -> Metrics:
    """Exact counts for ``scores`` (n, C) and ``labels`` (n,).

    Equal scores are ordered by class index, as argmax does: the lower index comes first. A label is in
    the top k where fewer than k classes come before it. Raises DataError where a label is not a class.
    """
    check_labels(labels, scores.shape[1])
    finite = ~np.isnan(scores).any(axis=1)
    own = scores[np.arange(len(labels)), labels][:, None]
    classes = np.arange(scores.shape[1])[None, :]
    before = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    place = before.sum(axis=1)
    top5 = int(((place < 5) & finite).sum()) if scores.shape[1] >= 5 else None
    return Metrics(len(labels), int(((place < 1) & finite).sum()), top5, int((~finite).sum()))


def compare_scores(scores: FloatArray, reference: FloatArray) -> Fidelity:
    """Fidelity of ``scores`` (n, C) to the original's ``reference`` (n, C).

    Scores that are a distribution already (not negative, rows that sum to 1) are taken as they are,
    others go through a softmax. A row with a NaN agrees with nothing and is left out of ``kl``.
    """
    if scores.shape != reference.shape:
        raise ModelError(
            f"the models have outputs of different shapes: {scores.shape[1:]} and {reference.shape[1:]}",
            hint="compare models of the same classes",
        )
    finite = ~(np.isnan(scores).any(axis=1) | np.isnan(reference).any(axis=1))
    same = (scores.argmax(axis=1) == reference.argmax(axis=1)) & finite
    divergence = divergences(scores, reference)
    usable = divergence[np.isfinite(divergence)]
    return Fidelity(len(scores), int(same.sum()), float(usable.mean()) if usable.size else _WORST_KL)


def divergences(scores: FloatArray, reference: FloatArray) -> npt.NDArray[np.float64]:
    """Divergence (n,) of each row of ``scores`` (n, C) from the original's ``reference``, as in `Fidelity`.

    NaN where a row holds one.
    """
    p, q = distribution(reference), distribution(scores)
    ratio = np.log(np.maximum(p, _SMALLEST)) - np.log(np.maximum(q, _SMALLEST))
    return np.asarray(np.maximum((p * ratio).sum(axis=1), 0.0))


def distribution(scores: FloatArray) -> npt.NDArray[np.float64]:
    """Class probabilities (n, C) in float64: the scores where they are such, else their softmax."""
    values = scores.astype(np.float64)
    if are_probabilities(values):
        return values
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def are_probabilities(scores: FloatArray) -> bool:
    """Whether scores (n, C) are distributions already: not negative, rows that sum to 1.

    Rows that are not finite say nothing, and a few sums that rounding took off 1 change nothing.
    """
    finite = scores[np.isfinite(scores).all(axis=1)]
    if not len(finite) or bool((finite < 0.0).any()):
        return False
    return bool(np.median(np.abs(finite.sum(axis=1) - 1.0)) <= _SUM_TOLERANCE)


def check_labels(labels: IntArray, classes: int) -> None:
    """Raise DataError where ``labels`` (n,) hold anything but 0 .. ``classes`` - 1."""
    if labels.size and (labels.max() >= classes or labels.min() < 0):
        wrong = int(labels.max()) if labels.max() >= classes else int(labels.min())
        raise DataError(
            f"label {wrong} is not among the model's {classes} classes (0 to {classes - 1})",
            hint="the data and the model must number the same classes; labels start at 0",
        )


def predict(
    model: Runnable,
    dataset: Dataset,
    *,
    batch_size: int = BATCH_SIZE,
    provider: str = "auto",
    threads: int | None = None,
    output: str | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    """Class scores (n, C) of all samples, read off the output as `ScoresOutput.of` says."""
    read = _reader(as_session(model, provider=provider, threads=threads), output)
    parts: list[FloatArray] = []
    with (progress or SilentProgress()).stage("predict", len(dataset)) as running:
        for batch in dataset.batches(batch_size):
            parts.append(read(batch.inputs))
            running.advance(len(batch.inputs))
    if not parts:
        raise _no_samples()
    return np.concatenate(parts)


def evaluate(
    model: Runnable,
    dataset: Dataset,
    *,
    batch_size: int = BATCH_SIZE,
    provider: str = "auto",
    threads: int | None = None,
    output: str | None = None,
    progress: Progress | None = None,
) -> Metrics:
    """Top-1 and top-5 of a model on labelled data.

    Raises DataError where there are no labels or they are not classes of the model, ModelError where
    the model has no class scores.
    """
    if dataset.labels is None:
        raise DataError(
            "the data has no labels, so accuracy can't be measured",
            hint="give labels, or compare with the original model (--against)",
        )
    result = evaluate_against(
        model,
        None,
        dataset,
        batch_size=batch_size,
        provider=provider,
        threads=threads,
        output=output,
        progress=progress,
    )
    assert result.metrics is not None  # labels are there, so they were counted
    return result.metrics


def evaluate_against(
    model: Runnable,
    original: Runnable | None,
    dataset: Dataset,
    *,
    batch_size: int = BATCH_SIZE,
    provider: str = "auto",
    threads: int | None = None,
    output: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Metrics and, with ``original``, fidelity and the original's metrics, in one pass over the data.

    Peak memory is that of two batches: only counts are kept. Raises as `evaluate` does, but asks for no
    labels.
    """
    start = partial(as_session, provider=provider, threads=threads)
    read = _reader(start(model), output)
    read_original = None if original is None else _reader(start(original), output)
    counts: list[Metrics] = []
    reference_counts: list[Metrics] = []
    likeness: list[Fidelity] = []
    with (progress or SilentProgress()).stage("evaluate", len(dataset)) as running:
        for batch in dataset.batches(batch_size):
            scores = read(batch.inputs)
            if batch.labels is not None:
                counts.append(count_correct(scores, batch.labels))
            if read_original is not None:
                wanted = read_original(batch.inputs)
                likeness.append(compare_scores(scores, wanted))
                if batch.labels is not None:
                    reference_counts.append(count_correct(wanted, batch.labels))
            running.advance(len(scores))
    if len(dataset) == 0:
        raise _no_samples()
    return Evaluation(_metrics_sum(counts), _fidelity_sum(likeness), _metrics_sum(reference_counts))


def fidelity(
    model: Runnable,
    original: Runnable,
    dataset: Dataset,
    *,
    batch_size: int = BATCH_SIZE,
    provider: str = "auto",
    threads: int | None = None,
    output: str | None = None,
    progress: Progress | None = None,
) -> Fidelity:
    """How close ``model`` stays to ``original`` on the samples; labels play no part."""
    result = evaluate_against(
        model,
        original,
        dataset,
        batch_size=batch_size,
        provider=provider,
        threads=threads,
        output=output,
        progress=progress,
    )
    assert result.fidelity is not None  # an original was given
    return result.fidelity


def as_session(model: Runnable, *, provider: str = "auto", threads: int | None = None) -> Session:
    """``model`` itself where it is a session, else a session of it."""
    if isinstance(model, Session):
        return model
    return open_session(model, provider=provider, threads=threads)


def _reader(session: Session, output: str | None) -> Callable[[npt.NDArray[Any]], FloatArray]:
    """What gives the class scores (n, C) of inputs (n, ...)."""
    scores = scores_output(session, output)

    def read(inputs: npt.NDArray[Any]) -> FloatArray:
        return scores.of(session.run_batched(inputs)[scores.name].reshape(len(inputs), -1))

    return read


def _metrics_sum(parts: list[Metrics]) -> Metrics | None:
    if not parts:
        return None
    top5 = [part.correct_top5 for part in parts if part.correct_top5 is not None]
    return Metrics(
        sum(part.samples for part in parts),
        sum(part.correct_top1 for part in parts),
        sum(top5) if top5 else None,
        sum(part.not_finite for part in parts),
    )


def _fidelity_sum(parts: list[Fidelity]) -> Fidelity | None:
    if not parts:
        return None
    samples = sum(part.samples for part in parts)
    divergence = sum(part.kl * part.samples for part in parts) / samples
    return Fidelity(samples, sum(part.agreeing for part in parts), divergence)


def _no_samples() -> DataError:
    return DataError("the data set has no samples", hint="give at least one")
