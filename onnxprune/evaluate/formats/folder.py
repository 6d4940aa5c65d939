"""Folders of image files: class folders, ``labels.csv``, or plain images without labels."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from onnxprune.errors import DataError
from onnxprune.evaluate.formats.base import (
    IMAGE_SUFFIXES,
    LABEL_NAMES,
    Labels,
    Source,
    as_labels,
    pick_column,
)
from onnxprune.evaluate.images import EncodedImage
from onnxprune.evaluate.transform import Samples
from onnxprune.graph.structure import IntArray

LABELS_FILE = "labels.csv"
_FILE_NAMES = ("file", "filename", "file_name", "path", "image", "img", "name")
_SPLIT_NAMES = ("split", "subset", "partition")
_USUAL_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


class ImageFiles(Source):
    """Image files, opened when they are decoded."""

    def __init__(
        self,
        name: str,
        form: str,
        files: list[Path],
        labels: Labels | None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        """Files in order, with their ``labels`` or None; ``form`` names the kind of folder."""
        super().__init__(name, labels, warnings)
        self.format = form
        self.files = files

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def read(self, indices: IntArray) -> Samples:
        """The files, as they lie on disk."""
        return [EncodedImage(self.files[index], str(self.files[index])) for index in indices]


def open_folder(folder: Path, name: str, split: str | None) -> Source:
    """A folder's images: by its ``labels.csv``, by its class folders, or plain.

    ``split`` chooses by a split column of ``labels.csv``. Raises DataError where there are none.
    """
    if (folder / LABELS_FILE).is_file():
        return _from_csv(folder, name, split)
    classes = {item.name: _images_below(item, folder) for item in _visible(folder) if item.is_dir()}
    names = [item for item, files in classes.items() if files]
    if names:
        if len(names) > 1 and all(item.lower() in _USUAL_SPLITS for item in names):
            raise DataError(
                f"{name} holds the splits {', '.join(names)}", hint=f"choose one, such as --split {names[0]}"
            )
        return _from_classes(classes, name)
    files = [item for item in _visible(folder) if _is_image(item)]
    if not files:
        raise DataError(
            f"{name} holds no images",
            hint="DATA is a folder of class folders, a folder with labels.csv, .npz, .npy, .parquet, "
            "module:function or synthetic",
        )
    return ImageFiles(name, "images without labels", files, None)


def _from_classes(classes: dict[str, list[Path]], name: str) -> Source:
    """Images by the names of their class folders; DataError where an empty one would shift the numbers."""
    files = [file for found in classes.values() for file in found]
    owners = [item for item, found in classes.items() for _ in found]
    if all(item.isascii() and item.isdigit() for item in owners):
        return ImageFiles(name, "class folders", files, as_labels(np.array(owners), name))
    if empty := [item for item, found in classes.items() if not found and item < owners[-1]]:
        listed = ", ".join(empty[:3]) + (f" and {len(empty) - 3} more" if len(empty) > 3 else "")
        raise DataError(
            f"{name}: no images in {listed}",
            hint="a folder's place among the others numbers its class: put an image in, or remove the folder",
        )
    names = tuple(item for item, found in classes.items() if found)
    numbers = {item: number for number, item in enumerate(names)}
    labels = Labels(np.array([numbers[item] for item in owners], dtype=np.int64), names)
    return ImageFiles(name, "class folders", files, labels)


def _from_csv(folder: Path, name: str, split: str | None) -> Source:
    where = f"{name}/{LABELS_FILE}"
    header, rows = _rows(folder / LABELS_FILE, where)
    file_column = pick_column(header, _FILE_NAMES, "file column", where)
    if file_column is None:
        raise DataError(
            f"{where} has no file column", hint=f"call one 'file'; its columns: {', '.join(header)}"
        )
    label_column = _label_column([item for item in header if item != file_column], where)
    if split is not None:
        rows = _of_split(header, rows, split, where)
    listed = [row[header.index(file_column)].strip() for row in rows]
    files = [folder / item for item in listed]
    unknown = [item for item, path in zip(listed, files, strict=True) if not item or not path.is_file()]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise DataError(
            f"{where} lists files that do not exist: '{unknown[0]}'{more}",
            hint="file names are relative to the folder; remove these rows or add the files",
        )
    if not files:
        raise DataError(f"{where} lists no files", hint="give one row for each image: file,label")
    texts = [row[header.index(label_column)].strip() for row in rows]
    missing = sum(not text for text in texts)
    if missing:
        raise DataError(f"{where} has {missing} rows without a label", hint="label them or remove them")
    labels = as_labels(np.array(texts), where)
    twice = len(files) - len(set(files))
    warnings = (f"{where} lists {twice} files more than once",) if twice else ()
    return ImageFiles(name, LABELS_FILE, files, labels, warnings)


def _rows(path: Path, where: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file; a file without header is taken as (file, label)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where} can't be read: {error}", hint="write it as CSV in UTF-8") from error
    if not rows:
        raise DataError(f"{where} is empty", hint="give one row for each image: file,label")
    if len(rows[0]) == 2 and Path(rows[0][0].strip()).suffix.lower() in IMAGE_SUFFIXES:
        rows.insert(0, ["file", "label"])
    header = [cell.strip() for cell in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise DataError(
                f"{where}: row {number} has {len(row)} cells, the header {len(header)}",
                hint="quote cells that hold commas",
            )
    return header, rows[1:]


def _label_column(columns: list[str], where: str) -> str:
    exact = [column for column in columns if column.lower() in LABEL_NAMES]
    ending = [column for column in columns if column.lower().endswith("_index")]
    found = exact or ending or (columns if len(columns) == 1 else [])
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{where} has several label columns: {', '.join(found)}", hint="call only one of them 'label'"
        )
    listed = ", ".join(columns) or "none but the file"
    raise DataError(f"{where} has no label column", hint=f"call one 'label'; its columns: {listed}")


def _of_split(header: list[str], rows: list[list[str]], split: str, where: str) -> list[list[str]]:
    column = pick_column(header, _SPLIT_NAMES, "split column", where)
    if column is None:
        raise DataError(f"{where} has no split column", hint="choose rows with --split 0:300 instead")
    index = header.index(column)
    counts = Counter(row[index].strip() for row in rows)
    if split not in counts:
        raise DataError(f"{where} has no split '{split}'", hint=f"its splits: {', '.join(sorted(counts))}")
    return [row for row in rows if row[index].strip() == split]


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(item for item in folder.iterdir() if not item.name.startswith((".", "__")))
    except OSError as error:
        raise DataError(f"folder {folder} can't be read: {error}", hint="check its permissions") from error


def _is_image(item: Path) -> bool:
    return item.suffix.lower() in IMAGE_SUFFIXES and not item.is_dir()


def _images_below(folder: Path, root: Path) -> list[Path]:
    """Images in a class folder of ``root`` and below it; links lead into no folder twice."""
    entered = {root.resolve()}

    def walk(inner: Path) -> Iterator[Path]:
        if inner.resolve() in entered:
            return
        entered.add(inner.resolve())
        for item in _visible(inner):
            if item.is_dir():
                yield from walk(item)
            elif _is_image(item):
                yield item

    return list(walk(folder))
