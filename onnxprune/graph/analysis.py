"""Channel analysis: from a model to its pruning graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx

from onnxprune.graph.fold import captured, standard_opset
from onnxprune.graph.labels import Labels
from onnxprune.graph.ops import find_rule
from onnxprune.graph.ops.context import Context, State
from onnxprune.graph.ops.elementwise import meet_again, settle_constants
from onnxprune.graph.ops.quantization import settle_stored
from onnxprune.graph.ops.registry import NoRule
from onnxprune.graph.prepare import prepare
from onnxprune.graph.reasons import reasons_by_node
from onnxprune.graph.residual import find_residual_branches
from onnxprune.graph.shapes import infer_concrete
from onnxprune.graph.structure import PruningGraph, Reason
from onnxprune.graph.units import (
    list_skipped,
    make_groups,
    make_rectangular,
    number_units,
    pin_whole_axes,
    unit_axes,
    with_units,
)

_FIRST_OPSET = 7
"""Before it, broadcasting and many ops worked in other ways."""


def analyze_graph(
    model: onnx.ModelProto,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    in_place: bool = False,
) -> PruningGraph:
    """Find which channels can be removed together, which can't and why.

    ``model`` isn't changed, unless ``in_place`` makes it the graph's own, which saves a copy of the
    weights. ``input_shapes`` gives sizes for inputs with dynamic axes other than
    the batch; without it usual sizes are tried.

    Raises:
        ModelError: the model is malformed.
        UsageError: ``input_shapes`` doesn't fit the model.
    """
    prepared = prepare(model, in_place=in_place)
    graph = prepared.graph
    shapes = infer_concrete(prepared, input_shapes)
    state = _start(prepared, shapes)
    for node in graph.node:
        _follow(node, state)
    for value in graph.output:
        if value.name in state.labels:
            state.atoms.pin(state.labels[value.name].core, Reason("graph output", value.name))

    before = -1
    while before != state.atoms.changes:
        before = state.atoms.changes
        settle_constants(state)
        make_rectangular(state.atoms, state.labels)
        meet_again(state)
    settle_stored(state)
    pin_whole_axes(state.atoms, state.labels, state.weights)
    units = number_units(state.atoms)
    names = _names(graph)
    shapes = {name: shape for name, shape in shapes.items() if name in names}
    axes = unit_axes(state.labels, state.weights, units, shapes)
    layers = tuple(with_units(layer, units) for layer in state.layers)
    node_values = {node.name: (*node.input, *node.output) for node in graph.node}
    pruning = PruningGraph(
        model=prepared,
        shapes=shapes,
        axes=axes,
        unit_count=units.count,
        layers=layers,
        groups=make_groups(axes, units, layers, node_values),
        skipped=list_skipped(state.layers, units),
        reasons=reasons_by_node(graph.node, state, units),
    )
    return replace(pruning, residual_branches=find_residual_branches(pruning))


def _start(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> State:
    graph = model.graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys((*node.input, *captured(node))):
            readers.setdefault(name, []).append(node)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    state = State(
        model=model,
        opset=standard_opset(model),
        shapes=shapes,
        initializers=initializers,
        readers=readers,
        outputs=frozenset(value.name for value in graph.output),
    )
    for value in graph.input:
        if value.name in shapes and value.name not in initializers:
            state.labels[value.name] = Labels.data(shapes[value.name])
    return state


def _follow(node: onnx.NodeProto, state: State) -> None:
    context = Context(node, state)
    bodies = captured(node)
    rule = find_rule(node.domain, node.op_type, state.opset)
    if bodies:
        context.pin_inputs("its body is left alone", bodies)
    elif rule is None:
        context.pin_inputs("the op has no rule")
    elif any(0 in state.shapes.get(name, ()) for name in node.output):
        context.pin_inputs("its output is empty")
    elif state.opset < _FIRST_OPSET:
        context.pin_inputs(f"its opset {state.opset} is older than {_FIRST_OPSET}")
    else:
        try:
            rule(context)
        except NoRule as refusal:
            context.pin_inputs(refusal.reason)
    for name in node.output:
        if name and name not in state.labels and name in state.shapes:
            state.labels[name] = Labels.data(state.shapes[name])


def _names(graph: onnx.GraphProto) -> set[str]:
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    names.update(name for node in graph.node for name in node.output if name)
    return names
