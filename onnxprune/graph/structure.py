"""The values that channel analysis hands to the later stages: layers, groups, the pruning graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

FIXED = -1
"""Unit id of an index that always stays."""


@dataclass(frozen=True)
class Layer:
    """A node with a constant weight that mixes channels: Conv, ConvTranspose, Gemm or MatMul.

    ``in_units`` (C_in,) and ``out_units`` (C_out,) give the unit that lives at each index of
    ``channel_axis`` of the input and output tensors; ``FIXED`` where the index always stays.
    A depthwise Conv has ``groups == C_in`` and passes its input's units through.
    """

    name: str
    op: str
    input: str
    weight: str
    bias: str | None
    output: str
    weight_in_axis: int
    weight_out_axis: int
    channel_axis: int
    groups: int
    in_units: IntArray
    out_units: IntArray


@dataclass(frozen=True)
class Group:
    """Interchangeable units: they occupy the same axes of the same tensors.

    ``units`` (p,) are global unit ids; the position in it is the unit's index within the group.
    ``producers`` and ``consumers`` are names of layers; ``nodes`` all nodes that the units pass.
    """

    name: str
    units: IntArray
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class ResidualBranch:
    """What a residual join can do without: all that serves the layer ``reader``, which serves the join alone.

    Where everything that the reader reads goes, its output is a constant; that, ``constant`` (C,), then
    stands for ``tensor``, the input of the node ``join`` beside its shortcut. ``entry`` (p,) are the units
    that the reader reads, ``units`` (m,) all that live inside, which go with them; ``nodes`` and
    ``tensors`` name what else goes, ``tensor`` itself and the weights included.
    """

    reader: str
    join: str
    tensor: str
    constant: npt.NDArray[np.float64]
    entry: IntArray
    units: IntArray
    nodes: frozenset[str]
    tensors: frozenset[str]


def removed_branches(branches: Sequence[ResidualBranch], keep: BoolArray) -> tuple[ResidualBranch, ...]:
    """Those of ``branches`` whose readers have nothing to read under a mask of kept units (unit_count,).

    Without those that lie inside another one that goes.
    """
    gone = [branch for branch in branches if not keep[branch.entry].any()]
    nodes = set[str]().union(*(branch.nodes for branch in gone))
    return tuple(branch for branch in gone if branch.join not in nodes)


@dataclass(frozen=True)
class Reason:
    """Why channels stay: ``what`` (an op, a kind of value), the ``place`` that has that name, and ``why``."""

    what: str
    place: str
    why: str = ""

    @property
    def kind(self) -> str:
        """The reason without its place, which others may share."""
        return f"{self.what}: {self.why}" if self.why else self.what

    def __str__(self) -> str:
        return f"{self.what} '{self.place}'" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True)
class Skipped:
    """Units that can't be pruned, with the node and the op that pins them."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True)
class PruningGraph:
    """A model with the unit of every index of every axis of every tensor.

    ``model`` is the prepared model: constants folded into initializers, each initializer read by
    one node input only, every node named. ``shapes`` are concrete, at batch 1. ``axes[tensor]``
    has one entry for each axis of the tensor (constants and activations alike): an array (dim,)
    of unit ids, or None where no index of the axis can go. ``reasons`` say by node why channels of
    what it reads or gives stay.
    """

    model: onnx.ModelProto
    shapes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, tuple[IntArray | None, ...]]
    unit_count: int
    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...]
    residual_branches: tuple[ResidualBranch, ...] = ()
    reasons: Mapping[str, tuple[Reason, ...]] = field(default_factory=dict)

    def layer(self, name: str) -> Layer:
        """The layer of that name; KeyError if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def node(self, name: str) -> onnx.NodeProto:
        """The node of that name in the prepared model; KeyError if there is none."""
        return self._nodes[name]

    @cached_property
    def _nodes(self) -> dict[str, onnx.NodeProto]:
        return {node.name: node for node in self.model.graph.node}
