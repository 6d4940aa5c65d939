"""Shapes of all values at batch 1."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import onnx

from onnxprune.errors import UsageError
from onnxprune.graph.fold import fold_constants
from onnxprune.graph.inference import Dim, infer_bare, infer_symbolic, skeleton
from onnxprune.values import shown

__all__ = ["infer_concrete", "infer_symbolic", "skeleton"]

_GUESSES = (224, 299, 256, 128, 64, 32, 16)
"""Sizes tried for dynamic axes other than the batch; image sizes and sequence lengths alike."""


def stated_batch(model: onnx.ModelProto) -> int:
    """The batch size that all inputs and outputs of a model state, or 1 where it is free or they differ."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in initializers]
    sizes = {
        value.type.tensor_type.shape.dim[0].dim_value if value.type.tensor_type.shape.dim else 0
        for value in (*values, *model.graph.output)
    }
    return max(1, sizes.pop()) if len(sizes) == 1 else 1


def infer_concrete(
    model: onnx.ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Shapes with the batch (a dynamic first axis of an input) set to 1.

    Other dynamic sizes are taken from ``input_shapes`` or, without it, are the first of some usual
    sizes at which most shapes come out. Values of unknown shape are left out.

    Raises:
        UsageError: ``input_shapes`` is no mapping, names no input, or contradicts what the model states.
    """
    bare = skeleton(model)
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    shapes = _checked(inputs, input_shapes or {})
    rest: list[onnx.TensorShapeProto.Dimension] = []
    names = {value.name for value in inputs}
    for value in bare.graph.input:
        if value.name not in names or not value.type.HasField("tensor_type"):
            continue
        given = shapes.get(value.name)
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
    for value in bare.graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value <= 0:
            dims[0].dim_value = 1
    best: dict[str, tuple[int, ...]] = {}
    for guess in _GUESSES if rest else _GUESSES[:1]:
        for dim in rest:
            dim.dim_value = guess
        found = {
            name: shape for name, dims in _shapes(bare).items() if (shape := _concrete(dims)) is not None
        }
        if len(found) > len(best):
            best = found
        if all(name in found for node in bare.graph.node for name in node.output if name):
            break
    return best


def _checked(inputs: Sequence[onnx.ValueInfoProto], given: object) -> dict[str, tuple[int, ...]]:
    """The shapes ``given`` by input, whatever they were; UsageError where they are none, or don't fit."""
    stated = {value.name: value for value in inputs}
    if not isinstance(given, Mapping):
        example = next(iter(stated), "x")
        raise UsageError(
            f"the shapes of the inputs are {shown(given)}, not a mapping by name",
            hint=f"write input_shapes={{{example!r}: (1, 3, 224, 224)}}",
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for name, values in given.items():
        if name not in stated:
            raise UsageError(
                f"the model has no input '{name}'", hint=f"its inputs are {', '.join(sorted(stated))}"
            )
        shape = shapes[name] = _sizes(name, values)
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
    return shapes


def _sizes(name: str, values: object) -> tuple[int, ...]:
    try:
        return tuple(operator.index(size) for size in values)  # type: ignore[attr-defined]  # caught below
    except TypeError:
        raise UsageError(
            f"the shape of input '{name}' is {shown(values)}, not a list of whole numbers",
            hint="write it like (1, 3, 224, 224)",
        ) from None


def _shapes(bare: onnx.ModelProto) -> dict[str, tuple[Dim, ...]]:
    """Shapes of a skeleton with concrete inputs: what shape arithmetic computes is now constant."""
    shapes = infer_bare(bare)
    if all(isinstance(dim, int) for dims in shapes.values() for dim in dims) and all(
        name in shapes for node in bare.graph.node for name in node.output if name
    ):
        return shapes
    folded = onnx.ModelProto()
    folded.CopyFrom(bare)
    fold_constants(folded)
    return {**shapes, **infer_bare(folded)}


def _concrete(dims: Sequence[Dim]) -> tuple[int, ...] | None:
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return tuple(sizes) if len(sizes) == len(dims) else None
