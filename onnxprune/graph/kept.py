"""Which indices of every axis stay under a plan, and how many."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.plan import Plan, kept_indices
from onnxprune.graph.structure import BoolArray, PruningGraph


class Kept:
    """The view of a graph under a plan: masks and sizes of the axes of its tensors."""

    def __init__(self, graph: PruningGraph, plan: Plan) -> None:
        """View ``graph`` under a valid ``plan``."""
        self._graph = graph
        self._keep = plan.keep

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The tensor's shape before pruning, at batch 1; KeyError if it has none."""
        return self._graph.shapes[tensor]

    def known(self, tensor: str) -> bool:
        """Whether the tensor has a shape."""
        return tensor in self._graph.shapes

    def mask(self, tensor: str, axis: int) -> BoolArray:
        """Which indices of the axis stay: (dim,)."""
        units = self._graph.axes[tensor][axis] if tensor in self._graph.axes else None
        if units is None:
            return np.ones(self.shape(tensor)[axis], np.bool_)
        return kept_indices(self._keep, units)

    def pruned(self, tensor: str, axis: int) -> bool:
        """Whether an index of the axis goes."""
        axes = self._graph.axes.get(tensor)
        if axes is None or axes[axis] is None:
            return False
        return not bool(self.mask(tensor, axis).all())

    def any_pruned(self, tensor: str) -> bool:
        """Whether an index of any axis goes."""
        return any(self.pruned(tensor, axis) for axis in range(len(self._graph.axes.get(tensor, ()))))

    def size(self, tensor: str, axis: int) -> int:
        """How many indices of the axis stay."""
        return int(self.mask(tensor, axis).sum())

    def new_shape(self, tensor: str) -> tuple[int, ...]:
        """The tensor's shape after pruning, at batch 1."""
        return tuple(self.size(tensor, axis) for axis in range(len(self.shape(tensor))))
