"""What every data format offers: random access to raw samples, and labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Number
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError
from onnxprune.evaluate.transform import Samples
from onnxprune.graph.structure import IntArray

IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"}
)
_LARGEST_LABEL: Final = 2**31 - 1
IMAGE_NAMES: Final = ("image", "images", "img", "imgs", "x", "data", "input", "inputs", "pixel_values")
LABEL_NAMES: Final = (
    "label",
    "labels",
    "y",
    "class",
    "classes",
    "class_id",
    "class_index",
    "class_idx",
    "target",
    "targets",
    "fine_label",
    "category",
)


@dataclass(frozen=True)
class Labels:
    """Class indices (n,), and the names of classes 0, 1, ... where the data names them."""

    indices: IntArray
    names: tuple[str, ...] = ()


class Source(ABC):
    """A data set as it lies on disk or in memory: ``len`` samples, read by index.

    ``labels`` (n,) are class indices, or None. ``warnings`` are remarks for the report.
    ``class_names`` are those of classes 0, 1, ... where the data names them.
    """

    format: str = ""

    def __init__(self, name: str, labels: Labels | None, warnings: tuple[str, ...] = ()) -> None:
        """Name it as the user did; ``labels`` of n samples or None."""
        self.name = name
        self.labels = None if labels is None else labels.indices
        self.class_names = () if labels is None else labels.names
        self.warnings = warnings

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def read(self, indices: IntArray) -> Samples:
        """Raw samples at ``indices``; DataError where one can't be read."""


@contextmanager
def user_code(failing: str, hint: str) -> Iterator[None]:
    """Whatever the user's own code raises in the block as a DataError of one line that names it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # it may raise anything
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise DataError(f"{failing}: {cause}", hint=hint) from error


def as_labels(values: npt.NDArray[Any], where: str) -> Labels:
    """Class indices from a label array: whole numbers, also as text, a column, one-hot rows, or names.

    Names become indices in sorted order, as for class folders. Raises DataError for anything else.
    """
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and array.shape[1] > 1 and _is_one_hot(array):
        array = array.argmax(axis=1)
    if array.ndim != 1:
        raise DataError(
            f"the labels of {where} have the shape {array.shape}", hint="give one class index for each sample"
        )
    if array.dtype.kind in "OUS":
        texts = [_text(item, where) for item in array]
        try:
            array = np.array([float(text) for text in texts])
        except ValueError:
            names, indices = np.unique(np.array(texts), return_inverse=True)
            return Labels(indices.astype(np.int64), tuple(names.tolist()))
    return Labels(_whole(array, where))


def _whole(array: npt.NDArray[Any], where: str) -> IntArray:
    """Numbers (n,) as class indices; DataError where one can't be an index."""
    if array.dtype.kind == "f":
        if not bool(np.all(np.isfinite(array) & (array == np.rint(array)))):
            raise DataError(f"the labels of {where} are not whole numbers", hint="give class indices from 0")
    elif array.dtype.kind not in "iub":
        raise DataError(
            f"the labels of {where} are {array.dtype}, not integers", hint="give class indices from 0"
        )
    if array.size and array.min() < 0:
        raise DataError(
            f"the labels of {where} include {array.min():.6g}",
            hint="class indices start at 0; take unlabelled samples out, or leave all labels out",
        )
    if array.size and array.max() > _LARGEST_LABEL:
        raise DataError(
            f"the labels of {where} include {array.max():.6g}", hint="give class indices, which count from 0"
        )
    return array.astype(np.int64)


def _text(item: object, where: str) -> str:
    """A number or name as text; DataError for other values, NaN among them."""
    if isinstance(item, bytes):
        try:
            item = item.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"the labels of {where} are not UTF-8", hint="give class indices") from error
    if not isinstance(item, str | Number) or item != item:
        kind = "missing values" if isinstance(item, Number) else f"values of type {type(item).__name__}"
        raise DataError(
            f"the labels of {where} include {kind}",
            hint="give a class index or a name for each sample; take unlabelled samples out",
        )
    return str(item).strip()


def join_labels(parts: list[npt.NDArray[Any]], where: str) -> Labels:
    """Class indices of labels that come in parts, numbered together; see `as_labels`."""
    try:
        joined = np.concatenate(parts)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the labels of {where} differ in form", hint="give all of them in one form"
        ) from error
    return as_labels(joined, where)


def pick_column(names: list[str], known: tuple[str, ...], what: str, where: str) -> str | None:
    """The one name in ``names`` that is called like ``what``; None if there is none.

    The order of ``known`` decides between several: ``label`` wins over ``fine_label``.
    """
    called: dict[str, list[str]] = {}
    for name in names:
        called.setdefault(name.strip().lower(), []).append(name)
    found = next((called[name] for name in known if name in called), [])
    if len(found) > 1:
        raise DataError(f"{where} has its {what} twice: {', '.join(found)}", hint="keep one of them")
    return found[0] if found else None


def _is_one_hot(array: npt.NDArray[Any]) -> bool:
    if array.dtype.kind not in "iufb":
        return False
    return bool(np.all((array == 0) | (array == 1)) and np.all(array.sum(axis=1) == 1))
