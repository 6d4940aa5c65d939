"""Cutting a model to the nodes between given tensors, with onnx-graphsurgeon.

graphsurgeon sees only how the nodes are wired: which tensor each reads and writes, also from inside
its bodies. Nodes, types, functions and weights are then taken from the model itself, because
graphsurgeon would lose some of them (attributes that are sparse tensors, types or empty lists,
function overloads), fails on optional types, copies weights twice, and reads external data from
whatever folder the process is in. So nothing is cached either: a cut holds the weights of the moment.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune.errors import ModelError
from onnxprune.graph.fold import captured

_LEAST_IR = 4
"""Before it, every initializer had to be a graph input too; a cut states only what it is fed."""


def extract(
    model: onnx.ModelProto, outputs: Sequence[str], inputs: Sequence[onnx.ValueInfoProto] | None = None
) -> onnx.ModelProto:
    """A model of its own that computes the tensors ``outputs`` of ``model`` from ``inputs``.

    ``inputs`` states, with their types, any tensors of the model; the cut takes those it needs. Without
    it they are the model's own data inputs, all of which stay, read or not. Tensors that are fed are
    not made outputs; initializers may be. ``model`` is not changed; its weights must be in memory.

    Raises ModelError where a name is not a tensor of the graph, or the graph can't be cut.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    weights.update(tensor.values.name for tensor in graph.sparse_initializer)
    own = [value for value in graph.input if value.name not in weights]
    fed = {value.name: value for value in (own if inputs is None else inputs)}
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    for name in outputs:
        if name not in producers and name not in fed and name not in weights:
            raise ModelError(f"the model has no tensor named '{name}'", hint="names are case-sensitive")
    wanted = [name for name in dict.fromkeys(outputs) if name not in fed]
    # Nodes are sorted: none after the last producer can be needed.
    nodes = graph.node[: max((producers[name] + 1 for name in wanted if name in producers), default=0)]
    cut = _cut_wiring(_wiring(nodes, weights.difference(fed)), list(fed), wanted, keep_inputs=inputs is None)

    cut.ir_version = max(model.ir_version, _LEAST_IR)
    cut.opset_import.extend(model.opset_import)
    cut.functions.extend(model.functions)
    cut.graph.name = graph.name or "cut"
    for node in cut.graph.node:
        node.CopyFrom(nodes[int(node.name)])
        _rename_fed(node, fed, taken=producers)
    for value in cut.graph.input:
        value.CopyFrom(fed[value.name])
    if inputs is None:
        # Types stated for the whole model needn't hold when other tensors than its inputs are fed;
        # onnxruntime infers the type of an output that is only named.
        stated = {value.name: value for value in (*graph.output, *graph.value_info)}
        for value in cut.graph.output:
            value.CopyFrom(stated.get(value.name, value))
    read = {name for node in cut.graph.node for name in (*node.input, *captured(node))}
    read = read.union(wanted).difference(fed)
    cut.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    cut.graph.sparse_initializer.extend(
        tensor for tensor in graph.sparse_initializer if tensor.values.name in read
    )
    return cut


def _wiring(nodes: Sequence[onnx.NodeProto], weights: Collection[str]) -> onnx.ModelProto:
    """The nodes by their position, without attributes and weights; what bodies capture is an input."""
    wiring = onnx.ModelProto()
    for index, node in enumerate(nodes):
        read = [name for name in (*node.input, *captured(node)) if name and name not in weights]
        wiring.graph.node.add(name=str(index), op_type=node.op_type, input=read, output=node.output)
    return wiring


def _cut_wiring(
    wiring: onnx.ModelProto, fed: Sequence[str], wanted: Sequence[str], *, keep_inputs: bool
) -> onnx.ModelProto:
    """The nodes that ``wanted`` needs when ``fed`` is given, in their order, and the inputs they read."""
    try:
        # It prints its warnings, such as on a graph without operator versions, to standard output.
        with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):
            surgeon = gs.import_onnx(wiring)
            tensors = surgeon.tensors()
            surgeon.inputs = [tensors.get(name, gs.Variable(name)) for name in fed]
            surgeon.outputs = [tensors.get(name, gs.Variable(name)) for name in wanted]
            surgeon.cleanup(remove_unused_graph_inputs=not keep_inputs)
            cut: onnx.ModelProto = gs.export_onnx(surgeon, do_type_check=False, opset_imports=[])
    except Exception as error:  # what it can't represent ends in any error, even an UnboundLocalError
        raise ModelError(
            f"the graph can't be cut: {type(error).__name__}: {error}",
            hint="run onnx.checker.check_model on the model; two tensors may share a name",
        ) from error
    return cut


def _rename_fed(node: onnx.NodeProto, fed: Collection[str], taken: Collection[str]) -> None:
    """Rename what a node computes although it is fed: it is run for another of its outputs."""
    for position, name in enumerate(node.output):
        if name in fed:
            while name in taken or name in fed:
                name += "_"
            node.output[position] = name
