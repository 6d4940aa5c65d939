"""A class graph's edges as few matchings: edges of one share no class, so a sweep takes them at once."""

from __future__ import annotations

import numpy as np

from onnxprune.select.classes import ClassGraph


def matchings(graph: ClassGraph, edges: np.ndarray) -> list[list[int]]:
    """Edge colouring with few colours: mostly as many as the largest degree, or one more (Vizing's bound).

    An edge takes a colour that is free at both ends. Where there is none, a colour that is free at one
    end is freed at the other by swapping the two colours along the path that leaves it (Kempe).
    """
    # ends[c][colour] = (edge, the class at its other end)
    ends: list[dict[int, tuple[int, int]]] = [{} for _ in range(graph.classes)]
    colours = 0
    for edge in edges.tolist():
        first, second = (int(c) for c in graph.edges[edge])
        free = [[k for k in range(colours) if k not in ends[c]] for c in (first, second)]
        both = [k for k in free[0] if k in free[1]]
        swaps = ((a, b) for a in free[0] for b in free[1])
        colour = both[0] if both else next((a for a, b in swaps if _swap(ends, second, first, a, b)), colours)
        ends[first][colour], ends[second][colour] = (edge, second), (edge, first)
        colours = max(colours, colour + 1)
    groups: list[list[int]] = [[] for _ in range(colours)]
    for first, at in enumerate(ends):
        for colour, (edge, second) in at.items():
            if first < second:
                groups[colour].append(edge)
    return groups


def _swap(ends: list[dict[int, tuple[int, int]]], start: int, other: int, a: int, b: int) -> bool:
    """Swap the colours ``a`` and ``b`` on the path from ``start``, unless it leads to ``other``."""
    path, node, colour = [], start, a
    while colour in ends[node]:
        edge, following = ends[node][colour]
        path.append((edge, node, following, colour))
        node, colour = following, a + b - colour
    if node == other:
        return False
    for _, one, two, old in path:
        del ends[one][old], ends[two][old]
    for edge, one, two, old in path:
        ends[one][a + b - old], ends[two][a + b - old] = (edge, two), (edge, one)
    return True
