"""No data at all: inputs from a random generator."""

from __future__ import annotations

from typing import Final

import numpy as np

from onnxprune.errors import DataError
from onnxprune.evaluate.formats.base import Source
from onnxprune.evaluate.preprocess import Preprocess, channel_count, guess_layout, input_size
from onnxprune.evaluate.transform import Samples
from onnxprune.graph.structure import IntArray
from onnxprune.profile.spec import TensorSpec

SAMPLES: Final = 512
_OCTAVES: Final = 5


class SyntheticSource(Source):
    """``samples`` random inputs, the same for the same seed: smooth colour noise where the model takes
    images (4 axes), normal noise elsewhere.

    Natural images have most power at low frequencies, so the noise is summed over octaves.
    """

    format = "synthetic"

    def __init__(self, spec: TensorSpec, preprocess: Preprocess | None, samples: int, seed: int) -> None:
        """For the input ``spec``; DataError where its size is not known."""
        super().__init__(
            "synthetic", None, ("synthetic data: random inputs stand in for real ones, accuracy will suffer",)
        )
        given = preprocess or Preprocess()
        layout = given.layout or guess_layout(spec)
        channels = channel_count(spec, layout)
        size = input_size(spec, layout) or given.crop or given.resize
        self._size, self._seed = samples, seed
        self._image: tuple[int, int, int] | None = None
        if channels in (1, 3) and size is not None:
            height, width = (size, size) if isinstance(size, int) else size
            self._image = (height, width, channels)
        self._shape = spec.shape[1:]
        self._dtype = spec.dtype
        if self._image is None and (not spec.shape or any(item is None for item in self._shape)):
            raise DataError(
                f"synthetic data can't be made for the input '{spec.name}' of {spec.describe()}",
                hint="give --crop with the size of the images, or real data",
            )

    def __len__(self) -> int:
        """Number of samples."""
        return self._size

    def read(self, indices: IntArray) -> Samples:
        """The inputs at ``indices``; each depends on its own index and the seed alone."""
        return np.stack([self._sample(np.random.default_rng((self._seed, int(index)))) for index in indices])

    def _sample(self, random: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        if self._image is None:
            shape = tuple(item or 1 for item in self._shape)
            if self._dtype.kind != "f":
                return np.asarray(random.integers(0, 2, shape), dtype=self._dtype.type)
            return np.asarray(random.standard_normal(shape)).astype(self._dtype)
        height, width, channels = self._image
        total = np.zeros((height, width, channels))
        for octave in range(_OCTAVES):
            grid = random.standard_normal((2**octave + 1, 2**octave + 1, channels))
            total += _stretched(grid, height, width) * 0.5**octave
        total = (total - total.mean()) / (total.std() + 1e-12)
        return np.asarray(np.clip(np.rint(total * 60.0 + 120.0), 0, 255), dtype=np.uint8)


def _stretched(
    grid: np.ndarray[tuple[int, ...], np.dtype[np.float64]], height: int, width: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """A coarse grid (k, k, C) interpolated linearly to (height, width, C)."""
    rows = np.linspace(0, len(grid) - 1, height)
    columns = np.linspace(0, len(grid) - 1, width)
    for positions in (rows, columns):
        low = np.minimum(positions.astype(np.int64), grid.shape[0] - 2)
        weight = (positions - low)[:, None, None]
        grid = (grid[low] * (1.0 - weight) + grid[low + 1] * weight).transpose(1, 0, 2)
    return grid
