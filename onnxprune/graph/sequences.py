"""Lists of tensors that are made and taken apart at constant places are plain Splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.fold import captured, standard_opset, unique_name
from onnxprune.graph.inference import Dim, infer_symbolic

_Place = tuple[onnx.NodeProto, int]
"""A SequenceAt and the position that it takes."""


def split_sequences(model: onnx.ModelProto) -> bool:
    """Replace, in place, each SplitToSequence that only SequenceAt reads by a Split; whether any was.

    Sizes and positions must be constants. The parts keep their names.
    """
    graph = model.graph
    if not any(node.op_type == "SplitToSequence" for node in graph.node):
        return False
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes, opset = infer_symbolic(model), standard_opset(model)
    taken = {value.name for value in graph.input} | set(constants)
    taken.update(name for node in graph.node for name in node.output)
    outside = {value.name for value in graph.output}
    outside.update(name for node in graph.node for name in captured(node))
    nodes: list[onnx.NodeProto] = []
    replaced: set[str] = set()
    for node in graph.node:
        if node.op_type == "SequenceAt" and node.output[0] in replaced:
            continue
        sizes = places = None
        if node.op_type == "SplitToSequence" and node.output[0] not in outside:
            readers = [other for other in graph.node if node.output[0] in other.input]
            sizes = _sizes(node, constants, shapes)
            places = _places(readers, constants, len(sizes)) if sizes else None
        if sizes is None or places is None:
            nodes.append(node)
            continue
        replaced.update(reader.output[0] for reader, _ in places)
        split, *repeated = _split(node, places, len(sizes), taken)
        if opset >= 13:
            split.input.append(unique_name(f"{node.output[0]}_sizes", taken))
            graph.initializer.append(numpy_helper.from_array(np.asarray(sizes, np.int64), split.input[1]))
        else:
            split.attribute.append(helper.make_attribute("split", sizes))
        nodes += [split, *repeated]
    if replaced:
        del graph.node[:]
        graph.node.extend(nodes)
    return bool(replaced)


def _split(
    node: onnx.NodeProto, places: Sequence[_Place], count: int, taken: set[str]
) -> list[onnx.NodeProto]:
    """The Split without its sizes, and an Identity for each part that is taken again."""
    parts: dict[int, str] = {}
    repeated = []
    for reader, place in places:
        name = parts.setdefault(place, reader.output[0])
        if name != reader.output[0]:
            repeated.append(helper.make_node("Identity", [name], [reader.output[0]], name=reader.name))
    names = [
        parts[place] if place in parts else unique_name(f"{node.output[0]}_{place}", taken)
        for place in range(count)
    ]
    return [helper.make_node("Split", [node.input[0]], names, name=node.name, axis=_axis(node)), *repeated]


def _sizes(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], shapes: Mapping[str, tuple[Dim, ...]]
) -> list[int] | None:
    """Sizes of the parts; None where they aren't known, or where the parts lose the axis."""
    if len(node.input) < 2 or node.input[1] not in constants:
        return None
    stated, shape, axis = (
        numpy_helper.to_array(constants[node.input[1]]),
        shapes.get(node.input[0]),
        _axis(node),
    )
    if stated.ndim:
        return [int(size) for size in stated]
    if shape is None or not -len(shape) <= axis < len(shape) or stated < 1:
        return None
    whole, each = shape[axis], int(stated)
    return [min(each, whole - at) for at in range(0, whole, each)] if isinstance(whole, int) else None


def _places(
    readers: Sequence[onnx.NodeProto], constants: Mapping[str, onnx.TensorProto], count: int
) -> list[_Place] | None:
    """Each reader with the position that it takes; None where one is no SequenceAt at a constant."""
    places = []
    for reader in readers:
        if reader.op_type != "SequenceAt" or reader.input[1] not in constants:
            return None
        place = int(numpy_helper.to_array(constants[reader.input[1]]))
        if not -count <= place < count:
            return None
        places.append((reader, place % count))
    return places


def _axis(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 0)
