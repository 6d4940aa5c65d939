"""Arrays: ``.npz``, ``.npy``, or given from Python."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError
from onnxprune.evaluate.formats.base import IMAGE_NAMES, LABEL_NAMES, Source, as_labels, pick_column
from onnxprune.evaluate.transform import Samples
from onnxprune.graph.structure import IntArray

Array = npt.NDArray[Any]

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class ArraySource(Source):
    """Samples in one array (n, ...), which may be mapped from a file."""

    def __init__(
        self,
        name: str,
        form: str,
        samples: Array,
        labels: IntArray | None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        """Check that there are samples, numeric ones, and as many labels; DataError otherwise."""
        super().__init__(name, labels, warnings)
        self.format = form
        if samples.ndim < 2 or len(samples) == 0:
            raise DataError(
                f"{name} has no samples: an array of shape {samples.shape}",
                hint="the first axis counts the samples",
            )
        if samples.dtype.kind not in "iufb":
            raise DataError(f"{name} holds {samples.dtype}, not numbers", hint="give uint8 or float arrays")
        if labels is not None and len(labels) != len(samples):
            raise DataError(
                f"{name} has {len(samples)} samples but {len(labels)} labels", hint="give one label a sample"
            )
        self.samples = samples

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


def from_arrays(samples: object, labels: object, name: str, form: str = "arrays") -> ArraySource:
    """Samples (n, ...) and labels (n,) or None that are already in memory."""
    try:
        array = np.asarray(samples)
        given = None if labels is None else np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} does not give arrays: {error}", hint="give numpy arrays") from error
    return ArraySource(name, form, array, None if given is None else as_labels(given, name))


def from_mapping(values: Mapping[str, object], name: str) -> ArraySource:
    """Arrays by name, as in a ``.npz``."""
    image_key, label_key = _keys(list(values), name, None)
    return from_arrays(values[image_key], None if label_key is None else values[label_key], name)


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
