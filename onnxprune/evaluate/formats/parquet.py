"""Parquet files, as data hubs give them: encoded images or arrays, and a label column."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError, UsageError
from onnxprune.evaluate.formats.base import IMAGE_NAMES, LABEL_NAMES, Source, join_labels, pick_column
from onnxprune.evaluate.images import EncodedImage
from onnxprune.evaluate.transform import Samples
from onnxprune.graph.structure import IntArray

_KEPT_ROW_GROUPS = 4


class ParquetSource(Source):
    """Rows of one or several Parquet files; row groups are read when they are needed."""

    format = "parquet"

    def __init__(self, name: str, files: list[Path]) -> None:
        """Open the files in order and read their labels; DataError where they do not fit."""
        parquet = _pyarrow()
        self._files: list[Any] = []
        self._folders: list[Path] = []
        self._groups: list[tuple[int, int]] = []
        sizes: list[int] = []
        labels: list[npt.NDArray[Any]] = []
        self._column, label = "", None
        for number, path in enumerate(files):
            try:
                file = parquet.ParquetFile(path)
                if number == 0:
                    names = list(file.schema_arrow.names)
                    self._column, label = _columns(names, name)
                if label is not None:
                    labels.append(_numpy(file.read([label]).column(0)))
            except (OSError, KeyError, ValueError) as error:  # pyarrow's errors derive from these
                raise DataError(
                    f"{path} can't be read as Parquet: {error}",
                    hint="all files of a set have the same columns" if number else "is it a complete file?",
                ) from error
            self._files.append(file)
            self._folders.append(path.parent)
            for group in range(file.metadata.num_row_groups):
                self._groups.append((number, group))
                sizes.append(file.metadata.row_group(group).num_rows)
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        if len(self) == 0:
            raise DataError(f"{name} has no rows", hint="give one row for each image")
        self._cache: OrderedDict[int, list[Any] | npt.NDArray[Any]] = OrderedDict()
        super().__init__(name, join_labels(labels, name) if labels else None)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._starts[-1])

    def read(self, indices: IntArray) -> Samples:
        """Encoded images, or rows of an array column."""
        groups = np.searchsorted(self._starts, indices, side="right") - 1
        rows: list[Any] = []
        for index, group in zip(indices, groups, strict=True):
            value = self._group(int(group))[int(index - self._starts[group])]
            rows.append(self._sample(value, int(index), int(group)))
        if isinstance(rows[0], np.ndarray):
            if len({row.shape for row in rows}) > 1:
                raise DataError(f"the arrays of {self.name} differ in shape", hint="make them equal in shape")
            return np.stack(rows)
        return rows

    def _sample(self, value: Any, index: int, group: int) -> Any:
        if isinstance(value, np.ndarray):
            return value
        where = f"row {index} of {self.name}"
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
            if data is None and path:
                file = self._folders[self._groups[group][0]] / path
                return EncodedImage(file, f"{where} ({path})")
            value = data
        if not isinstance(value, bytes):
            raise DataError(f"{where} has no image", hint=f"the column '{self._column}' holds encoded images")
        return EncodedImage(value, where)

    def _group(self, group: int) -> list[Any] | npt.NDArray[Any]:
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        number, inner = self._groups[group]
        try:
            column = self._files[number].read_row_group(inner, columns=[self._column]).column(0)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.name} can't be read: {error}", hint="the file may be cut short: fetch it again"
            ) from error
        nested = _nested(column)
        values = list(column.to_pylist()) if nested is None else nested
        if isinstance(values, list) and any(
            value is not None and not isinstance(value, dict | bytes) for value in values[:1]
        ):
            raise DataError(
                f"the column '{self._column}' of {self.name} holds {column.type}",
                hint="give encoded images (bytes, or struct of bytes and path) or arrays of equal shape",
            )
        self._cache[group] = values
        while len(self._cache) > _KEPT_ROW_GROUPS:
            self._cache.popitem(last=False)
        return values


def _columns(names: list[str], where: str) -> tuple[str, str | None]:
    image = pick_column(names, IMAGE_NAMES, "image column", where)
    if image is None:
        raise DataError(
            f"{where} has no column called image or img", hint=f"its columns: {', '.join(names) or 'none'}"
        )
    return image, pick_column(names, LABEL_NAMES, "label column", where)


def _nested(column: Any) -> npt.NDArray[Any] | None:
    """Rows of a column of nested lists of numbers as an array (n, ...); None for any other column."""
    import pyarrow as pa

    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    shape = [len(values)]
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or _is_fixed(values.type):
        inner = values.flatten()
        if len(values) == 0 or len(inner) % len(values) or not _is_even(values):
            return None
        shape.append(len(inner) // len(values))
        values = inner
    numeric = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if len(shape) == 1 or not numeric or values.null_count:
        return None
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)


def _is_fixed(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_list(kind))


def _is_even(values: Any) -> bool:
    import pyarrow.compute as pc

    return values.null_count == 0 and len(pc.unique(pc.list_value_length(values))) == 1


def _numpy(column: Any) -> npt.NDArray[Any]:
    if column.null_count:
        raise DataError(
            f"the label column has {column.null_count} empty rows",
            hint="fill or remove them, or drop the column",
        )
    nested = _nested(column)
    return np.asarray(column.to_numpy()) if nested is None else nested


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError("reading Parquet needs pyarrow", hint="pip install 'onnxprune[parquet]'") from error
    return pyarrow.parquet
