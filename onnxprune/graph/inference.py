"""Shapes of all values for any input, with names for the sizes that depend on it."""

from __future__ import annotations

import onnx
from onnx import shape_inference

from onnxprune.graph.fused import stand_in

Dim = int | str

_SMALL = 1024
"""Initializers of at most this many elements take part in shape inference by value."""


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without big initializers and without stated inner shapes, for shape inference.

    Big initializers become typed inputs, so that inference costs nothing that grows with the weights.
    What bodies give keeps its stated shape: see `stated_by_bodies`.
    """
    result = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    graph = result.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    stated = {value.name for value in model.graph.input}
    graph.input.extend(model.graph.input)
    graph.value_info.extend(stated_by_bodies(model.graph))
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    for tensor in model.graph.initializer:
        count = 1
        for size in tensor.dims:
            count *= size
        if count <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in stated:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return result


def stated_by_bodies(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Stated shapes of what an If, a Loop or a Scan gives, which nothing else tells and no plan changes."""
    given = {
        name
        for node in graph.node
        if any(entry.type == onnx.AttributeProto.GRAPH for entry in node.attribute)
        for name in node.output
    }
    return [value for value in graph.value_info if value.name in given]


def infer_symbolic(model: onnx.ModelProto) -> dict[str, tuple[Dim, ...]]:
    """Shapes for any input: sizes that depend on it are names (unique ones where the model gives none)."""
    return infer_bare(skeleton(model))


def infer_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of the model's tensors, as far as inference finds them."""
    bare = skeleton(model)
    try:
        graph = shape_inference.infer_shapes(bare).graph
    except Exception:  # as in `infer_bare`
        graph = bare.graph
    types = {tensor.name: int(tensor.data_type) for tensor in model.graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def infer_bare(bare: onnx.ModelProto) -> dict[str, tuple[Dim, ...]]:
    """Symbolic shapes of a skeleton, which may have been changed meanwhile."""
    changed = onnx.ModelProto()
    changed.CopyFrom(bare)
    opset = max((entry.version for entry in bare.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    matrices = {tensor.name for tensor in bare.graph.initializer if len(tensor.dims) == 2}
    matrices.update(v.name for v in bare.graph.input if len(v.type.tensor_type.shape.dim) == 2)
    del changed.graph.node[:]
    for node in bare.graph.node:
        changed.graph.node.extend(stand_in(node, opset, matrices) or [node])
    try:
        inferred = shape_inference.infer_shapes(changed, check_type=False, strict_mode=False, data_prop=True)
    except Exception:  # onnx raises several unrelated types; without shapes everything is pinned, not wrong
        inferred = bare
    graph = inferred.graph
    shapes: dict[str, tuple[Dim, ...]] = {}
    unnamed = 0
    for value in [*graph.input, *graph.value_info, *graph.output]:
        if not value.type.tensor_type.HasField("shape"):
            continue
        dims: list[Dim] = []
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value >= 0:
                dims.append(dim.dim_value)
            else:
                unnamed += 1
                dims.append(dim.dim_param or f"?{unnamed}")
        shapes[value.name] = tuple(dims)
    for tensor in bare.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    return shapes
