"""Random flips and shifts of images that are ready for a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.evaluate.datasets import Dataset

Array = npt.NDArray[np.generic]

SHIFT = 8
"""Images are shifted by at most this fraction (an eighth) of their height and width."""

_SMALLEST = 8


@dataclass(frozen=True)
class Augmentation:
    """Mirrors half of the images left to right, and shifts each one, filling up with zeros.

    ``rows`` and ``columns`` are the axes of height and width. Zeros are those of the preprocessed
    input: the mean colour, where a mean was subtracted.
    """

    rows: int
    columns: int

    def __call__(self, images: Array, random: np.random.Generator) -> Array:
        """A changed copy of ``images`` (n, ...)."""
        result = np.zeros_like(images)
        height, width = images.shape[self.rows], images.shape[self.columns]
        down = _shifts(random, height, len(images))
        right = _shifts(random, width, len(images))
        mirrored = random.random(len(images)) < 0.5
        for index, image in enumerate(images):
            if mirrored[index]:
                image = np.flip(image, self.columns - 1)
            to_rows, from_rows = _overlap(int(down[index]), height)
            to_columns, from_columns = _overlap(int(right[index]), width)
            target, source = self._window(to_rows, to_columns), self._window(from_rows, from_columns)
            result[index][target] = image[source]
        return result

    def _window(self, rows: slice, columns: slice) -> tuple[slice, ...]:
        """An index of one image, whose axes are one fewer than the batch's."""
        window = [slice(None)] * 3
        window[self.rows - 1], window[self.columns - 1] = rows, columns
        return tuple(window)


def image_augmentation(dataset: Dataset) -> Augmentation | None:
    """The augmentation for a data set of images; None where its samples aren't images.

    Arrays that were not preprocessed here count as images where they have 1 or 3 channels.
    """
    shape = dataset.spec.shape
    if len(shape) != 4:
        return None
    if dataset.preprocess is not None:
        channels_first = dataset.preprocess.layout != "nhwc"
    elif shape[1] in (1, 3) or shape[3] in (1, 3):
        channels_first = shape[1] in (1, 3)
    else:
        return None
    rows, columns = (2, 3) if channels_first else (1, 2)
    sizes = [size for size in (shape[rows], shape[columns]) if size is not None]
    return Augmentation(rows, columns) if all(size >= _SMALLEST for size in sizes) else None


def _shifts(random: np.random.Generator, size: int, count: int) -> npt.NDArray[np.int64]:
    most = size // SHIFT
    return random.integers(-most, most + 1, count)


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Where an axis shifted by ``shift`` is written to, and what of it is read."""
    first, last = max(0, shift), min(size, size + shift)
    return slice(first, last), slice(first - shift, last - shift)
