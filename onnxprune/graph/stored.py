"""Constants that the model stores quantized: a DequantizeLinear, perhaps behind a QuantizeLinear, gives them.

To the analysis such a value is a constant like any other; its labels are those of what it is stored as.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.graph.edits import set_attribute
from onnxprune.graph.fold import unique_name
from onnxprune.io.validate import without_initializers

_OPS = ("QuantizeLinear", "DequantizeLinear")
_DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Where they are defined, alike."""

_OPSET = 21
"""Every older form means the same there."""


def stored_constants(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The nodes that make constants of initializers alone, by what they make, in the graph's order."""
    constants = {tensor.name for tensor in graph.initializer}
    found: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if is_stored(node, constants):
            found[node.output[0]] = node
            constants.add(node.output[0])
    return found


def is_stored(node: onnx.NodeProto, constants: Collection[str]) -> bool:
    """Whether the node makes a constant out of ``constants``."""
    return is_quantizer(node) and all(name in constants for name in node.input if name)


def is_quantizer(node: onnx.NodeProto) -> bool:
    """Whether the node is a QuantizeLinear or a DequantizeLinear."""
    return node.op_type in _OPS and node.domain in _DOMAINS


def quantized_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis along which scales and zero points change, where they have more than one element."""
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
    return int(axis + rank if axis < 0 else axis)


def along_axis(node: onnx.NodeProto, parameter: npt.NDArray[Any], rank: int) -> npt.NDArray[Any]:
    """Scales or zero points in the shape in which they meet a tensor of that rank."""
    view = [1] * rank
    if parameter.size > 1:
        view[quantized_axis(node, rank)] = parameter.size
    return parameter.reshape(view)


def evaluate_stored(node: onnx.NodeProto, inputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """What the node makes of its inputs (a value, scales, and perhaps zero points)."""
    names = [f"i{index}" for index in range(len(inputs))]
    copy = helper.make_node(node.op_type, names, ["y"])
    copy.attribute.extend(node.attribute)
    graph = helper.make_graph(
        [copy],
        "stored",
        [helper.make_value_info(name, onnx.TypeProto()) for name in names],
        [helper.make_value_info("y", onnx.TypeProto())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    (result,) = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))
    return np.asarray(result)


def separate_stored(graph: onnx.GraphProto, kept: Collection[str], taken: set[str]) -> None:
    """Give every node input its own stored constant, so that each goes with what its reader loses.

    What is in ``kept`` (read by bodies, or an output) is left as it is; ``taken`` are the names in use.
    """
    stored = stored_constants(graph)
    copies: dict[str, list[onnx.NodeProto]] = {}
    read = set(kept)
    for node in reversed(graph.node):
        readers = [*copies.get(node.output[0], ()), node] if node.output[0] in stored else [node]
        for reader in readers:
            for index, name in enumerate(reader.input):
                if name in stored and name in read:
                    reader.input[index] = _copy(stored[name], copies, taken)
                read.add(name)
    if copies:
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            graph.node.extend((node, *copies.get(node.output[0], ())))


def _copy(node: onnx.NodeProto, copies: dict[str, list[onnx.NodeProto]], taken: set[str]) -> str:
    made = copies.setdefault(node.output[0], [])
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = unique_name(f"{node.name}_copy", taken)
    copy.output[0] = unique_name(f"{node.output[0]}_copy", taken)
    made.append(copy)
    return copy.output[0]


def fold_transposes(graph: onnx.GraphProto, kept: Collection[str], taken: set[str]) -> None:
    """Transpose what is stored instead of the constant that it gives: the weight is read directly then."""
    stored = stored_constants(graph)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        domain = node.domain in ("", "ai.onnx")
        if domain and node.op_type == "Transpose" and node.input[0] in stored and node.output[0] not in kept:
            given = next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), None)
            graph.node.extend(_transposed(node, given, stored, tensors, graph, taken))
        else:
            graph.node.append(node)


def _transposed(
    node: onnx.NodeProto,
    perm: list[int] | None,
    stored: dict[str, onnx.NodeProto],
    tensors: dict[str, onnx.TensorProto],
    graph: onnx.GraphProto,
    taken: set[str],
) -> list[onnx.NodeProto]:
    """The chain of nodes that gives the output of a Transpose from a transposed initializer."""
    chain = _chain(stored[node.input[0]], stored)
    tensor = tensors[chain[0].input[0]]
    perm = perm or list(reversed(range(len(tensor.dims))))
    name = unique_name(f"{tensor.name}_transposed", taken)
    value = np.ascontiguousarray(numpy_helper.to_array(tensor).transpose(perm))
    graph.initializer.append(numpy_helper.from_array(value, name))
    made = []
    for link in chain:
        copy = onnx.NodeProto()
        copy.CopyFrom(link)
        copy.name = unique_name(f"{link.name}_transposed", taken)
        scale = copy.input[1]  # may be stored itself
        root = tensors[_chain(stored[scale], stored)[0].input[0] if scale in stored else scale]
        if np.prod(root.dims) > 1:
            set_attribute(copy, "axis", perm.index(quantized_axis(link, len(perm))))
        copy.input[0] = name
        name = node.output[0] if link is chain[-1] else unique_name(f"{link.output[0]}_transposed", taken)
        copy.output[0] = name
        made.append(copy)
    return made


def _chain(node: onnx.NodeProto, stored: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes from an initializer to what ``node`` makes of it, along their first inputs."""
    chain = [node]
    while chain[0].input[0] in stored:
        chain.insert(0, stored[chain[0].input[0]])
    return chain


def without_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with activations left as they are where it quantizes and dequantizes them.

    ``model`` itself where it has no quantizers, or a quantized activation reaches an output. Constants
    stay as they are stored.
    """
    if not any(is_quantizer(node) for node in model.graph.node):
        return model
    result = without_initializers(model)
    result.graph.initializer.extend(model.graph.initializer)
    stored = stored_constants(model.graph)
    floats: set[str] = set()
    for node in result.graph.node:
        if node.output[0] in stored:
            continue
        if is_quantizer(node):
            if node.op_type == "QuantizeLinear":
                floats.add(node.output[0])
            elif node.input[0] not in floats:
                continue
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.attribute[:]
        elif any(name in floats for name in node.input):
            floats.update(node.output)
    return model if any(value.name in floats for value in result.graph.output) else result
