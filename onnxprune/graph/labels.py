"""Labels: which channel ("atom") lives at each element of a tensor; atoms that must go together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.structure import BoolArray, IntArray, Reason

DATA = -1
"""Label of an element that can't be removed: a graph input, or the result of an op without labels."""


@dataclass(frozen=True)
class Labels:
    """One integer for each element of a tensor of ``shape``: an atom id, or ``DATA``.

    ``core`` has the tensor's rank; an axis along which the labels don't change has size 1 there, so
    that a feature map of any height and width costs one integer a channel.
    """

    shape: tuple[int, ...]
    core: IntArray

    @classmethod
    def data(cls, shape: Sequence[int]) -> Labels:
        """Labels of a tensor none of whose elements can go."""
        return cls(tuple(shape), np.full((1,) * len(shape), DATA, np.int64))

    @classmethod
    def along(cls, shape: Sequence[int], axis: int, ids: IntArray) -> Labels:
        """Labels that change along one axis only; ``ids`` (shape[axis],)."""
        view = [1] * len(shape)
        view[axis] = len(ids)
        return cls(tuple(shape), compact(ids.reshape(view)))

    @classmethod
    def of(cls, array: IntArray) -> Labels:
        """Labels from an array that holds the label of every element."""
        return cls(array.shape, compact(array))

    def full(self) -> IntArray:
        """A read-only view with the label of every element."""
        return np.broadcast_to(self.core, self.shape)

    @property
    def varying(self) -> tuple[int, ...]:
        """The axes along which the labels change."""
        return tuple(axis for axis, size in enumerate(self.core.shape) if size > 1)


def compact(array: IntArray) -> IntArray:
    """Reduce every axis along which ``array`` is constant to size 1."""
    if array.size == 0:
        return np.full((1,) * array.ndim, DATA, np.int64)
    for axis in range(array.ndim):
        if array.shape[axis] > 1:
            first = array.take([0], axis=axis)
            if array.strides[axis] == 0 or bool((array == first).all()):
                array = first
    return np.ascontiguousarray(array).reshape(array.shape)


class Atoms:
    """A growing union-find over atoms, each with its kind and, where it is pinned, the reason.

    ``changes`` grows with every merge and pin that says something new.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1024, np.int64)
        self._removable = np.zeros(1024, np.bool_)
        self._reason = np.zeros(1024, np.int64)
        self._count = 0
        self.changes = 0
        self.reasons: list[Reason] = []

    def __len__(self) -> int:
        return self._count

    def fresh(self, count: int, *, removable: bool) -> IntArray:
        """New atoms (count,). Those of a producer are removable; those of a constant only go along."""
        start, self._count = self._count, self._count + count
        while self._count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
            self._removable = np.concatenate([self._removable, np.zeros_like(self._removable)])
            self._reason = np.concatenate([self._reason, np.zeros_like(self._reason)])
        ids = np.arange(start, self._count, dtype=np.int64)
        self._parent[ids] = ids
        self._removable[ids] = removable
        self._reason[ids] = -1
        return ids

    def find(self, ids: IntArray) -> IntArray:
        """The representative of each atom; ``DATA`` stays ``DATA``."""
        flat = ids.ravel()
        known = flat >= 0
        atoms = flat[known]
        roots = self._parent[atoms]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[atoms] = roots
        result = np.full(flat.shape, DATA, np.int64)
        result[known] = roots
        return result.reshape(ids.shape)

    def union(self, left: IntArray, right: IntArray) -> None:
        """Merge ``left[i]`` with ``right[i]``; all ids are atoms."""
        left, right = left.ravel(), right.ravel()
        while True:
            left, right = self.find(left), self.find(right)
            different = left != right
            if not different.any():
                return
            left, right = left[different], right[different]
            self.changes += 1
            # The smallest id wins, so that a chain of unions settles in few rounds.
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))

    def pin(self, ids: IntArray, reason: Reason) -> None:
        """Make the atoms among ``ids`` stay; the first reason given to an atom counts."""
        atoms = np.unique(ids[ids >= 0])
        atoms = atoms[self._reason[atoms] < 0]
        if len(atoms):
            self.changes += 1
            self._reason[atoms] = len(self.reasons)
            self.reasons.append(reason)

    def couple(self, rows: IntArray, reason: Reason) -> None:
        """Merge all atoms of each row of ``rows`` (n, m); a row that also holds ``DATA`` is pinned."""
        fixed = (rows < 0).any(axis=1)
        self.pin(rows[fixed], reason)
        first = np.broadcast_to(rows.max(axis=1, keepdims=True), rows.shape)
        both = (rows >= 0) & (first >= 0)
        self.union(rows[both], first[both])

    def coupled_count(self, rows: IntArray) -> int:
        """How many units that can go `couple` would make of ``rows`` (n, m)."""
        _, free, _ = self.resolve()
        present, compressed = np.unique(rows, return_inverse=True)
        compressed = np.where(rows < 0, DATA, compressed.reshape(rows.shape))
        trial = Atoms()
        trial.fresh(len(present), removable=True)
        trial.couple(compressed, Reason("", ""))
        roots, whole, _ = trial.resolve()
        counted = whole & (present >= 0) & free[np.maximum(present, 0)]
        return len(np.unique(roots[counted]))

    def resolve(self) -> tuple[IntArray, BoolArray, IntArray]:
        """For each atom: its representative, whether that set can go, the index of the set's first reason.

        The last is ``len(self.reasons)`` where nothing pins the set.
        """
        everything = np.arange(self._count, dtype=np.int64)
        roots = self.find(everything)
        removable = np.zeros(self._count, np.bool_)
        np.logical_or.at(removable, roots, self._removable[: self._count])
        own = np.where(self._reason[: self._count] < 0, len(self.reasons), self._reason[: self._count])
        reason = np.full(self._count, len(self.reasons), np.int64)
        np.minimum.at(reason, roots, own)
        free = removable & (reason == len(self.reasons))
        return roots, free[roots], reason[roots]


def other_axes(rank: int, axes: Iterable[int]) -> tuple[int, ...]:
    """The axes of a tensor of that rank which are not among ``axes``."""
    excluded = set(axes)
    return tuple(axis for axis in range(rank) if axis not in excluded)


def rows_along(core: IntArray, axes: Sequence[int]) -> IntArray:
    """Reshape ``core`` to (n, m): one row for each index of the axes not in ``axes``."""
    keep = other_axes(core.ndim, axes)
    rows = int(np.prod([core.shape[axis] for axis in keep], dtype=np.int64))
    return core.transpose(*keep, *axes).reshape(rows, -1)
