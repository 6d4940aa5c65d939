"""The data of a run: calibration samples with their classes, and the samples that judge the result."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.config import CompressConfig
from onnxprune.errors import DataError
from onnxprune.evaluate.datasets import Dataset, load_dataset
from onnxprune.evaluate.metrics import check_labels, distribution, predict
from onnxprune.evaluate.preprocess import Preprocess, preprocess_of
from onnxprune.evaluate.sampling import calibration_indices
from onnxprune.evaluate.scores import scores_warnings
from onnxprune.evaluate.splits import Split
from onnxprune.graph.structure import IntArray
from onnxprune.graph.weights import FloatArray
from onnxprune.profile.providers import Provider, algebra_device, cuda_devices
from onnxprune.profile.session import Session, open_session
from onnxprune.progress import Progress
from onnxprune.select.classes import ClassTree, class_correlation, coarsen

MAX_CLASSES = 10
"""Most classes with statistics of their own; more are joined along the tree of the model's outputs."""

EVALUATION_SAMPLES = 5_000
"""Most samples that judge a result where the user names no evaluation data."""


@dataclass(frozen=True)
class Calibration:
    """What a run learns from and is judged by.

    ``scores`` (n, C) are what the original gives each calibration sample. ``classes`` (n,) numbers its class
    (or cluster of classes) from 0, and ``names`` says what each number stands for. ``training`` is all that
    fine-tuning may use: the data without what judges. ``evaluation`` is None where nothing can judge.
    """

    samples: Dataset
    scores: npt.NDArray[np.floating[Any]]
    classes: IntArray
    names: tuple[str, ...]
    training: Dataset
    evaluation: Dataset | None
    batch: int | None
    provider: Provider
    warnings: tuple[str, ...]

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """The shape of the model's input with these samples, where it leaves more than the batch free."""
        spec = self.samples.spec
        if None not in spec.shape[1:]:
            return None
        return {spec.name: (spec.shape[0] or 1, *self.samples.arrays([0]).inputs.shape[1:])}


def open_calibration(model: onnx.ModelProto, config: CompressConfig, progress: Progress) -> Calibration:
    """Open the data of ``config``, draw calibration samples, and number their classes.

    Labels are the data's own, else the model's predictions (a warning says so). Raises DataError for data
    that does not fit the model.
    """
    session = open_session(model, provider=config.provider, threads=config.threads)
    recorded = preprocess_of(model)
    data = load_dataset(
        config.data, session.input, preprocess=config.preprocess, recorded=recorded, split=config.split,
        seed=config.seed, samples=config.calibration, threads=config.threads,
    )  # fmt: skip
    chosen = calibration_indices(len(data), min(config.calibration, len(data)), config.seed, data.labels)
    samples = data.subset(chosen).in_memory()
    warnings = list(data.warnings)
    if len(samples) < config.calibration:
        warnings.append(
            f"the data has {len(samples)} samples to calibrate on, fewer than {config.calibration}"
        )
    if session.provider == "cpu" and config.provider == "auto" and cuda_devices():
        warnings.append("onnxruntime can't use the GPU, so all runs on the CPU: --provider cuda says why")
    if session.provider != algebra_device(session.provider).type:
        warnings.append("the installed torch can't use the GPU: only the models run on it")
    scores = predict(session, samples, progress=progress)
    warnings += scores_warnings(session, samples)
    labels = samples.labels
    if data.labels is not None:
        check_labels(data.labels, scores.shape[1])
    if labels is None:
        labels = scores.argmax(1).astype(np.int64)
        warnings.append("the data has no labels: the original model's own predictions stand in")
    classes, names = number_classes(labels, distribution(scores), data.class_names)
    evaluation, training = _evaluation(config, data, data.preprocess or recorded, chosen, session, warnings)
    if evaluation is not None and evaluation.labels is not None:
        check_labels(evaluation.labels, scores.shape[1])
    numbering = max(data, evaluation or data, key=lambda given: len(given.class_names))
    warnings += numbering.named_otherwise(scores.shape[1])
    return Calibration(
        samples, scores, classes, names, training, evaluation,
        session.batch, session.provider, tuple(warnings),
    )  # fmt: skip


