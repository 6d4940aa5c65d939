"""An If whose condition is a constant: the nodes of the body that it always runs."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.fold import subgraphs, unique_name
from onnxprune.io.limits import all_graphs


def settle_choices(model: onnx.ModelProto) -> bool:
    """Put those nodes in place of every such If of the main graph; whether there was one."""
    graph = model.graph
    overridable = {value.name for value in graph.input}
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in overridable}
    taken: set[str] = set()
    for inner in all_graphs(graph):
        taken.update(value.name for value in inner.input)
        taken.update(tensor.name for tensor in inner.initializer)
        taken.update(name for node in inner.node for name in node.output)
    nodes: list[onnx.NodeProto] = []
    found = False
    for node in list(graph.node):
        body = _chosen(node, constants)
        found = found or body is not None
        nodes.extend([node] if body is None else _placed(node, body, graph, taken))
    if found:
        del graph.node[:]
        graph.node.extend(nodes)
    return found


def _chosen(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> onnx.GraphProto | None:
    """The body that an If always runs, or None where that is not known."""
    if node.op_type != "If" or node.domain not in ("", "ai.onnx") or node.input[0] not in constants:
        return None
    wanted = "then_branch" if numpy_helper.to_array(constants[node.input[0]]).all() else "else_branch"
    body = next((entry.g for entry in node.attribute if entry.name == wanted), None)
    return None if body is None or body.sparse_initializer else body


def _placed(
    node: onnx.NodeProto, body: onnx.GraphProto, graph: onnx.GraphProto, taken: set[str]
) -> list[onnx.NodeProto]:
    """The nodes of ``body``, which give the outputs of ``node``; what they name is new to ``graph``."""
    given = [value.name for value in body.output]
    wanted = dict(zip(given, node.output, strict=True))
    made = [name for inner in body.node for name in inner.output if name]
    names = {
        name: wanted[name] if wanted.get(name) and given.count(name) == 1 else unique_name(name, taken)
        for name in made
    }
    for tensor in body.initializer:
        names[tensor.name] = unique_name(tensor.name, taken)
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
    nodes = []
    for inner in body.node:
        placed = onnx.NodeProto()
        placed.CopyFrom(inner)
        _rename(placed, names)
        nodes.append(placed)
    nodes.extend(
        helper.make_node("Identity", [names.get(name, name)], [target])
        for name, target in zip(given, node.output, strict=True)
        if target and names.get(name) != target
    )
    return nodes


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename values in a node and in its bodies, where no name of the outside is taken again."""
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for body in subgraphs(node):
        for inner in body.node:
            _rename(inner, names)
        for value in body.output:
            value.name = names.get(value.name, value.name)
