"""Which reasons for channels to stay reach which node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnxprune.graph.ops.context import State
from onnxprune.graph.structure import IntArray, Reason
from onnxprune.graph.units import Units, is_depthwise, passing

_Reasons = dict[Reason, None]
"""A set in the order in which they were met."""


def reasons_by_node(
    nodes: Sequence[onnx.NodeProto], state: State, units: Units
) -> dict[str, tuple[Reason, ...]]:
    """Why channels stay of what each node reads and gives, by node; nodes without a reason are left out.

    Elements without channels have the reasons of what they were computed from: so has a layer that
    reads what was normalised over channels.
    """
    passed = {
        layer.name: passing(layer)
        for layer in state.layers
        if not is_depthwise(layer) and (layer.out_units < 0).any()
    }
    reached: dict[str, _Reasons] = {}
    found: dict[str, tuple[Reason, ...]] = {}
    for node in nodes:
        own = [table[node.name] for table in (state.refused, passed) if node.name in table]
        read: _Reasons = {}
        for name in node.input:
            read |= reached[name] if name in reached else _of_atoms(_ids(name, state), units)
        given: _Reasons = {}
        for name in node.output:
            ids = _ids(name, state)
            reached[name] = _of_atoms(ids, units) | (read if (ids < 0).any() else {})
            given |= reached[name]
        if own or read or given:
            found[node.name] = tuple(dict.fromkeys(own) | read | given)
    return found


def _ids(name: str, state: State) -> IntArray:
    """The atoms of a tensor, each once, with ``DATA`` where it has elements without."""
    if name in state.weights:
        return np.unique(np.concatenate(list(state.weights[name].values())))
    return np.unique(state.labels[name].core) if name in state.labels else np.empty(0, np.int64)


def _of_atoms(ids: IntArray, units: Units) -> _Reasons:
    why = np.unique(units.why[ids[ids >= 0]])
    return dict.fromkeys(units.reasons[index] for index in why[why >= 0])
