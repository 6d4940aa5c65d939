"""Which layers recovery has to look at: those whose inputs a plan changes, and those in front of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.fold import captured
from onnxprune.graph.joins import Targets
from onnxprune.graph.plan import Plan, kept_indices
from onnxprune.graph.structure import FIXED, Layer, PruningGraph
from onnxprune.graph.units import is_depthwise


def affected_layers(graph: PruningGraph, plan: Plan) -> list[Layer]:
    """Layers whose inputs differ from the original's: they read removed units, or follow what does."""
    tainted: set[str] = set()
    layers = {layer.output: layer for layer in graph.layers}
    found = []
    for node in graph.model.graph.node:
        sources = [*node.input, *captured(node)]
        layer = layers.get(node.output[0])
        hit = any(name in tainted for name in sources)
        if layer is None or is_depthwise(layer):
            # Units that end here were summed over, as in a product of two activations.
            hit = hit or bool(_removed(graph, plan, sources) - _removed(graph, plan, node.output))
        else:
            hit = hit or not kept_indices(plan.keep, layer.in_units).all()
        if hit:
            tainted.update(node.output)
            if layer is not None:
                found.append(layer)
    return found


def _removed(graph: PruningGraph, plan: Plan, names: Iterable[str]) -> set[int]:
    """The units on any axis of the tensors named that the plan removes."""
    axes = [units for name in names for units in graph.axes.get(name, ()) if units is not None]
    return {int(unit) for units in axes for unit in np.unique(units[~kept_indices(plan.keep, units)])}


@dataclass(frozen=True)
class Branch:
    """A layer, the ``reader``, and in graph order the ``producers`` in front of it that serve nobody else."""

    producers: tuple[Layer, ...]
    reader: Layer


def find_branches(
    graph: PruningGraph, plan: Plan, affected: Sequence[Layer], targets: Targets
) -> dict[str, Branch]:
    """The branches some of whose producers lost units, by the first producer's name.

    In front of a residual join that is every layer whose output leads to the join alone; elsewhere the
    layers whose units the reader reads itself, and nobody else.
    """
    readers = _only_readers(graph)
    found: dict[str, Branch] = {}
    inside: set[str] = set()
    for reader in sorted(affected, key=lambda layer: targets.of(layer).shortcut is None):
        if reader.name in inside:
            continue
        joins = targets.of(reader).shortcut is not None
        ends = {reader.name}
        producers: list[Layer] = []
        for layer in reversed(graph.layers):
            if readers.get(layer.name) in ends:
                producers.insert(0, layer)
                if joins:
                    ends.add(layer.name)
        if joins:
            inside |= ends
        if any(not kept_indices(plan.keep, layer.out_units).all() for layer in producers):
            found[producers[0].name] = Branch(tuple(producers), reader)
    return found


def _only_readers(graph: PruningGraph) -> dict[str, str]:
    """For each layer all of whose output is prunable: the one layer that reads it, where there is just one.

    A depthwise layer passes on what it reads; its reader is the one behind it.
    """
    reading: dict[int, set[str]] = {}
    for layer in graph.layers:
        if not is_depthwise(layer):
            for unit in np.unique(layer.in_units):
                reading.setdefault(int(unit), set()).add(layer.name)
    found: dict[str, str] = {}
    for layer in graph.layers:
        units = np.unique(layer.out_units)
        names = set[str]().union(*(reading.get(int(unit), set()) for unit in units))
        if (units != FIXED).all() and len(names) == 1:
            found[layer.name] = names.pop()
    return found
