"""Shape arithmetic with sizes that are only known by name, such as a dynamic batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.graph.inference import Dim

Sizes = npt.NDArray[np.object_]
"""A scalar or vector whose elements are integers, truth values or names of unknown sizes."""

_Reader = Callable[[str], Sizes | None]


def evaluate_sizes(
    node: onnx.NodeProto, shapes: Mapping[str, tuple[Dim, ...]], read: _Reader
) -> Sizes | None:
    """The sizes that a node of shape arithmetic computes; None if it isn't one or can't be followed.

    ``read`` gives a value's sizes where it holds any (integer constants included).
    """
    if node.op_type == "Shape":
        shape = shapes.get(node.input[0])
        if shape is None:
            return None
        ends = _attributes(node)
        return np.array([*shape], np.object_)[slice(ends.get("start", 0), ends.get("end"))]
    rule = _RULES.get(node.op_type)
    if rule is None or not node.input:
        return None
    inputs = [read(name) if name else None for name in node.input]
    if inputs[0] is None or inputs[0].ndim > 1:
        return None
    try:
        return rule(node, inputs)
    except (IndexError, ValueError, TypeError):  # malformed arithmetic is left for the runtime to refuse
        return None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _integers(sizes: Sizes | None) -> list[int] | None:
    if sizes is None or not all(isinstance(size, int) for size in sizes.ravel()):
        return None
    return [int(size) for size in sizes.ravel()]


def _gather(node: onnx.NodeProto, inputs: Sequence[Sizes | None]) -> Sizes | None:
    source, indices = inputs[0], inputs[1]
    chosen = _integers(indices)
    if source is None or indices is None or chosen is None or source.ndim != 1:
        return None
    return source[np.array(chosen, np.int64)].reshape(indices.shape)


def _slice(node: onnx.NodeProto, inputs: Sequence[Sizes | None]) -> Sizes | None:
    attributes = _attributes(node)
    bounds: list[Any] = []
    for position, name, default in ((1, "starts", None), (2, "ends", None), (4, "steps", [1])):
        given = position < len(inputs) and node.input[position]
        bounds.append(_integers(inputs[position]) if given else attributes.get(name, default))
    if inputs[0] is None or inputs[0].ndim != 1 or not all(bound and len(bound) == 1 for bound in bounds):
        return None
    return inputs[0][slice(*(bound[0] for bound in bounds))]


def _concat(node: onnx.NodeProto, inputs: Sequence[Sizes | None]) -> Sizes | None:
    parts = [part for part in inputs if part is not None and part.ndim == 1]
    return np.concatenate(parts) if len(parts) == len(inputs) else None


def _to_vector(node: onnx.NodeProto, inputs: Sequence[Sizes | None]) -> Sizes | None:
    return inputs[0].reshape(1) if inputs[0] is not None and inputs[0].ndim == 0 else None


def _reshaped(node: onnx.NodeProto, inputs: Sequence[Sizes | None]) -> Sizes | None:
    target = _integers(inputs[1])
    if inputs[0] is None or target not in ([], [1], [-1]):
        return None
    return inputs[0].reshape(target) if target == [-1] or inputs[0].size == 1 else None


def _to_scalar(node: onnx.NodeProto, inputs: Sequence[Sizes | None]) -> Sizes | None:
    return inputs[0].reshape(()) if inputs[0] is not None and inputs[0].shape == (1,) else None


def _same(node: onnx.NodeProto, inputs: Sequence[Sizes | None]) -> Sizes | None:
    # Only 64-bit results: what is folded must have the type that the node computes.
    wanted = onnx.TensorProto.INT64
    return inputs[0] if _attributes(node).get("to", wanted) == wanted else None


def _pairwise(
    inputs: Sequence[Sizes | None], combine: Callable[[int | str, int | str], int | str | None]
) -> Sizes | None:
    """``combine`` of each pair of two operands; None where one is unknown, or any pair gives None."""
    left, right = inputs[0], inputs[1]
    if left is None or right is None:
        return None
    one, other = np.broadcast_arrays(left, right)
    result = np.empty(one.shape, np.object_)
    for index, (a, b) in enumerate(zip(one.flat, other.flat, strict=True)):
        result.flat[index] = combine(a, b)
        if result.flat[index] is None:
            return None
    return result


def _arithmetic(node: onnx.NodeProto, inputs: Sequence[Sizes | None]) -> Sizes | None:
    def combine(a: int | str, b: int | str) -> int | str | None:
        if isinstance(a, int) and isinstance(b, int):
            if node.op_type == "Div":
                return None if a < 0 or b <= 0 else a // b
            return {"Add": a + b, "Sub": a - b, "Mul": a * b}[node.op_type]
        if node.op_type == "Mul" and 1 in (a, b):
            return b if a == 1 else a
        return f"({a} {node.op_type} {b})"

    return _pairwise(inputs, combine)


def _equal(node: onnx.NodeProto, inputs: Sequence[Sizes | None]) -> Sizes | None:
    def combine(a: int | str, b: int | str) -> bool | None:
        known = (isinstance(a, int) and isinstance(b, int)) or a == b
        # A size, whatever it is, is not negative.
        if not known and not any(isinstance(size, int) and size < 0 for size in (a, b)):
            return None
        return a == b

    return _pairwise(inputs, combine)


def _where(node: onnx.NodeProto, inputs: Sequence[Sizes | None]) -> Sizes | None:
    chosen = _integers(inputs[0])
    condition, yes, no = inputs
    if chosen is None or condition is None or yes is None or no is None:
        return None
    result: Sizes = np.where(np.array(chosen, np.bool_).reshape(condition.shape), yes, no)
    return result


_RULES: dict[str, Callable[[onnx.NodeProto, Sequence[Sizes | None]], Sizes | None]] = {
    "Add": _arithmetic,
    "Cast": _same,
    "Concat": _concat,
    "Div": _arithmetic,
    "Equal": _equal,
    "Gather": _gather,
    "Identity": _same,
    "Mul": _arithmetic,
    "Reshape": _reshaped,
    "Slice": _slice,
    "Squeeze": _to_scalar,
    "Sub": _arithmetic,
    "Unsqueeze": _to_vector,
    "Where": _where,
}
