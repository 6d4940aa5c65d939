"""What a model says about one of its inputs or outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of a model's input or output; ``None`` where a dimension is free."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...]

    def accepts(self, shape: tuple[int, ...], *, any_batch: bool = True) -> bool:
        """Whether an array of ``shape`` fits; the first axis is ignored with ``any_batch``."""
        if len(shape) != len(self.shape):
            return False
        start = 1 if any_batch else 0
        return all(
            want is None or want == got for want, got in zip(self.shape[start:], shape[start:], strict=True)
        )

    def describe(self) -> str:
        """The shape as users read it, such as ``N x 3 x 224 x 224``."""
        return describe_shape(self.shape)


def describe_shape(shape: tuple[int | None, ...]) -> str:
    """A shape as users read it: ``N`` for a free first axis, ``?`` for other free ones."""
    if not shape:
        return "a scalar"
    first = "N" if shape[0] is None else str(shape[0])
    return " x ".join([first, *("?" if size is None else str(size) for size in shape[1:])])
