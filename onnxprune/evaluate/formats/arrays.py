"""Arrays: ``.npz``, ``.npy``, or given from Python."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError
from onnxprune.evaluate.formats.base import (
    IMAGE_NAMES,
    LABEL_NAMES,
    Labels,
    Source,
    as_labels,
    pick_column,
    user_code,
)
from onnxprune.evaluate.transform import Samples
from onnxprune.graph.structure import IntArray

Array = npt.NDArray[Any]

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class Arrays(NamedTuple):
    """Samples (n, ...) with their labels as they were given (n, ...), or None."""

    samples: Array
    labels: Array | None

    def checked(self, name: str) -> Arrays:
        """Itself, where there are samples, numeric ones, and as many labels; DataError otherwise."""
        samples, labels = self
        if samples.ndim < 2 or len(samples) == 0:
            raise DataError(
                f"{name} has no samples: an array of shape {samples.shape}",
                hint="the first axis counts the samples",
            )
        if samples.dtype.kind not in "iufb":
            raise DataError(f"{name} holds {samples.dtype}, not numbers", hint="give uint8 or float arrays")
        if labels is not None and labels.shape[:1] != (len(samples),):
            counted = f"{len(labels)} labels" if labels.ndim else "a label of shape ()"
            raise DataError(
                f"{name} has {len(samples)} samples but {counted}",
                hint="give one label a sample, as an array (n,)",
            )
        return self


class ArraySource(Source):
    """Samples in one array (n, ...), which may be mapped from a file."""

    def __init__(
        self,
        name: str,
        form: str,
        samples: Array,
        labels: Labels | None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        """Check that there are samples, numeric ones, and as many labels; DataError otherwise."""
        super().__init__(name, labels, warnings)
        self.format = form
        self.samples = Arrays(samples, self.labels).checked(name).samples

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def read(self, indices: IntArray) -> Samples:
        """The rows at ``indices``, as they are."""
        return np.asarray(self.samples[indices])


def open_npz(path: Path, name: str, split: str | None) -> Source:
    """A ``.npz`` with ``images`` or ``x``, and ``labels`` or ``y``.

    ``split`` chooses among names such as ``train_images`` or ``x_train``. Raises DataError.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = list(archive.files)
            image_key, label_key = _keys(keys, name, split)
            samples = archive[image_key]
            labels = None if label_key is None else archive[label_key]
    except _UNREADABLE as error:
        raise DataError(
            f"{name} can't be read as .npz: {error}",
            hint="write it with numpy.savez, without pickled objects",
        ) from error
    return ArraySource(name, "npz", samples, None if labels is None else as_labels(labels, name))


def open_npy(path: Path, name: str) -> Source:
    """A ``.npy`` of samples (n, ...) without labels, mapped and not loaded."""
    try:
        samples = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(
            f"{name} can't be read as .npy: {error}", hint="write it with numpy.save, without pickled objects"
        ) from error
    return ArraySource(name, "npy", samples, None)


def from_arrays(data: object, name: str) -> ArraySource:
    """A source of what is already in memory: an array, (array, labels) or a mapping of these."""
    samples, labels = take_arrays(data, name)
    return ArraySource(name, "arrays", samples, None if labels is None else as_labels(labels, name))


def take_arrays(data: object, name: str) -> Arrays:
    """The arrays of an array, a pair (array, labels) or a mapping as in a ``.npz``; DataError otherwise."""
    samples, labels = data, None
    if isinstance(data, Mapping):
        image_key, label_key = _keys(list(data), name, None)
        samples, labels = data[image_key], None if label_key is None else data[label_key]
    elif isinstance(data, tuple | list) and len(data) == 2:
        samples, labels = data
    with user_code(f"{name} does not give arrays", hint="give numpy arrays"):
        taken = Arrays(np.asarray(samples), None if labels is None else np.asarray(labels))
    return taken.checked(name)


def _keys(keys: list[str], name: str, split: str | None) -> tuple[str, str | None]:
    if split is not None:
        chosen = {key: stem for key in keys for stem in (_stem(key, split),) if stem is not None}
        if not chosen:
            raise DataError(
                f"{name} has no arrays of a split '{split}'", hint=f"its arrays: {', '.join(keys)}"
            )
    else:
        chosen = {key: key for key in keys}
    by_stem = {stem: key for key, stem in chosen.items()}
    stems = list(by_stem)
    image = pick_column(stems, IMAGE_NAMES, "array of images", name)
    label = pick_column(stems, LABEL_NAMES, "array of labels", name)
    if image is None and len([stem for stem in stems if stem != label]) == 1:
        image = next(stem for stem in stems if stem != label)
    if image is None:
        raise DataError(
            f"{name} has no array called images or x",
            hint=f"its arrays: {', '.join(keys) or 'none'}; --split picks those of one split, as in x_train",
        )
    return by_stem[image], None if label is None else by_stem[label]


def _stem(key: str, split: str) -> str | None:
    """``images`` from ``train_images`` or ``images_train``; None where the key is of another split."""
    for separator in ("_", "-", "/", "."):
        if key.startswith(split + separator):
            return key[len(split) + 1 :]
        if key.endswith(separator + split):
            return key[: -len(split) - 1]
    return None
