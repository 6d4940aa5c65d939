"""Bring a model into the form that channel analysis and rewriting work on."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import inliner

from onnxprune.errors import ModelError
from onnxprune.graph.choices import settle_choices
from onnxprune.graph.fold import captured, fold_constants, remove_dead, unique_name
from onnxprune.graph.fused import check_inputs
from onnxprune.graph.inference import stated_by_bodies
from onnxprune.graph.sequences import split_sequences
from onnxprune.graph.stored import fold_transposes, separate_stored
from onnxprune.graph.unfuse import unfuse
from onnxprune.io.validate import without_initializers

_CLONE = "::"


def prepare(model: onnx.ModelProto, *, in_place: bool = False) -> onnx.ModelProto:
    """A copy of ``model`` with constants folded, nodes named, and every initializer read once.

    Names of inputs, outputs, values and (where they are unique) nodes stay, and so do opset imports,
    the IR version and all metadata; inner shapes that the file states are dropped, they would go
    stale. IR 3 becomes IR 4, which may hold constants that aren't inputs. Activation functions that
    are fused into layers are nodes of their own again. With ``in_place`` the model itself is changed
    and returned: no weight is copied.

    Raises:
        ModelError: the model has no graph, its nodes aren't in an order that can be run, or one of
            onnxruntime's own lacks an input.
    """
    result = model
    if not in_place:
        result = onnx.ModelProto()
        result.CopyFrom(model)
    graph = result.graph
    if not graph.node:
        raise ModelError("the model has no nodes", hint="give the ONNX file of a trained network")
    _keep_stated(graph)
    _check_order(graph)
    _inline_functions(result)
    _trim_outputs(graph)
    if result.ir_version < 4:
        _unlist_initializers(graph)
        result.ir_version = 4
    unfuse(result)
    fold_constants(result)
    while settle_choices(result):
        _keep_stated(graph)
        _trim_outputs(graph)
        unfuse(result)
        fold_constants(result)
    if split_sequences(result):
        fold_constants(result)
    _name_nodes(graph)
    _separate_constants(graph)
    remove_dead(graph)
    return result


def _keep_stated(graph: onnx.GraphProto) -> None:
    """Leave out stated inner shapes, which pruning would make stale, but for those that bodies give."""
    stated = stated_by_bodies(graph)
    del graph.value_info[:]
    graph.value_info.extend(stated)


def _inline_functions(model: onnx.ModelProto) -> None:
    """Put the bodies of the model's own functions in place of their calls; weights are not touched."""
    if not model.functions:
        return
    shell = without_initializers(model)
    # As inputs, the initializers' names are still taken.
    shell.graph.input.extend(onnx.ValueInfoProto(name=tensor.name) for tensor in model.graph.initializer)
    flat = inliner.inline_local_functions(shell)
    del model.graph.node[:]
    model.graph.node.extend(flat.graph.node)
    del model.opset_import[:]
    model.opset_import.extend(flat.opset_import)
    # Those of another opset than the model's can't be put in place: they stay calls.
    del model.functions[:]
    model.functions.extend(flat.functions)


def _trim_outputs(graph: onnx.GraphProto) -> None:
    """Leave out optional outputs at the end that have no name, on which onnxruntime has crashed."""
    for node in graph.node:
        while len(node.output) > 1 and not node.output[-1]:
            node.output.pop()


def initializer_origin(name: str, names: Collection[str]) -> str:
    """The initializer that ``name`` was cloned from, or ``name`` itself; ``names`` are all initializers."""
    origin, mark, number = name.rpartition(_CLONE)
    return origin if mark and number.isdigit() and origin in names else name


def _check_order(graph: onnx.GraphProto) -> None:
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        check_inputs(node)
        for name in node.input:
            if name and name not in known:
                raise ModelError(
                    f"node '{node.name or node.op_type}' reads '{name}' before anything computes it",
                    hint="check the file with onnx.checker.check_model; its nodes must be in running order",
                )
        for name in node.output:
            if name and name in known:
                raise ModelError(
                    f"'{name}' is computed twice", hint="check the file with onnx.checker.check_model"
                )
            known.add(name)


def _unlist_initializers(graph: onnx.GraphProto) -> None:
    """Before IR 4 every initializer had to be listed as an input; it was a constant all the same."""
    names = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in names]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)


def _name_nodes(graph: onnx.GraphProto) -> None:
    taken = {node.name for node in graph.node if node.name}
    seen: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in seen:
            node.name = unique_name(node.name or f"{node.op_type}_{index}", taken)
        seen.add(node.name)


def _separate_constants(graph: onnx.GraphProto) -> None:
    """Give every node input its own constant; what subgraphs or outputs read keeps its name."""
    kept = {value.name for value in graph.output}
    kept.update(name for node in graph.node for name in captured(node))
    taken = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    taken.update(name for node in graph.node for name in (node.name, *node.output))
    fold_transposes(graph, kept, taken)
    separate_stored(graph, kept, taken)
    _read_once(graph, kept, taken)


def _read_once(graph: onnx.GraphProto, kept: Collection[str], taken: set[str]) -> None:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    read = set(kept)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name not in tensors:
                continue
            if name in read:
                number = 1
                while f"{name}{_CLONE}{number}" in taken:
                    number += 1
                clone = graph.initializer.add()
                clone.CopyFrom(tensors[name])
                clone.name = f"{name}{_CLONE}{number}"
                taken.add(clone.name)
                node.input[index] = clone.name
            read.add(name)
