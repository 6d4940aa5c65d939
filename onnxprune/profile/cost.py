"""Cost of a model: multiply-accumulates and parameters, counted on a file or predicted for a plan.

Every layer's MACs, and every tensor's entries, are a constant times a product of axis sizes. So the
cost under a plan is a sum of such products over the numbers of kept indices: no model is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.graph.edits import Array
from onnxprune.graph.plan import kept_indices
from onnxprune.graph.prepare import initializer_origin, prepare
from onnxprune.graph.shapes import infer_concrete, skeleton, stated_batch
from onnxprune.graph.stored import is_quantizer, stored_constants
from onnxprune.graph.structure import BoolArray, IntArray, PruningGraph, ResidualBranch, removed_branches
from onnxprune.io.share import equal_values, shared_initializers
from onnxprune.profile.macs import is_counted, mac_products
from onnxprune.profile.products import FloatArray, Products, ProductsBuilder

_FLOATS = frozenset(
    {
        TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16,
        TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2,
        TensorProto.FLOAT8E5M2FNUZ, TensorProto.FLOAT4E2M1,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one run at batch 1, and the number of parameters."""

    macs: int
    params: int


@dataclass(frozen=True)
class LayerCost:
    """Cost of one node with multiply-accumulates and the floating constants that it reads."""

    name: str
    op: str
    macs: int
    params: int


