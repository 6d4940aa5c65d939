"""What a rule sees of a node: its inputs' labels, its constants, and ways to merge, pin and pass labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxprune.graph.inference import infer_types
from onnxprune.graph.labels import DATA, Atoms, Labels, compact, other_axes, rows_along
from onnxprune.graph.ops.registry import NoRule
from onnxprune.graph.structure import IntArray, Layer, Reason

_LEAST_UNITS = 2
"""Merging all channels into one unit is worth nothing: it could never go."""


@dataclass
class State:
    """What the analysis gathers while it walks the graph."""

    model: onnx.ModelProto
    opset: int
    shapes: Mapping[str, tuple[int, ...]]
    initializers: Mapping[str, onnx.TensorProto]
    readers: Mapping[str, Sequence[onnx.NodeProto]]
    outputs: frozenset[str]
    atoms: Atoms = field(default_factory=Atoms)
    labels: dict[str, Labels] = field(default_factory=dict)
    weights: dict[str, dict[int, IntArray]] = field(default_factory=dict)
    bound: dict[str, tuple[Labels, tuple[int, ...]]] = field(default_factory=dict)
    met: list[tuple[Context, Labels, Labels]] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    stored: dict[str, onnx.NodeProto] = field(default_factory=dict)
    refused: dict[str, Reason] = field(default_factory=dict)

    @cached_property
    def types(self) -> Mapping[str, int]:
        """Element types of the tensors, as far as they are known."""
        return infer_types(self.model)

    def is_constant(self, name: str) -> bool:
        """Whether the value is an initializer, or stored as some."""
        return name in self.initializers or name in self.stored


class Context:
    """One node with the analysis' state; rules read inputs through it and emit outputs."""

    def __init__(self, node: onnx.NodeProto, state: State) -> None:
        self.node = node
        self.state = state
        self.atoms = state.atoms
        self.opset = state.opset

    # -- reading ------------------------------------------------------------------------------

    def has(self, index: int) -> bool:
        """Whether the optional input is given."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def is_constant(self, index: int) -> bool:
        """Whether the input is given and a constant, perhaps one that is stored quantized."""
        return self.has(index) and self.state.is_constant(self.node.input[index])

    def value(self, index: int) -> npt.NDArray[Any] | None:
        """The value of an input that is an initializer; None if it is absent or computed."""
        if not self.has(index) or self.node.input[index] not in self.state.initializers:
            return None
        return numpy_helper.to_array(self.state.initializers[self.node.input[index]])

    def integers(self, index: int) -> list[int] | None:
        """The value of a constant integer input as a flat list."""
        value = self.value(index)
        return None if value is None else [int(item) for item in value.ravel()]

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's Python value, strings decoded."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                value = onnx.helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of an input at batch 1."""
        return self._shape_of(self.node.input[index])

    def out_shape(self, index: int = 0) -> tuple[int, ...]:
        """Shape of an output at batch 1."""
        return self._shape_of(self.node.output[index])

    def emits(self, index: int) -> bool:
        """Whether the optional output is asked for."""
        return index < len(self.node.output) and bool(self.node.output[index])

    def used(self, index: int) -> bool:
        """Whether the output is asked for and read by anything."""
        if not self.emits(index):
            return False
        name = self.node.output[index]
        return bool(self.state.readers.get(name)) or name in self.state.outputs

    def labels(self, index: int) -> Labels:
        """Labels of an input, by the representatives of its atoms; a constant's elements are all ``DATA``."""
        name = self.node.input[index]
        found = self.state.labels.get(name)
        if found is None or self.state.is_constant(name):
            return Labels.data(self._shape_of(name))
        return self.refresh(found)

    def refresh(self, labels: Labels) -> Labels:
        """The labels by the present representatives of their atoms."""
        return Labels(labels.shape, compact(self.atoms.find(labels.core)))

    def axis(self, value: int, rank: int) -> int:
        """A nonnegative axis from an attribute that may count from the end."""
        if not -rank <= value < max(rank, 1):
            raise NoRule(f"its axis {value} is outside a tensor of rank {rank}")
        return value + rank if value < 0 else value

    def _shape_of(self, name: str) -> tuple[int, ...]:
        shape = self.state.shapes.get(name)
        if shape is None:
            raise NoRule(f"the shape of '{name}' is unknown")
        return shape

    # -- merging and pinning --------------------------------------------------------------------

    def reason(self, why: str) -> Reason:
        """A reason that names this node and its op."""
        domain = f"{self.node.domain}." if self.node.domain not in ("", "ai.onnx") else ""
        return Reason(f"{domain}{self.node.op_type}", self.node.name, why)

    def pin(self, ids: IntArray, why: str) -> None:
        """Make all atoms among ``ids`` stay."""
        self.atoms.pin(ids, self.reason(why))

    def uniform(self, labels: Labels, axes: Sequence[int], why: str) -> Labels:
        """Labels that don't change along ``axes``, merged or pinned to make it so.

        Where they also change along another axis, what shares an index of that axis is merged (the
        op then sees it come and go as one). They are pinned where they change along ``axes`` alone,
        or where that would merge all of them into one.
        """
        axes = [axis for axis in axes if labels.core.shape[axis] > 1]
        if not axes:
            return labels
        rows = rows_along(labels.core, axes)
        if self.atoms.coupled_count(rows) < _LEAST_UNITS:
            self.pin(labels.core, why)
            return Labels.data(labels.shape)
        self.atoms.couple(rows, self.reason(why))
        core = labels.core
        for axis in axes:
            # A row with DATA in it is pinned: its label no longer matters, but must not look free.
            core = np.where(
                (core < 0).any(axis=axis, keepdims=True), DATA, core.max(axis=axis, keepdims=True)
            )
        return Labels(labels.shape, compact(self.atoms.find(core)))

    def spread(self, labels: Labels, shape: Sequence[int]) -> Labels:
        """The labels of a tensor that is broadcast to ``shape``: copies share their source's.

        Of what has no channels, copies along one axis may be fewer: they go with channels that they meet.
        """
        lead = len(shape) - len(labels.shape)
        core = labels.core.reshape((1,) * lead + labels.core.shape)
        widened = [axis for axis, size in enumerate((1,) * lead + labels.shape) if size < shape[axis]]
        if len(widened) == 1 and bool((core == DATA).all()):
            return Labels.along(shape, widened[0], self.atoms.fresh(shape[widened[0]], removable=False))
        return Labels(tuple(shape), core)

    def channels(self, labels: Labels, axis: int, why: str) -> IntArray:
        """The label of each index of ``axis`` (dim,), after making all other axes uniform."""
        core = self.uniform(labels, other_axes(len(labels.shape), [axis]), why).core
        return np.broadcast_to(core.ravel(), (labels.shape[axis],)).copy()

    def pin_inputs(self, why: str, extra: Sequence[str] = ()) -> None:
        """Pin everything that reaches this node, and ``extra`` values that its subgraphs capture."""
        self.state.refused[self.node.name] = self.reason(why)
        for name in [*self.node.input, *extra]:
            labels = self.state.labels.get(name)
            if labels is not None:
                self.pin(labels.core, why)

    # -- results --------------------------------------------------------------------------------

    def emit(self, index: int, labels: Labels) -> None:
        """Give an output its labels; they must have its shape."""
        if not self.emits(index) or (
            self.node.output[index] not in self.state.shapes and not self.used(index)
        ):
            return
        if labels.shape != self.out_shape(index):
            raise NoRule(f"its output has shape {list(self.out_shape(index))}, not {list(labels.shape)}")
        self.state.labels[self.node.output[index]] = labels

    def bind(self, index: int, labels: Labels) -> None:
        """Label a constant input's elements."""
        self.state.labels[self.node.input[index]] = labels

    def bind_broadcast(self, index: int, labels: Labels, view: Sequence[int] | None = None) -> None:
        """Tie a constant to the elements of ``labels`` that it is broadcast against.

        ``view`` is the constant's shape for broadcasting, where that isn't its own. Which labels it
        takes is settled when all merges are known: what differs now may be one unit in the end.
        """
        self.state.bound[self.node.input[index]] = (
            labels,
            tuple(self.shape(index) if view is None else view),
        )

    def bind_axis(self, index: int, axis: int, ids: IntArray) -> None:
        """Label one axis of a weight, independently of its other axes; ``ids`` (dim,)."""
        self.state.weights.setdefault(self.node.input[index], {})[axis] = ids

    def add_layer(
        self,
        *,
        data: int,
        weight: int,
        bias: int | None,
        weight_axes: tuple[int, int],
        channel_axis: int,
        groups: int,
        ids: tuple[IntArray, IntArray],
    ) -> None:
        """Record a layer; ``weight_axes`` and ``ids`` are (in, out), the ids still atoms."""
        has_bias = bias is not None and self.is_constant(bias)
        self.state.layers.append(
            Layer(
                name=self.node.name,
                op=self.node.op_type,
                input=self.node.input[data],
                weight=self.node.input[weight],
                bias=self.node.input[bias] if has_bias and bias is not None else None,
                output=self.node.output[0],
                weight_in_axis=weight_axes[0],
                weight_out_axis=weight_axes[1],
                channel_axis=channel_axis,
                groups=groups,
                in_units=ids[0],
                out_units=ids[1],
            )
        )
