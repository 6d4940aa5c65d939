"""Taking an activation function out of the layer that onnxruntime's optimizer has put it into.

Its output is not linear in its weights, so that it could be neither judged nor refitted. onnxruntime
fuses the two again when it loads the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.fold import standard_opset, unique_name
from onnxprune.graph.fused import DOMAIN, contraction

_PARAMETERS: Mapping[str, Sequence[str]] = {
    "Clip": ("min", "max"),
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
}
"""Activation functions with the attributes that the fused op states in a row."""

_CLIP_BY_INPUTS = 11
"""The opset from which on the bounds of a Clip are inputs."""

_FUSED = ("FusedConv", "FusedGemm")


def unfuse(model: onnx.ModelProto) -> None:
    """Replace each FusedConv and FusedGemm by what it was made of; those with other functions stay."""
    graph, opset = model.graph, standard_opset(model)
    taken = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    taken.update(name for node in graph.node for name in (node.name, *node.output))
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        parts = _parts(node, taken)
        if parts[-1].op_type == "Clip" and opset >= _CLIP_BY_INPUTS and parts[-1] is not node:
            kind = kinds.get(node.input[1], onnx.TensorProto.FLOAT)
            _state_by_inputs(parts[-1], graph, taken, kind)
        graph.node.extend(parts)


def _state_by_inputs(node: onnx.NodeProto, graph: onnx.GraphProto, taken: set[str], kind: int) -> None:
    """Give a Clip its bounds as inputs of the element type ``kind``."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for entry in node.attribute:
        name = unique_name(f"{node.name}_{entry.name}", taken)
        graph.initializer.append(numpy_helper.from_array(np.asarray(entry.f, dtype), name))
        node.input.append(name)
    del node.attribute[:]


def _parts(node: onnx.NodeProto, taken: set[str]) -> list[onnx.NodeProto]:
    if node.domain != DOMAIN or node.op_type not in _FUSED:
        return [node]
    given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    function = given.get("activation", b"").decode()
    parameters = [*given.get("activation_params", ())]
    parameters += [given[name] for name in ("activation_alpha", "activation_beta") if name in given]
    if function and (function not in _PARAMETERS or len(parameters) < len(_PARAMETERS[function])):
        return [node]
    layer = onnx.NodeProto(op_type=contraction(node), name=node.name, doc_string=node.doc_string)
    layer.input.extend(node.input[:3])
    layer.attribute.extend(entry for entry in node.attribute if not entry.name.startswith("activation"))
    parts, result = [layer], node.output[0]
    steps: list[tuple[str, list[str]]] = []
    if len(node.input) > 3 and node.input[3]:
        steps.append(("Add", [node.input[3]]))
    if function:
        steps.append((function, []))
    for op, others in steps:
        inner = unique_name(f"{result}_{parts[-1].op_type}", taken)
        parts[-1].output.append(inner)
        parts.append(helper.make_node(op, [inner, *others], [], name=unique_name(f"{node.name}_{op}", taken)))
    parts[-1].output.append(result)
    for name, value in zip(_PARAMETERS.get(function, ()), parameters, strict=False):
        parts[-1].attribute.append(helper.make_attribute(name, value))
    return parts
