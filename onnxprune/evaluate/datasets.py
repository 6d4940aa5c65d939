"""Data sets: DATA as users name it, opened, preprocessed for one model input, given in batches."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError
from onnxprune.evaluate.formats import arrays, folder, stream, synthetic
from onnxprune.evaluate.formats.base import IMAGE_SUFFIXES, Labels, Source
from onnxprune.evaluate.formats.parquet import ParquetSource
from onnxprune.evaluate.preprocess import Preprocess
from onnxprune.evaluate.splits import Split
from onnxprune.evaluate.transform import Transform
from onnxprune.graph.structure import IntArray
from onnxprune.profile.spec import TensorSpec

Array = npt.NDArray[Any]

SYNTHETIC: Final = "synthetic"
_FILES: Final = (".parquet", ".npz", ".npy")
_SHARD = re.compile(r"(?P<stem>.+)-\d+-of-\d+")


@dataclass(frozen=True)
class Batch:
    """Model-ready ``inputs`` (n, ...) with their ``labels`` (n,), or None where there are none."""

    inputs: Array
    labels: IntArray | None


class Dataset:
    """Samples of one source, preprocessed for one model input; made by `load_dataset`.

    A data set is a view: `subset`, `with_labels`, `without_labels` and `in_memory` give new ones.
    ``labels`` (n,) are class indices or None.
    """

    def __init__(
        self, source: Source, transform: Transform, rows: IntArray, labels: IntArray | None, split: str | None
    ) -> None:
        """The ``rows`` (n,) of ``source``, whose labels are ``labels`` (n,) or None."""
        self._source = source
        self._transform = transform
        self._rows = rows
        self._split = split
        self.labels = labels

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._rows)

    @property
    def rows(self) -> IntArray:
        """Which rows of its source they are: (n,)."""
        return self._rows

    @property
    def spec(self) -> TensorSpec:
        """The model input that the samples are prepared for."""
        return self._transform.spec

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes 0, 1, ... where the data has them."""
        return self._source.class_names

    @property
    def preprocess(self) -> Preprocess | None:
        """The preprocessing in force, all defaults filled in; None where arrays are taken as they are."""
        return self._transform.settings if self._transform.images or self._transform.asked else None

    @property
    def numbering(self) -> tuple[str, ...]:
        """The remark that names number the classes, where they do."""
        if not self.class_names:
            return ()
        return (f"classes are numbered by their sorted names: 0 is '{self.class_names[0]}'",)

    def named_otherwise(self, classes: int) -> tuple[str, ...]:
        """A warning where names number more or fewer classes than a model's ``classes``."""
        named = len(self.class_names)
        if named in (0, classes):
            return ()
        return (
            f"the data names {named} classes, the model has {classes}: their numbers may not be the model's",
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Remarks for the report: what was assumed, and what may cost accuracy."""
        remarks = list(self._source.warnings)
        remarks += self.numbering
        if self._transform.range_assumed:
            unit = "x / 255" if self._transform.settings.scale != 1.0 else "raw 0..255"
            remarks.append(f"no --mean, --std or --scale was given: images are fed as {unit}")
        return tuple(remarks)

    def batches(self, batch_size: int, indices: npt.ArrayLike | None = None) -> Iterator[Batch]:
        """The samples in order, or those at ``indices``, at most ``batch_size`` at a time.

        The next batch is read while the caller works on the current one. Raises DataError where a
        sample can't be read or does not fit the model.
        """
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        chunks = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
        with ThreadPoolExecutor(1, thread_name_prefix="onnxprune-data") as reader:
            pending = reader.submit(self._batch, chunks[0]) if chunks else None
            for following in [*chunks[1:], None]:
                if pending is None:
                    return
                batch = pending.result()
                pending = None if following is None else reader.submit(self._batch, following)
                yield batch

    def arrays(self, indices: npt.ArrayLike | None = None) -> Batch:
        """All samples, or those at ``indices``, as one batch in memory."""
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        if len(chosen) == 0:
            raise DataError("no samples are chosen", hint="give at least one")
        return self._batch(chosen)

    def subset(self, indices: npt.ArrayLike) -> Dataset:
        """The samples at ``indices``, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return Dataset(self._source, self._transform, self._rows[chosen], labels, self._split)

    def without_labels(self) -> Dataset:
        """The same samples with their labels withheld."""
        return Dataset(self._source, self._transform, self._rows, None, self._split)

    def with_labels(self, labels: npt.ArrayLike) -> Dataset:
        """The same samples with other ``labels`` (n,), such as a model's own predictions."""
        given = np.asarray(labels, dtype=np.int64)
        if given.shape != (len(self),):
            raise ValueError(f"{len(self)} samples need labels of shape ({len(self)},), not {given.shape}")
        return Dataset(self._source, self._transform, self._rows, given, self._split)

    def in_memory(self, limit: int = 2 << 30) -> Dataset:
        """The same data set with its samples read once and kept, images as uint8 of their final size.

        Where that would take more than ``limit`` bytes, the data set itself is returned. Worth it for
        calibration data, which is passed over many times.
        """
        if len(self) == 0 or isinstance(self._source, arrays.ArraySource):
            return self
        first = self._transform.geometry(self._source.read(self._rows[:1]))
        if first.nbytes * len(self) > limit:
            return self
        kept = np.empty((len(self), *first.shape[1:]), dtype=first.dtype)
        for start in range(0, len(self), 64):
            rows = self._rows[start : start + 64]
            part = self._transform.geometry(self._source.read(rows))
            if part.shape[1:] != kept.shape[1:]:
                raise DataError("the images differ in size", hint="--resize and --crop make them equal")
            kept[start : start + len(rows)] = part
        labels = None if self.labels is None else Labels(self.labels, self.class_names)
        source = arrays.ArraySource(
            self._source.name, self._source.format, kept, labels, self._source.warnings
        )
        done = replace(self._transform, settings=replace(self._transform.settings, resize=None, crop=None))
        return Dataset(source, done, np.arange(len(self)), self.labels, self._split)

    def describe(self) -> dict[str, Any]:
        """What the report says of the data: source, format, split, samples, labels, preprocessing."""
        preprocess = self.preprocess
        return {
            "source": self._source.name,
            "format": self._source.format,
            "split": self._split,
            "samples": len(self),
            "labels": self.labels is not None,
            "classes": None if self.labels is None else len(np.unique(self.labels)),
            "preprocess": None if preprocess is None else preprocess.to_dict(),
        }

    def _batch(self, indices: IntArray) -> Batch:
        inputs = self._transform(self._source.read(self._rows[indices]))
        return Batch(inputs, None if self.labels is None else self.labels[indices])


def load_dataset(
    data: object,
    spec: TensorSpec,
    *,
    preprocess: Preprocess | None = None,
    recorded: Preprocess | None = None,
    split: str | None = None,
    option: str = "--split",
    seed: int = 0,
    samples: int = synthetic.SAMPLES,
    threads: int | None = None,
) -> Dataset:
    """Open DATA for the model input ``spec``; ``option`` names the one that gave ``split``, for errors.

    ``data`` is a path (folder of class folders, folder with ``labels.csv``, folder of images, ``.npz``,
    ``.npy``, ``.parquet``), ``module:function``, ``synthetic``, or a Python object: an array, a tuple
    (array, labels), a mapping of these, a callable or iterable of batches, or a Dataset.
    ``recorded`` is the preprocessing found in a model's metadata: it serves images where ``preprocess``
    gives nothing. ``split`` is a named part, a row range, or both (see `Split`). ``seed`` and
    ``samples`` concern synthetic data only. Images are decoded in ``threads`` threads; None: one a core,
    8 at most. The first sample is prepared at once, so that what does
    not fit the model fails here.

    Raises DataError for data that can't be used, UsageError for a split that can't be read.
    """
    chosen = Split() if split is None else Split.parse(split, option)
    if isinstance(data, Dataset):
        opened, rows, labels = data._source, data._rows, data.labels
        if chosen.name is not None:
            raise DataError(
                f"a data set object has no split '{chosen.name}'", hint="use a row range such as :300"
            )
        if data.preprocess is not None:
            # The layout belongs to the input that it was prepared for.
            recorded = replace(data.preprocess, layout=None)
    else:
        if isinstance(data, str) and data == SYNTHETIC:
            opened = synthetic.SyntheticSource(spec, preprocess or recorded, samples, seed)
        else:
            opened = open_source(data, chosen.name)
        rows, labels = np.arange(len(opened), dtype=np.int64), opened.labels
    picked = chosen.rows(len(rows), option)
    if picked is not None:
        rows = rows[picked]
        labels = None if labels is None else labels[picked]
    first = opened.read(rows[:1])
    if isinstance(data, Dataset) and preprocess is None and data.spec == spec:
        return Dataset(opened, data._transform, rows, labels, split or data._split)
    transform = Transform.bind(preprocess, spec, first, threads)
    if transform.images and not transform.asked and recorded is not None:
        transform = Transform.bind(recorded, spec, first, threads)
    transform(first)
    return Dataset(opened, transform, rows, labels, split)


def open_source(data: object, split: str | None = None) -> Source:
    """The raw samples of DATA, before any preprocessing; ``split`` is the name of a part of it."""
    if isinstance(data, str | os.PathLike):
        try:
            return _open_path(os.fspath(data), split)
        except OSError as error:
            raise DataError(
                f"{os.fspath(data)} can't be read: {error.strerror or error}", hint="check its permissions"
            ) from error
    if isinstance(data, Source):
        return data
    if split is not None:
        raise DataError(f"data given as {type(data).__name__} has no split '{split}'", hint="use a row range")
    if isinstance(data, Mapping) or (isinstance(data, tuple) and len(data) == 2):
        return arrays.from_arrays(data, "arrays")
    return stream.collect(data, getattr(data, "__name__", type(data).__name__))


def _open_path(text: str, split: str | None) -> Source:
    path = Path(text)
    if path.is_dir():
        return _open_folder(path, text, split)
    if path.is_file():
        return _open_file(path, text, split)
    if stream.parse_reference(text) is not None:
        return stream.open_reference(text, split)
    raise DataError(
        f"no such data: {text}",
        hint="DATA is a folder, .npz, .npy, .parquet, module:function or synthetic",
    )


def _open_file(path: Path, name: str, split: str | None) -> Source:
    path.open("rb").close()  # what may not be read is not broken
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return arrays.open_npz(path, name, split)
    if suffix not in _FILES:
        raise DataError(
            f"{name} is in no known format", hint="DATA is a folder, .npz, .npy, .parquet or module:function"
        )
    if split is not None:
        raise DataError(f"{name} has no split '{split}'", hint="choose rows with --split 0:300 instead")
    return arrays.open_npy(path, name) if suffix == ".npy" else ParquetSource(name, [path])


def _open_folder(path: Path, name: str, split: str | None) -> Source:
    has_csv = (path / folder.LABELS_FILE).is_file()
    if split is not None:
        if (path / split).is_dir():
            return _open_folder(path / split, f"{name}/{split}", None)
        if has_csv:
            return folder.open_folder(path, name, split)
    files = _data_files(path)
    if split is not None:
        if split not in files:
            known = sorted([*files, *(item.name for item in path.iterdir() if item.is_dir())])
            raise DataError(f"{name} has no split '{split}'", hint=f"its parts: {', '.join(known) or 'none'}")
        return _open_group(files[split], f"{name}/{split}")
    if has_csv or not files:
        return folder.open_folder(path, name, None)
    if len(files) > 1:
        raise DataError(
            f"{name} holds several data files: {', '.join(sorted(files))}",
            hint=f"choose one, such as --split {min(files)}",
        )
    return _open_group(next(iter(files.values())), name)


def is_data_file(path: Path) -> bool:
    """Whether a folder of data is read for files of this name, among others."""
    suffix = path.suffix.lower()
    return suffix in IMAGE_SUFFIXES or suffix in _FILES or path.name == folder.LABELS_FILE


def _data_files(path: Path) -> dict[str, list[Path]]:
    """Data files in a folder by split: their names without suffix and shard number."""
    found: dict[str, list[Path]] = {}
    for item in sorted(path.iterdir()):
        if item.suffix.lower() in _FILES and item.is_file():
            shard = _SHARD.fullmatch(item.stem)
            found.setdefault(shard["stem"] if shard else item.stem, []).append(item)
    return found


def _open_group(files: list[Path], name: str) -> Source:
    if len(files) > 1 and all(item.suffix.lower() == ".parquet" for item in files):
        return ParquetSource(name, files)
    if len(files) > 1:
        raise DataError(f"{name} is several files: {', '.join(item.name for item in files)}", hint="name one")
    return _open_file(files[0], str(files[0]), None)
