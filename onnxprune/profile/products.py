"""Sums of products of axis sizes, as functions of which units stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.graph.plan import kept_indices
from onnxprune.graph.structure import BoolArray, IntArray

FloatArray = npt.NDArray[np.float64]


class Products:
    """Products ``constants[i] * prod_j size(factors[i, j])``; made by a `ProductsBuilder`.

    An axis's size is the number of its indices that stay. ``names`` and ``ops`` label the products.
    All are evaluated at once from the sizes of the distinct axes, so a mask costs one pass over
    the units of the graph.
    """

    def __init__(
        self,
        names: Sequence[str],
        ops: Sequence[str],
        constants: IntArray,
        factors: IntArray,
        axes: Sequence[IntArray],
    ) -> None:
        """``constants`` (n,), ``factors`` (n, width) into ``axes``, whose entry 0 has size 1."""
        self.names = tuple(names)
        self.ops = tuple(ops)
        self._constants = constants
        self._factors = factors
        self._lengths = np.array([len(units) for units in axes])
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)[:-1]])
        self._flat = np.concatenate(axes)

    def values(self, keep: BoolArray) -> IntArray:
        """Value of each product (n,) when the units in ``keep`` (unit_count,) stay."""
        values: IntArray = self._constants * self._sizes(keep)[self._factors].prod(axis=1, dtype=np.int64)
        return values

    def gradient(self, keep: BoolArray) -> FloatArray:
        """Derivative of the sum of all products with respect to each unit's presence: (unit_count,)."""
        sizes = self._sizes(keep)[self._factors].astype(np.float64)
        by_axis = np.zeros(len(self._lengths))
        for column in range(self._factors.shape[1]):
            others = np.delete(sizes, column, axis=1).prod(axis=1) * self._constants
            by_axis += np.bincount(self._factors[:, column], others, len(by_axis))
        weights = np.repeat(by_axis, self._lengths)
        real = self._flat >= 0
        gradient: FloatArray = np.bincount(self._flat[real], weights[real], len(keep)).astype(np.float64)
        return gradient

    def _sizes(self, keep: BoolArray) -> IntArray:
        sizes: IntArray = np.add.reduceat(kept_indices(keep, self._flat).astype(np.int64), self._starts)
        return sizes


class ProductsBuilder:
    """Gathers products over the axes of a graph's tensors; equal axes are counted once."""

    def __init__(self, axes: Mapping[str, tuple[IntArray | None, ...]]) -> None:
        """``axes`` are those of a PruningGraph."""
        self._axes = axes
        self._index: dict[bytes, int] = {}
        self._units: list[IntArray] = [np.array([-1], np.int64)]
        self._names: list[str] = []
        self._ops: list[str] = []
        self._constants: list[int] = []
        self._factors: list[list[int]] = []

    def add(self, name: str, op: str, sizes: Sequence[tuple[str, int, int]]) -> None:
        """Add the product of the sizes of (tensor, axis), each with its size before pruning."""
        constant, factors = 1, []
        for tensor, axis, size in sizes:
            axes = self._axes.get(tensor)
            units = axes[axis] if axes is not None else None
            if units is None or not (units >= 0).any():
                constant *= size
            else:
                index = self._index.setdefault(units.tobytes(), len(self._units))
                if index == len(self._units):
                    self._units.append(units)
                factors.append(index)
        self._names.append(name)
        self._ops.append(op)
        self._constants.append(constant)
        self._factors.append(factors)

    def build(self) -> Products:
        """The products added so far."""
        width = max((len(factors) for factors in self._factors), default=0)
        padded = [factors + [0] * (width - len(factors)) for factors in self._factors]
        return Products(
            self._names,
            self._ops,
            np.array(self._constants, np.int64),
            np.array(padded, np.int64).reshape(len(padded), width),
            self._units,
        )
