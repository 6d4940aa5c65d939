"""The sparse tree-guided penalty (sTLP; Kim & Xing 2012) with its exact proximal operator.

    P(B) = sum_k sum_{v in tree} w_v | B[k, leaves(v)] |_2 + mu * |B|_1

The proximal operator is the composition of the groups' soft-thresholds from the leaves to the root
(Jenatton et al. 2011; Liu & Ye 2010). A threshold only scales its group, so the composition needs
no more than each node's norm going up and the product of the scales going down: O(p * nodes).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from onnxprune.select.classes import ClassTree
from onnxprune.select.penalties import ProxMemory, check_weight, entry_residual, level_by_prox, shrink


@dataclass(frozen=True)
class _Level:
    """Inner nodes of equal level, ``start:stop`` in the forest's numbering.

    ``children`` (nodes, widest) pads with the number of a node that always is zero; ``weights``
    (nodes, 1); ``parents`` (nodes,) point to the root that is no group where there is no parent.
    """

    start: int
    stop: int
    children: Tensor
    flat_children: Tensor
    weights: Tensor
    parents: Tensor


@dataclass(frozen=True)
class _Forest:
    """The tree's inner nodes that carry weight, level by level above the leaves."""

    nodes: int
    levels: tuple[_Level, ...]
    leaf_parents: Tensor
    leaf_weights: Tensor


@dataclass(frozen=True)
class TreePenalty:
    """sTLP over a ClassTree; each leaf's own group and mu together are an l1 term."""

    tree: ClassTree
    mu: float = 0.0
    nonnegative: bool = False

    def __post_init__(self) -> None:
        check_weight("mu", self.mu)

    def critical_level(self, pull: Tensor) -> float:
        """The largest dual gauge of a row, exact up to rounding."""
        return level_by_prox(self, pull)

    def row_values(self, coefficients: Tensor) -> Tensor:
        """P of each row."""
        forest = self._forest(coefficients)
        entries = coefficients.t()
        total = (entries.abs() * forest.leaf_weights).sum(dim=0)
        norms = _norms(forest, entries)
        for level in forest.levels:
            total = total + (norms[level.start : level.stop] * level.weights).sum(dim=0)
        return total

    def prox(self, point: Tensor, step: float, memory: ProxMemory | None = None) -> Tensor:
        """Exact, leaf to root."""
        del memory
        forest = self._forest(point)
        leaves = shrink(point.t(), step * forest.leaf_weights, self.nonnegative)
        return _shrink_groups(forest, leaves, step).t()

    def may_enter(self, pull: Tensor, level: float) -> Tensor:
        """Rows whose prox is not zero; exact."""
        return (self.prox(pull, level) != 0).any(dim=1)

    def distances(
        self, coefficients: Tensor, gradient: Tensor, level: float, memory: ProxMemory | None = None
    ) -> Tensor:
        """Exact distance for each row.

        Groups that are not zero have one gradient. The others form whole subtrees, where the
        distance to the sum of their dual balls is, by Moreau, the norm of the subtrees' prox.
        """
        del memory
        forest = self._forest(coefficients)
        entries, slope = coefficients.t(), gradient.t()
        norms = _norms(forest, entries)
        zero = entries == 0
        pull = _gather_down(forest, norms)
        inside = torch.where(zero, 0.0, slope + level * pull * entries)
        inside = torch.where(
            zero, 0.0, entry_residual(entries, inside, level * forest.leaf_weights, self.nonnegative)
        )
        leaves = shrink(-slope, level * forest.leaf_weights, self.nonnegative)
        outside = _shrink_groups(forest, torch.where(zero, leaves, 0.0), level, only=norms == 0)
        return (inside.square().sum(dim=0) + outside.square().sum(dim=0)).sqrt()

    def tidy(self, coefficients: Tensor, slack: float) -> Tensor:
        """Nothing to tie."""
        del slack
        return coefficients

    def _forest(self, like: Tensor) -> _Forest:
        key = (like.device, like.dtype)
        if key not in self._forests:
            self._forests[key] = _build_forest(self.tree, self.mu, like)
        return self._forests[key]

    @cached_property
    def _forests(self) -> dict[tuple[torch.device, torch.dtype], _Forest]:
        return {}


def _norms(forest: _Forest, entries: Tensor) -> Tensor:
    """Norm of every group (nodes + 2, rows); the two last rows are the padding and the open root."""
    squares = _workspace(forest, entries)
    for level in forest.levels:
        squares[level.start : level.stop] = _sum_children(level, squares)
    return squares.sqrt()


