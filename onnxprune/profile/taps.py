"""Cutting a model to chosen tensors, and handing its weights over beside the protobuf."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError

_SMALL: Final = 4096
"""Bytes up to which an initializer stays inline: shape inference reads shapes and axes from it."""

_NUMPY_TYPES: Final = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT16,
        TensorProto.UINT16,
        TensorProto.INT32,
        TensorProto.UINT32,
        TensorProto.INT64,
        TensorProto.UINT64,
    }
)


def cut_to(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """A copy of ``model`` whose outputs are the tensors named, with only the nodes these need.

    Tensors that are graph inputs stay inputs and are not made outputs. Raises ModelError where a
    name is not a tensor of the graph.
    """
    graph = model.graph
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    constants = {tensor.name for tensor in graph.initializer}
    constants.update(tensor.values.name for tensor in graph.sparse_initializer)
    inputs = {value.name for value in graph.input}
    for name in outputs:
        if name not in producers and name not in inputs and name not in constants:
            raise ModelError(f"the model has no tensor named '{name}'", hint="names are case-sensitive")
    needed = set(outputs)
    kept: list[int] = []
    pending = [producers[name] for name in outputs if name in producers]
    seen: set[int] = set(pending)
    while pending:
        index = pending.pop()
        kept.append(index)
        for name in _reads(graph.node[index]):
            needed.add(name)
            producer = producers.get(name)
            if producer is not None and producer not in seen:
                seen.add(producer)
                pending.append(producer)
    cut = onnx.ModelProto()
    cut.ir_version = model.ir_version
    cut.opset_import.extend(model.opset_import)
    cut.functions.extend(model.functions)
    cut.graph.name = graph.name
    cut.graph.node.extend(graph.node[index] for index in sorted(kept))
    cut.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
    cut.graph.sparse_initializer.extend(
        tensor for tensor in graph.sparse_initializer if tensor.values.name in needed
    )
    # A data input stays even where nothing reads it any more: callers feed it all the same.
    cut.graph.input.extend(
        value for value in graph.input if value.name in needed or value.name not in constants
    )
    known = {value.name: value for value in (*graph.output, *graph.value_info)}
    for name in dict.fromkeys(outputs):
        if name in producers or name in constants:
            # onnxruntime infers the type of an output that is only named.
            cut.graph.output.append(known.get(name, onnx.ValueInfoProto(name=name)))
    return cut


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the model's initializers, from their shapes: measuring the message would serialize it."""
    return sum(_bytes(tensor) for tensor in model.graph.initializer)


def detach_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, npt.NDArray[Any]]]:
    """A copy of ``model`` without its large weights, and these as arrays by name.

    A protobuf holds at most 2 GiB; onnxruntime takes the arrays as external initializers.
    """
    skeleton = onnx.ModelProto()
    skeleton.ir_version = model.ir_version
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    source, target = model.graph, skeleton.graph
    target.name = source.name
    target.node.extend(source.node)
    target.input.extend(source.input)
    target.output.extend(source.output)
    target.value_info.extend(source.value_info)
    target.sparse_initializer.extend(source.sparse_initializer)
    target.quantization_annotation.extend(source.quantization_annotation)
    weights: dict[str, npt.NDArray[Any]] = {}
    for tensor in source.initializer:
        if tensor.data_type not in _NUMPY_TYPES or _bytes(tensor) <= _SMALL:
            target.initializer.append(tensor)
            continue
        weights[tensor.name] = np.ascontiguousarray(numpy_helper.to_array(tensor))
        stub = target.initializer.add()
        stub.name = tensor.name
        stub.data_type = tensor.data_type
        stub.dims.extend(tensor.dims)
        stub.data_location = TensorProto.EXTERNAL
        entry = stub.external_data.add()
        entry.key, entry.value = "location", "detached-weights"
    return skeleton, weights


def _bytes(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    """Every tensor that a node reads, also from inside its subgraphs."""
    for name in node.input:
        if name:
            yield name
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)
            for output in graph.output:
                yield output.name
