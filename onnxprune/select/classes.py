"""How the classes relate: correlation of their mean responses -> a signed graph, a tree, clusters.

Classes without samples stay in every structure, tied to no other class, so that column c of B
always is class c.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.errors import UsageError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

ABSENT = -1
"""Cluster of a class that has no samples."""


@dataclass(frozen=True)
class Edge:
    """One row of a ClassGraph, for printing."""

    first: int
    second: int
    correlation: float


@dataclass(frozen=True)
class Merge:
    """One inner node of a ClassTree, for printing: its classes, height, and own penalty weight."""

    node: int
    children: tuple[int, ...]
    leaves: tuple[int, ...]
    height: float
    weight: float


@dataclass(frozen=True)
class ClassGraph:
    """Signed, weighted edges between classes.

    ``edges`` (E, 2) with first < second, ``weights`` (E,) = |r|, ``signs`` (E,) = sign(r).
    """

    classes: int
    edges: IntArray
    weights: FloatArray
    signs: FloatArray

    @classmethod
    def from_correlation(
        cls,
        correlation: npt.ArrayLike,
        *,
        threshold: float = 0.5,
        max_degree: int | None = 8,
        positive_only: bool = False,
    ) -> ClassGraph:
        """Edges where |r| > ``threshold``; of each class only its ``max_degree`` strongest.

        An edge stays when either end ranks it among its strongest, so the number of edges, and with
        it the solver's cost, is at most C * max_degree. ``positive_only`` drops negative r.
        """
        r = _checked_correlation(correlation)
        strength = np.where(r > 0, r, 0.0) if positive_only else np.abs(r)
        np.fill_diagonal(strength, 0.0)
        linked = strength > threshold
        if max_degree is not None and len(r) > max_degree:
            order = np.argsort(-strength, axis=1, kind="stable")[:, :max_degree]
            strongest = np.zeros_like(linked)
            np.put_along_axis(strongest, order, True, axis=1)
            linked &= strongest | strongest.T
        first, second = np.nonzero(np.triu(linked, 1))
        values = r[first, second]
        edges = np.stack([first, second], axis=1).astype(np.int64)
        return cls(len(r), edges, np.abs(values), np.where(values < 0, -1.0, 1.0))

    def rows(self) -> tuple[Edge, ...]:
        """The edges, strongest first."""
        order = np.argsort(-self.weights, kind="stable")
        return tuple(
            Edge(int(self.edges[e, 0]), int(self.edges[e, 1]), float(self.signs[e] * self.weights[e]))
            for e in order
        )


@dataclass(frozen=True)
class ClassTree:
    """A tree over classes: nodes 0..C-1 are the classes, C.. are inner nodes, children first.

    ``children[i]`` are the children of node C + i and ``heights[i]`` in [0, 1] is its normalised
    height s_v: 0 where its classes respond alike, 1 where they share nothing.
    """

    classes: int
    children: tuple[tuple[int, ...], ...]
    heights: tuple[float, ...]
    present: BoolArray

    @classmethod
    def from_correlation(cls, correlation: npt.ArrayLike, present: npt.ArrayLike | None = None) -> ClassTree:
        """Average-linkage clustering on the distance 1 - r, heights divided by the root's (Kim & Xing 2012).

        ``present`` (C,) says which classes have samples; the others hang on the root.
        """
        r = _checked_correlation(correlation)
        count = len(r)
        here = np.ones(count, bool) if present is None else np.asarray(present, bool)
        merges, heights = _average_linkage(np.clip(1.0 - r, 0.0, 2.0), np.flatnonzero(here))
        top = heights[-1] if heights and heights[-1] > 0 else 1.0
        heights = [min(height / top, 1.0) for height in heights]
        absent = tuple(int(c) for c in np.flatnonzero(~here))
        if absent and count > 1:
            root = (count + len(merges) - 1,) if merges else tuple(int(c) for c in np.flatnonzero(here))
            merges.append((*root, *absent))
            heights.append(1.0)
        return cls(count, tuple(merges), tuple(heights), here)

    def parents(self) -> IntArray:
        """Parent of each node (nodes,); -1 at a root."""
        parents = np.full(self.classes + len(self.children), -1, np.int64)
        for index, members in enumerate(self.children):
            parents[list(members)] = self.classes + index
        return parents

    def leaves(self, node: int) -> tuple[int, ...]:
        """The classes under a node, ascending."""
        pending, found = [node], []
        while pending:
            current = pending.pop()
            if current < self.classes:
                found.append(current)
            else:
                pending.extend(self.children[current - self.classes])
        return tuple(sorted(found))

    def weights(self) -> FloatArray:
        """w_v of every node (nodes,): of what its parents passed on, the share 1 - s_v; a leaf takes all."""
        reach = np.ones(self.classes + len(self.children))
        own = np.ones_like(reach)
        for index in reversed(range(len(self.children))):
            node, height = self.classes + index, self.heights[index]
            own[node] = reach[node] * (1.0 - height)
            reach[list(self.children[index])] = reach[node] * height
        own[: self.classes] = reach[: self.classes]
        return own

    def rows(self) -> tuple[Merge, ...]:
        """The inner nodes, lowest first."""
        weights = self.weights()
        return tuple(
            Merge(
                self.classes + i,
                members,
                self.leaves(self.classes + i),
                self.heights[i],
                float(weights[self.classes + i]),
            )
            for i, members in enumerate(self.children)
        )


def class_correlation(
    means: npt.ArrayLike, present: npt.ArrayLike | None = None, *, standardise: bool = True
) -> FloatArray:
    """Pearson correlation (C, C) between classes of their mean responses ``means`` (C, features).

    Each feature is centred over the classes first (what all classes share says nothing about which
    belong together) and, with ``standardise``, scaled to unit spread. Absent classes and classes
    without any response of their own correlate with nothing.
    """
    values = np.asarray(means, np.float64)
    if values.ndim != 2:
        raise UsageError(f"class means have shape {values.shape}", hint="pass an array (classes, features)")
    here = np.ones(len(values), bool) if present is None else np.asarray(present, bool)
    here = here & np.isfinite(values).all(axis=1)
    correlation = np.eye(len(values))
    if here.sum() < 2:
        return correlation
    chosen = values[here] - values[here].mean(axis=0)
    if standardise:
        spread = chosen.std(axis=0)
        chosen = np.divide(chosen, spread, out=np.zeros_like(chosen), where=spread > 1e-12 * spread.max())
    chosen -= chosen.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(chosen, axis=1, keepdims=True)
    chosen = np.divide(chosen, norms, out=np.zeros_like(chosen), where=norms > 1e-12 * norms.max())
    block = np.clip(chosen @ chosen.T, -1.0, 1.0)
    np.fill_diagonal(block, 1.0)
    correlation[np.ix_(here, here)] = block
    return correlation


def coarsen(tree: ClassTree, clusters: int) -> IntArray:
    """Assign the classes to at most ``clusters`` clusters by cutting the tree (C,).

    Clusters are numbered by their smallest class; classes without samples get ``ABSENT``. Keeps
    class-wise statistics (C, p, p) bounded when there are many classes and few samples.
    """
    if clusters < 1:
        raise UsageError(f"cannot form {clusters} clusters of classes", hint="ask for at least one")
    alive = [v for v in np.flatnonzero(tree.parents() < 0).tolist() if _has_samples(tree, v)]
    while True:
        inner = [v for v in alive if v >= tree.classes]
        if not inner:
            break
        # Children come first in the numbering, so the largest number is the highest merge.
        highest = max(inner)
        parts = [v for v in tree.children[highest - tree.classes] if _has_samples(tree, v)]
        if len(alive) - 1 + len(parts) > clusters:
            break
        alive.remove(highest)
        alive.extend(parts)
    assignment = np.full(tree.classes, ABSENT, np.int64)
    members = sorted([c for c in tree.leaves(v) if tree.present[c]] for v in alive)
    for cluster, classes in enumerate(members):
        assignment[classes] = cluster
    return assignment


def _has_samples(tree: ClassTree, node: int) -> bool:
    return any(tree.present[c] for c in tree.leaves(node))


def _checked_correlation(correlation: npt.ArrayLike) -> FloatArray:
    r = np.asarray(correlation, np.float64)
    if r.ndim != 2 or r.shape[0] != r.shape[1] or not np.isfinite(r).all():
        raise UsageError(
            f"a class correlation of shape {r.shape} is no finite square matrix",
            hint="build it with class_correlation(means)",
        )
    return r


def _average_linkage(distance: FloatArray, members: IntArray) -> tuple[list[tuple[int, ...]], list[float]]:
    """Merges (as node numbers) and their heights; ties go to the lowest numbers."""
    total = len(distance)
    work = distance[np.ix_(members, members)].copy()
    np.fill_diagonal(work, np.inf)
    node = members.tolist()
    size = np.ones(len(members))
    merges: list[tuple[int, ...]] = []
    heights: list[float] = []
    for _ in range(len(members) - 1):
        flat = int(work.argmin())
        i, j = sorted(divmod(flat, len(work)))
        merges.append((node[i], node[j]))
        # Averages are monotone up to rounding.
        heights.append(max(float(work[i, j]), heights[-1] if heights else 0.0))
        joined = (size[i] * work[i] + size[j] * work[j]) / (size[i] + size[j])
        work[i], work[:, i] = joined, joined
        work[i, i] = np.inf
        work[j], work[:, j] = np.inf, np.inf
        size[i] += size[j]
        node[i] = total + len(merges) - 1
    return merges, heights