def _shrink_groups(forest: _Forest, leaves: Tensor, step: float, only: Tensor | None = None) -> Tensor:
    """Soft-threshold the inner groups, children first; ``only`` masks (nodes + 2, rows) what is a group."""
    if not forest.levels:
        return leaves
    squares = _workspace(forest, leaves)
    scales = torch.empty_like(squares)
    scales[forest.nodes + 1] = 1.0
    tiny = torch.finfo(leaves.dtype).tiny
    for level in forest.levels:
        norms = _sum_children(level, squares).sqrt_()
        threshold = step * level.weights
        if only is not None:
            threshold = threshold * only[level.start : level.stop]
        shrunk = (norms - threshold).clamp_min_(0.0)
        torch.div(shrunk, norms.clamp_min_(tiny), out=scales[level.start : level.stop])
        squares[level.start : level.stop] = shrunk.square_()
    for level in reversed(forest.levels[:-1]):
        scales[level.start : level.stop] *= scales.index_select(0, level.parents)
    return leaves * scales.index_select(0, forest.leaf_parents)


def _gather_down(forest: _Forest, norms: Tensor) -> Tensor:
    """Sum of w_v / |B_v| over the groups above each leaf that are not zero, (C, rows)."""
    shares = torch.zeros_like(norms)
    for level in reversed(forest.levels):
        here = norms[level.start : level.stop]
        own = torch.where(here > 0, level.weights / here, 0.0)
        shares[level.start : level.stop] = own + shares.index_select(0, level.parents)
    return shares.index_select(0, forest.leaf_parents)


def _workspace(forest: _Forest, entries: Tensor) -> Tensor:
    classes = entries.shape[0]
    squares = entries.new_empty((forest.nodes + 2, entries.shape[1]))
    torch.square(entries, out=squares[:classes])
    squares[forest.nodes :] = 0.0
    return squares


def _sum_children(level: _Level, squares: Tensor) -> Tensor:
    gathered = squares.index_select(0, level.flat_children)
    return gathered.view(*level.children.shape, -1).sum(dim=1)


def _build_forest(tree: ClassTree, mu: float, like: Tensor) -> _Forest:
    """Drop inner nodes without weight, number the rest by level, pad the lists of children."""
    weights = tree.weights()
    parents = tree.parents()
    total = len(weights)
    grouped = [v for v in range(tree.classes, total) if weights[v] > 0]
    open_parent = {v: _first_grouped(parents, weights, v) for v in [*range(tree.classes), *grouped]}
    members: dict[int, list[int]] = {v: [] for v in grouped}
    depth = dict.fromkeys(range(tree.classes), 0)
    for node in [*range(tree.classes), *grouped]:
        if node >= tree.classes:
            depth[node] = 1 + max(depth[child] for child in members[node])
        if open_parent[node] >= 0:
            members[open_parent[node]].append(node)
    order = sorted(grouped, key=lambda v: (depth[v], v))
    number = {**{c: c for c in range(tree.classes)}, **{v: tree.classes + i for i, v in enumerate(order)}}
    nodes = tree.classes + len(order)
    padding, open_root = nodes, nodes + 1

    def parent_number(node: int) -> int:
        return number[open_parent[node]] if open_parent[node] >= 0 else open_root

    levels = []
    start = tree.classes
    while start < nodes:
        same = [v for v in order if depth[v] == depth[order[start - tree.classes]]]
        widest = max(len(members[v]) for v in same)
        table = np.full((len(same), widest), padding, np.int64)
        for row, v in enumerate(same):
            table[row, : len(members[v])] = [number[child] for child in members[v]]
        children = torch.as_tensor(table, device=like.device)
        levels.append(
            _Level(
                start,
                start + len(same),
                children,
                children.reshape(-1),
                torch.as_tensor(weights[same], dtype=like.dtype, device=like.device)[:, None],
                torch.as_tensor([parent_number(v) for v in same], device=like.device),
            )
        )
        start += len(same)
    return _Forest(
        nodes,
        tuple(levels),
        torch.as_tensor([parent_number(c) for c in range(tree.classes)], device=like.device),
        torch.as_tensor(weights[: tree.classes] + mu, dtype=like.dtype, device=like.device)[:, None],
    )


def _first_grouped(parents: np.ndarray, weights: np.ndarray, node: int) -> int:
    node = int(parents[node])
    while node >= 0 and weights[node] == 0:
        node = int(parents[node])
    return node