def number_classes(
    labels: IntArray, outputs: FloatArray, class_names: tuple[str, ...] = ()
) -> tuple[IntArray, tuple[str, ...]]:
    """Number classes from 0 to at most `MAX_CLASSES` - 1: (n,), and what each number stands for.

    More classes are clustered along the tree of their mean ``outputs`` (n, classes of the model).
    ``class_names`` are those of labels 0, 1, ... where the data names them.
    """

    def named(label: int) -> str:
        return class_names[label] if label < len(class_names) else str(label)

    present, numbers = np.unique(labels, return_inverse=True)
    if len(present) <= MAX_CLASSES:
        return numbers.astype(np.int64), tuple(named(int(label)) for label in present)
    means = np.stack([outputs[numbers == index].mean(0) for index in range(len(present))])
    assignment = coarsen(
        ClassTree.from_correlation(class_correlation(np.sqrt(means), standardise=False)), MAX_CLASSES
    )
    clusters = [present[assignment == index] for index in range(int(assignment.max()) + 1)]
    names = tuple(
        named(int(members[0])) + (f"+{len(members) - 1}" if len(members) > 1 else "") for members in clusters
    )
    return assignment[numbers], names


def _evaluation(
    config: CompressConfig,
    data: Dataset,
    known: Preprocess | None,
    used: IntArray,
    session: Session,
    warnings: list[str],
) -> tuple[Dataset | None, Dataset]:
    """The samples that judge, and those of ``data`` that may be learned from.

    ``known`` is the preprocessing of images for which nothing is asked.
    """
    if config.eval_data is not None or config.eval_split is not None:
        source = config.data if config.eval_data is None else config.eval_data
        judging = load_dataset(
            source, session.input, preprocess=config.preprocess, recorded=known, split=config.eval_split,
            option="--eval-split", seed=config.seed, threads=config.threads,
        )  # fmt: skip
        judging, data = _numbered_alike(judging, data)
        said = {*data.warnings, *(judging.numbering if data.class_names else ())}
        warnings += [f"evaluation data: {text}" for text in judging.warnings if text not in said]
        if judging.labels is None and data.labels is not None:
            warnings.append(
                "the evaluation data has no labels: accuracy is measured against the original's predictions"
            )
        seen = np.isin(judging.rows, data.rows[used]).sum() if _same_source(config) else 0
        if seen:
            warnings.append(f"{seen} of {len(judging)} evaluation samples are calibration samples too")
        return judging, data
    rest = np.setdiff1d(np.arange(len(data)), used)
    if not len(rest):
        warnings.append("accuracy is measured on the calibration samples themselves: give --eval-data")
        return data, data
    if len(rest) > EVALUATION_SAMPLES:
        labels = None if data.labels is None else data.labels[rest]
        rest = rest[calibration_indices(len(rest), EVALUATION_SAMPLES, config.seed, labels)]
    if data.labels is not None:
        known_classes, judged = len(np.unique(data.labels)), len(np.unique(data.labels[rest]))
        if judged < known_classes:
            warnings.append(
                f"calibration leaves samples of {judged} of {known_classes} classes to judge by: "
                "give --eval-data"
            )
    return data.subset(rest), data.subset(np.setdiff1d(np.arange(len(data)), rest))


def _same_source(config: CompressConfig) -> bool:
    """Whether rows of calibration and evaluation data count the same samples."""
    data, judging = config.data, config.eval_data
    same = judging is None or judging is data
    if isinstance(data, str | os.PathLike) and isinstance(judging, str | os.PathLike):
        same = os.path.realpath(data) == os.path.realpath(judging)
    parts = [Split() if text is None else Split.parse(text) for text in (config.split, config.eval_split)]
    return same and parts[0].name == parts[1].name


def _numbered_alike(judging: Dataset, data: Dataset) -> tuple[Dataset, Dataset]:
    """Both with their classes numbered alike, where both name theirs: as the one that names more of them.

    Names number classes by their order, so a class less shifts the others. DataError where each names
    classes that the other lacks.
    """
    names, known = judging.class_names, data.class_names
    if not names or not known or names == known:
        return judging, data
    if set(names) <= set(known):
        return _renumbered(judging, known), data
    if set(known) <= set(names):
        return judging, _renumbered(data, names)
    raise DataError(
        f"the evaluation data has a class '{min(set(names) - set(known))}' that the calibration data lacks, "
        f"which has '{min(set(known) - set(names))}'",
        hint="their names number the classes: name them alike, or by their numbers",
    )


def _renumbered(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """The data set with its classes numbered by their places among ``names``."""
    if dataset.labels is None:
        return dataset
    return dataset.with_labels(np.array([names.index(name) for name in dataset.class_names])[dataset.labels])


def labelled(evaluation: Dataset, session: Session, progress: Progress) -> Dataset:
    """The evaluation data with labels: its own, or the original model's predictions."""
    if evaluation.labels is not None:
        return evaluation
    scores = predict(session, evaluation, progress=progress)
    if not len(scores):
        raise DataError("there is nothing to evaluate on", hint="give --eval-data")
    return evaluation.with_labels(scores.argmax(1))
