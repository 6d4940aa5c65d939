"""Initializers that analysis cloned and that are still equal are one tensor again."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from onnxprune.graph.prepare import initializer_origin


def shared_initializers(model: onnx.ModelProto) -> dict[str, str]:
    """Which initializer stands for which: name -> name of the first equal one of the same origin.

    Only initializers that can be replaced by another are keys; graph inputs are never replaced.
    """
    families: dict[str, list[onnx.TensorProto]] = {}
    inputs = {value.name for value in model.graph.input}
    names = {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name not in inputs:
            families.setdefault(initializer_origin(tensor.name, names), []).append(tensor)
    stands_for: dict[str, str] = {}
    for family in families.values():
        distinct: list[onnx.TensorProto] = []
        for tensor in family:
            twin = next((other for other in distinct if equal_values(tensor, other)), None)
            if twin is None:
                distinct.append(tensor)
            else:
                stands_for[tensor.name] = twin.name
    return stands_for


def rename_inputs(nodes: list[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Replace the names that ``nodes``, and graphs nested in them, read."""
    for node in nodes:
        for position, name in enumerate(node.input):
            if name in names:
                node.input[position] = names[name]
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
                rename_inputs(list(graph.node), names)


def equal_values(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    """Bit by bit: NaN equals itself, and 0 differs from -0."""
    if one.data_type != other.data_type or one.dims != other.dims:
        return False
    if one.data_type == onnx.TensorProto.STRING:
        return list(one.string_data) == list(other.string_data)
    return numpy_helper.to_array(one).tobytes() == numpy_helper.to_array(other).tobytes()
