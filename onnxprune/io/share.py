"""Initializers that analysis cloned and that are still equal are one tensor again."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
from onnx import numpy_helper

from onnxprune.graph.prepare import initializer_origin
from onnxprune.io.validate import without_initializers


def shared_initializers(model: onnx.ModelProto, among: Collection[str] | None = None) -> dict[str, str]:
    """Which initializer stands for which: name -> name of the first equal one of the same origin.

    Only initializers that can be replaced by another are keys; graph inputs are never replaced, nor is
    what isn't ``among`` those named.
    """
    families: dict[str, list[onnx.TensorProto]] = {}
    inputs = {value.name for value in model.graph.input}
    names = {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name not in inputs and (among is None or tensor.name in among):
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


def tied_initializers(model: onnx.ModelProto) -> frozenset[str]:
    """Initializers that will be one tensor with others when the model is saved."""
    stands_for = shared_initializers(model)
    return frozenset(stands_for) | frozenset(stands_for.values())


def shared_parts(
    model: onnx.ModelProto, among: Collection[str] | None = None
) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """``model`` without initializers, and those it needs where clones that are still equal are one.

    The initializers are the model's own messages, so nothing that grows with the weights is copied.
    """
    shell, names = without_initializers(model), shared_initializers(model, among)
    for value in model.graph.output:  # an initializer that is itself an output can't be renamed
        names.pop(value.name, None)
    if names:
        del shell.graph.value_info[:]
        shell.graph.value_info.extend(v for v in model.graph.value_info if v.name not in names)
        rename_inputs(list(shell.graph.node), names)
    return shell, [tensor for tensor in model.graph.initializer if tensor.name not in names]


def united(model: onnx.ModelProto, among: Collection[str] | None = None) -> onnx.ModelProto:
    """``model`` with clones that are still equal as one initializer: all of them, or those ``among`` some."""
    result, initializers = shared_parts(model, among)
    result.graph.initializer.extend(initializers)
    return result


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