def count(model: onnx.ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Cost:
    """Count a model as written, by shape inference at batch 1; ``input_shapes`` as for `infer_concrete`.

    MACs: Conv, ConvTranspose, Gemm, MatMul and Einsum (of two activations too), recurrent layers and
    the attention ops, one multiply-accumulate each, see `mac_products`. Parameters: entries of floating
    initializers and Constants that have an axis (a scalar is a setting, not a weight), shared ones once.
    Quantized weights count where they are dequantized. ModelError where a shape that the count needs is
    unknown.
    """
    if model.functions or any(node.op_type == "If" for node in model.graph.node):
        model = prepare(model)  # what functions and settled choices hold shows only then
    return Cost(_count_macs(model, input_shapes), _count_params(model))


class CostModel:
    """Cost of a graph under any mask of kept units; made by `CostModel.of`.

    A *product* is a constant times sizes of axes; an axis's size is its fixed indices plus its kept
    units. All products are evaluated at once from the sizes of the distinct axes.
    """

    def __init__(
        self,
        unit_count: int,
        macs: Products,
        params: Products,
        clones: _Clones,
        removals: _Removals,
        batch: int,
    ) -> None:
        """Take prepared products, for ``batch`` samples; see `CostModel.of`."""
        self.unit_count = unit_count
        self._macs, self._params, self._clones, self._removals = macs, params, clones, removals
        self._batch = batch

    @classmethod
    def of(cls, graph: PruningGraph) -> CostModel:
        """The cost model of an analysed graph."""
        macs, params = ProductsBuilder(graph.axes), ProductsBuilder(graph.axes)
        readers = _readers(graph.model.graph)
        for node in graph.model.graph.node:
            for product in mac_products(node, graph.shapes):
                macs.add(node.name, node.op_type, product)
        clones, counted = _Clones.of(graph), list[str]()
        for tensor in _weights(graph.model):
            if tensor.name not in clones.merged:
                counted.append(tensor.name)
                sizes = [(tensor.name, axis, int(dim)) for axis, dim in enumerate(tensor.dims)]
                params.add(readers.get(tensor.name, ""), "", sizes)
        products = macs.build()
        removals, batch = _Removals.of(graph, counted, products.names), stated_batch(graph.model)
        return cls(graph.unit_count, products, params.build(), clones, removals, batch)

    def macs(self, keep: BoolArray) -> int:
        """Multiply-accumulates at batch 1 when the units in ``keep`` (unit_count,) stay."""
        return int(self._macs_values(keep).sum()) // self._batch

    def params(self, keep: BoolArray) -> int:
        """Parameters when the units in ``keep`` (unit_count,) stay."""
        values = self._params.values(keep)
        added = self._removals.from_params(values, keep)
        return int(values.sum()) + added - self._clones.saved(keep)

    def marginal_macs(self, keep: BoolArray) -> FloatArray:
        """What removing one unit of ``keep`` saves in MACs: (unit_count,), the cost's derivative.

        Exact for a unit that occupies one axis of each layer; where one unit is on both sides of a
        layer the true saving is less by the product of the two (second order). Units that are
        already gone have what putting them back would cost.
        """
        return self._macs.gradient(keep) / self._batch

    def marginal_params(self, keep: BoolArray) -> FloatArray:
        """What removing one unit of ``keep`` saves in parameters: (unit_count,), the derivative.

        As `marginal_macs`; left out are that a shared tensor may have to be stored twice, and that biases
        and norms go with the last unit of a residual branch.
        """
        return self._params.gradient(keep)

    def by_layer(self, keep: BoolArray) -> tuple[LayerCost, ...]:
        """Cost of each node with multiply-accumulates, in graph order, with the parameters that it reads."""
        params: dict[str, int] = {}
        values = self._params.values(keep)
        self._removals.from_params(values, keep)
        for reader, value in zip(self._params.names, values, strict=True):
            params[reader] = params.get(reader, 0) + int(value)
        ops = dict(zip(self._macs.names, self._macs.ops, strict=True))
        macs = dict.fromkeys(ops, 0)
        for name, value in zip(self._macs.names, self._macs_values(keep), strict=True):
            macs[name] += int(value)
        return tuple(
            LayerCost(name, op, macs[name] // self._batch, params.get(name, 0)) for name, op in ops.items()
        )

    def _macs_values(self, keep: BoolArray) -> IntArray:
        values = self._macs.values(keep)
        self._removals.from_macs(values, keep)
        return values


@dataclass(frozen=True)
class _Removals:
    """What goes with a residual branch besides its units' entries: biases, norms, and nodes on other units.

    By the branch's reader, ``params`` and ``macs`` are the indices of all its tensors' and nodes' products,
    ``channels`` (C,) the units of the constant that the join adds instead.
    """

    branches: tuple[ResidualBranch, ...]
    params: Mapping[str, IntArray]
    macs: Mapping[str, IntArray]
    channels: Mapping[str, IntArray]

    @classmethod
    def of(cls, graph: PruningGraph, tensors: Sequence[str], nodes: Sequence[str]) -> _Removals:
        """Those of ``graph``, where products i are the size of ``tensors[i]`` and MACs of ``nodes[i]``."""

        def places(names: Sequence[str], inside: frozenset[str]) -> IntArray:
            return np.array([index for index, name in enumerate(names) if name in inside], np.int64)

        branches = graph.residual_branches
        return cls(
            branches,
            {branch.reader: places(tensors, branch.tensors) for branch in branches},
            {branch.reader: places(nodes, branch.nodes) for branch in branches},
            {branch.reader: graph.layer(branch.reader).out_units for branch in branches},
        )

    def from_macs(self, values: IntArray, keep: BoolArray) -> None:
        """Set the MACs of what goes under a mask to 0."""
        for branch in removed_branches(self.branches, keep):
            values[self.macs[branch.reader]] = 0

    def from_params(self, values: IntArray, keep: BoolArray) -> int:
        """Set the sizes of what goes under a mask to 0; returns the entries of the constants instead."""
        added = 0
        for branch in removed_branches(self.branches, keep):
            values[self.params[branch.reader]] = 0
            added += int(kept_indices(keep, self.channels[branch.reader]).sum())
        return added


@dataclass(frozen=True)
class _Clones:
    """Initializers that are copies of one another: stored once where they are still equal.

    ``merged`` are copies that stay equal under every plan (same units on every axis). ``families``
    hold the others, whose values have to be compared.
    """

    merged: frozenset[str]
    families: tuple[tuple[TensorProto, ...], ...]
    axes: Mapping[str, tuple[IntArray | None, ...]]

    @classmethod
    def of(cls, graph: PruningGraph) -> _Clones:
        """Find the copies among the initializers of ``graph``."""
        merged: set[str] = set()
        families: dict[str, list[TensorProto]] = {}
        inputs = {value.name for value in graph.model.graph.input}
        names = {tensor.name for tensor in graph.model.graph.initializer}
        for tensor in _weights(graph.model):
            if tensor.name not in inputs:
                families.setdefault(initializer_origin(tensor.name, names), []).append(tensor)
        several: list[tuple[TensorProto, ...]] = []
        for family in families.values():
            distinct: list[TensorProto] = []
            for tensor in family:
                if any(_same_axes(graph, tensor, other) for other in distinct):
                    merged.add(tensor.name)
                else:
                    distinct.append(tensor)
            if len(distinct) > 1:
                several.append(tuple(distinct))
        return cls(frozenset(merged), tuple(several), graph.axes)

    def saved(self, keep: BoolArray) -> int:
        """Entries of tensors that need not be stored, since an equal one is."""
        total = 0
        for family in self.families:
            seen: set[tuple[tuple[int, ...], bytes]] = set()
            for tensor in family:
                value = self._kept(tensor, keep)
                key = (value.shape, value.tobytes())
                total += value.size if key in seen else 0
                seen.add(key)
        return total

    def _kept(self, tensor: TensorProto, keep: BoolArray) -> Array:
        value: Array = numpy_helper.to_array(tensor)
        for axis, units in enumerate(self.axes.get(tensor.name, ())):
            if units is not None:
                value = np.compress(kept_indices(keep, units), value, axis=axis)
        return value


def _same_axes(graph: PruningGraph, one: TensorProto, other: TensorProto) -> bool:
    """Whether two copies hold the same units on every axis, and so stay equal under every plan."""
    if not equal_values(one, other):
        return False
    nothing = (None,) * len(one.dims)
    pairs = zip(graph.axes.get(one.name, nothing), graph.axes.get(other.name, nothing), strict=True)
    return all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)


def _weights(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Constants with an axis that are floats or dequantized; scales of quantization are settings."""
    quantizers = [node for node in model.graph.node if is_quantizer(node)]
    dequantized = {node.input[0] for node in quantizers if node.op_type == "DequantizeLinear"}
    scales = {node.input[1] for node in quantizers}
    for tensor in _constants(model):
        floating = tensor.data_type in _FLOATS and tensor.name not in scales
        if len(tensor.dims) > 0 and (floating or tensor.name in dequantized):
            yield tensor


def _readers(graph: onnx.GraphProto) -> dict[str, str]:
    """The node that reads each constant, or what is stored as it."""
    readers = {name: node.name for node in graph.node for name in node.input}
    for name, node in reversed(stored_constants(graph).items()):
        readers.update(dict.fromkeys(node.input, readers.get(name, "")))
    return readers


def _count_macs(model: onnx.ModelProto, input_shapes: Mapping[str, Sequence[int]] | None) -> int:
    shapes = infer_concrete(model, input_shapes)
    if not all(is_counted(node, shapes) for node in model.graph.node):
        # What inference can't follow (computed shapes) may come out once constants are folded.
        model = prepare(skeleton(model), in_place=True)
        shapes = infer_concrete(model, input_shapes)
    products = [product for node in model.graph.node for product in mac_products(node, shapes)]
    return sum(math.prod(size for _, _, size in product) for product in products) // stated_batch(model)


def _count_params(model: onnx.ModelProto) -> int:
    shared = shared_initializers(model)
    return sum(math.prod(tensor.dims) for tensor in _weights(model) if tensor.name not in shared)


def _constants(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            for item in node.attribute:
                if item.name == "value":
                    constant = TensorProto()
                    constant.CopyFrom(item.t)
                    constant.name = node.output[0]
                    yield constant
                elif item.name == "value_floats":
                    yield numpy_helper.from_array(np.asarray(item.floats, np.float32), node.output[0])
