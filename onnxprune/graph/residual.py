"""Residual branches that can go as a whole: the join then adds a constant to its shortcut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.graph.fold import captured
from onnxprune.graph.joins import Target, Targets
from onnxprune.graph.plan import Plan, kept_indices
from onnxprune.graph.stored import is_quantizer
from onnxprune.graph.structure import FIXED, IntArray, Layer, PruningGraph, ResidualBranch
from onnxprune.graph.weights import Constants, FloatArray, can_shift, read_bias


def find_residual_branches(graph: PruningGraph) -> tuple[ResidualBranch, ...]:
    """Every branch that can go as a whole: all that its reader reads is prunable, and read by nobody else.

    There has to be a place in it for a constant already (a bias, or a BatchNormalization), so that no
    plan adds parameters; and no quantizer, behind which runtimes look for levels, not for a constant.
    An Attention with its projection is more than a sum of what it reads.
    """
    constants, targets, wiring = Constants(graph.model), Targets(graph), _Wiring(graph)
    found = []
    for layer in graph.layers:
        target = targets.of(layer)
        if target.shortcut is None or (layer.in_units == FIXED).any() or layer.op == "Attention":
            continue
        quantized = any(is_quantizer(graph.node(name)) for name in target.affine.chain)
        if quantized or not can_shift(constants, layer, target.affine, new_bias=False):
            continue
        bias = read_bias(constants, layer, len(layer.out_units))
        branch = wiring.branch(layer, target, target.affine.scale * bias + target.affine.shift)
        if np.isin(branch.entry, branch.units).all():
            found.append(branch)
    return tuple(found)


def constant_of(graph: PruningGraph, branch: ResidualBranch, plan: Plan) -> npt.NDArray[np.generic]:
    """What the branch gives without its units, for the channels that stay: C entries on the channel axis."""
    layer = graph.layer(branch.reader)
    shape = [1] * len(graph.shapes[branch.tensor])
    shape[layer.channel_axis] = -1
    kept = branch.constant[kept_indices(plan.keep, layer.out_units)].reshape(shape)
    return kept.astype(Constants(graph.model).read(layer.weight).dtype)


class _Wiring:
    """Who makes and who reads each tensor, and on how many tensors each unit lives."""

    def __init__(self, graph: PruningGraph) -> None:
        self._axes = graph.axes
        self._producers: dict[str, onnx.NodeProto] = {}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.model.graph.node:
            self._producers.update((name, node) for name in node.output if name)
            for name in dict.fromkeys((*node.input, *captured(node))):
                self._readers.setdefault(name, []).append(node)
        weights = {tensor.name for tensor in graph.model.graph.initializer}
        inputs = {value.name for value in graph.model.graph.input}
        self._stay = (inputs - weights) | {value.name for value in graph.model.graph.output}
        self._homes = self._count(graph.axes)

    def branch(self, layer: Layer, target: Target, constant: FloatArray) -> ResidualBranch:
        """The nodes that serve the join of ``target`` through ``layer`` alone, and what lives there alone."""
        join = self._producers[target.tensor]
        tensor = next(name for name in join.input if name != target.shortcut)
        nodes, pending = dict[str, onnx.NodeProto](), [tensor]
        tensors = {tensor}
        while pending:
            node = self._producers.get(pending.pop())
            if node is None or node.name in nodes or not tensors.issuperset(filter(None, node.output)):
                continue
            nodes[node.name] = node
            for name in filter(None, (*node.input, *captured(node))):
                if name not in self._stay and all(reader.name in nodes for reader in self._readers[name]):
                    tensors.add(name)
                    pending.append(name)
        inside = self._count(tensors)
        units = [unit for unit, homes in inside.items() if homes == self._homes[unit]]
        return ResidualBranch(
            reader=layer.name,
            join=join.name,
            tensor=tensor,
            constant=constant,
            entry=np.unique(layer.in_units),
            units=np.array(sorted(units), np.int64),
            nodes=frozenset(nodes),
            tensors=frozenset(tensors),
        )

    def _count(self, tensors: Iterable[str]) -> Counter[int]:
        """On how many of ``tensors`` each unit lives."""
        found: Counter[int] = Counter()
        for name in tensors:
            axes: Sequence[IntArray] = [units for units in self._axes.get(name, ()) if units is not None]
            if axes:
                found.update(np.unique(np.concatenate(axes)).tolist())
        return found
