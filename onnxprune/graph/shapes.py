"""Shapes of all values: symbolic as the model states them, or concrete at batch 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import shape_inference

from onnxprune.errors import UsageError

Dim = int | str

_SMALL = 1024
"""Initializers of at most this many elements take part in shape inference by value."""

_GUESSES = (224, 299, 256, 128, 64, 32, 16)
"""Sizes tried for dynamic axes other than the batch; image sizes and sequence lengths alike."""


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without big initializers and without stated inner shapes, for shape inference.

    Big initializers become typed inputs, so that inference costs nothing that grows with the weights.
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


def infer_symbolic(model: onnx.ModelProto) -> dict[str, tuple[Dim, ...]]:
    """Shapes for any input: sizes that depend on it are names (unique ones where the model gives none)."""
    return _infer(skeleton(model))


def infer_concrete(
    model: onnx.ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Shapes with the batch (a dynamic first axis of an input) set to 1.

    Other dynamic sizes are taken from ``input_shapes`` or, without it, are the first of some usual
    sizes at which most shapes come out. Values of unknown shape are left out.

    Raises:
        UsageError: ``input_shapes`` names no input, or contradicts what the model states.
    """
    bare = skeleton(model)
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    _check_given(inputs, input_shapes or {})
    rest: list[onnx.TensorShapeProto.Dimension] = []
    names = {value.name for value in inputs}
    for value in bare.graph.input:
        if value.name not in names or not value.type.HasField("tensor_type"):
            continue
        given = (input_shapes or {}).get(value.name)
        tensor = value.type.tensor_type
        if given is not None and not tensor.HasField("shape"):
            tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in given)
        for axis, dim in enumerate(tensor.shape.dim):
            if given is not None:
                dim.dim_value = given[axis]
            elif dim.dim_value <= 0 and axis == 0:
                dim.dim_value = 1
            elif dim.dim_value <= 0:
                rest.append(dim)
    for value in bare.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    best: dict[str, tuple[int, ...]] = {}
    for guess in _GUESSES if rest else _GUESSES[:1]:
        for dim in rest:
            dim.dim_value = guess
        found = {name: shape for name, dims in _infer(bare).items() if (shape := _concrete(dims)) is not None}
        if len(found) > len(best):
            best = found
    return best


def _check_given(inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, Sequence[int]]) -> None:
    stated = {value.name: value for value in inputs}
    for name, shape in given.items():
        if name not in stated:
            raise UsageError(
                f"the model has no input '{name}'", hint=f"its inputs are {', '.join(sorted(stated))}"
            )
        if not stated[name].type.tensor_type.HasField("shape"):
            continue
        dims = stated[name].type.tensor_type.shape.dim
        fits = len(dims) == len(shape) and all(
            size > 0 and (dim.dim_value in (0, size) or axis == 0)
            for axis, (dim, size) in enumerate(zip(dims, shape, strict=False))
        )
        if not fits:
            wanted = ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in dims)
            raise UsageError(
                f"input '{name}' can't take the shape {list(shape)}", hint=f"it takes ({wanted})"
            )


def _infer(bare: onnx.ModelProto) -> dict[str, tuple[Dim, ...]]:
    try:
        inferred = shape_inference.infer_shapes(bare, check_type=False, strict_mode=False, data_prop=True)
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


def _concrete(dims: Sequence[Dim]) -> tuple[int, ...] | None:
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return tuple(sizes) if len(sizes) == len(dims) else None
