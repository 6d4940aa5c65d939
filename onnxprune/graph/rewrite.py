"""Rewriting: plan -> validate -> apply. The result is a smaller dense model, or an error and nothing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx.shape_inference
from onnx import TensorProto, numpy_helper

from onnxprune.errors import ModelError, RewriteError
from onnxprune.graph.edits import Array, Edits
from onnxprune.graph.kept import Kept
from onnxprune.graph.plan import Plan, validate
from onnxprune.graph.residual import constant_of
from onnxprune.graph.resize import resize
from onnxprune.graph.shapes import skeleton
from onnxprune.graph.structure import BoolArray, PruningGraph, removed_branches
from onnxprune.io.validate import check_model, shorten, without_initializers

_DEFAULT_DOMAINS = ("", "ai.onnx")


def rewrite(graph: PruningGraph, plan: Plan) -> onnx.ModelProto:
    """The model without the units that ``plan`` removes; ``graph.model`` is left as it is.

    Every index whose unit goes is dropped, on every axis of every initializer; then each attribute
    and constant that states a size is written anew. A residual branch that goes as a whole is replaced
    by the constant that it would give. The graph's inputs and outputs, names,
    versions, documentation and metadata stay. PlanError if the plan does not fit, before anything
    is built; RewriteError (a bug of ours) if the result is not a valid model of the right shapes.
    """
    validate(graph, plan)
    model, kept = graph.model, Kept(graph, plan)
    result = without_initializers(model)
    edits = _edits(model, kept)
    gone = _remove_branches(result.graph, graph, plan)
    _resize_nodes(result.graph, edits)
    for tensor in model.graph.initializer:
        if tensor.name in gone:
            continue
        value = edits.constants.get(tensor.name)
        if value is None:
            masks = _masks(kept, tensor.name)
            if not masks:
                result.graph.initializer.append(tensor)
                continue
            value = _compress(numpy_helper.to_array(tensor), masks)
        _store(value, tensor, result.graph.initializer.add())
    for name, value in edits.added.items():
        result.graph.initializer.append(numpy_helper.from_array(value, name))
    _update_shapes(result.graph, kept)
    _check(model, result, kept)
    return result


def _remove_branches(result: onnx.GraphProto, graph: PruningGraph, plan: Plan) -> set[str]:
    """Put constants in the place of the residual branches that ``plan`` removes; returns what tensors go."""
    branches = removed_branches(graph.residual_branches, plan.keep)
    gone = set[str]().union(*(branch.tensors for branch in branches))
    nodes = set[str]().union(*(branch.nodes for branch in branches))
    for values, dropped in ((result.value_info, gone), (result.input, gone), (result.node, nodes)):
        for index in reversed(range(len(values))):
            if values[index].name in dropped:
                del values[index]
    for branch in branches:
        value = constant_of(graph, branch, plan)
        result.initializer.append(numpy_helper.from_array(value, branch.tensor))
    return gone


def _edits(model: onnx.ModelProto, kept: Kept) -> Edits:
    nodes = model.graph.node
    names = {tensor.name for tensor in model.graph.initializer}
    names.update(value.name for value in model.graph.input)
    for node in nodes:
        names.update((node.name, *node.output))
    return Edits(
        model=model,
        kept=kept,
        opset=next(entry.version for entry in model.opset_import if entry.domain in _DEFAULT_DOMAINS),
        initializers={tensor.name: tensor for tensor in model.graph.initializer},
        producers={name: node for node in nodes for name in node.output if name},
        names=names,
    )


def _resize_nodes(graph: onnx.GraphProto, edits: Edits) -> None:
    for node in graph.node:
        resize(node, edits)
    if not edits.before and not edits.after:
        return
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.extend((*edits.before.get(node.name, ()), node, *edits.after.get(node.name, ())))


def _masks(kept: Kept, tensor: str) -> dict[int, BoolArray]:
    """Masks of the tensor's axes that lose an index."""
    if not kept.known(tensor):
        return {}
    return {a: kept.mask(tensor, a) for a in range(len(kept.shape(tensor))) if kept.pruned(tensor, a)}


def _compress(value: Array, masks: dict[int, BoolArray]) -> Array:
    """``value`` without the masked indices; the axis that loses most goes first, to copy least."""
    for axis in sorted(masks, key=lambda a: float(masks[a].mean())):
        value = np.compress(masks[axis], value, axis=axis)
    return value


def _store(value: Array, tensor: TensorProto, new: TensorProto) -> None:
    """Give ``new`` the name, type and documentation of ``tensor``, and ``value``."""
    if tensor.HasField("raw_data") and value.dtype.itemsize * value.size == _packed_size(tensor, value):
        new.name, new.data_type = tensor.name, tensor.data_type
        new.dims.extend(value.shape)
        new.raw_data = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
    else:
        new.CopyFrom(numpy_helper.from_array(value, tensor.name))
    if tensor.doc_string:
        new.doc_string = tensor.doc_string
    new.metadata_props.extend(tensor.metadata_props)


def _packed_size(tensor: TensorProto, value: Array) -> int:
    """Bytes that ``value`` has in raw form: types below one byte are packed, so they take fewer."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    return len(tensor.raw_data) * value.size // count if count else 0


def _update_shapes(graph: onnx.GraphProto, kept: Kept) -> None:
    """Write the new sizes where shapes are stated: intermediate values, and weights that are inputs."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for value in (*graph.value_info, *(value for value in graph.input if value.name in weights)):
        if value.name in weights:
            _set_dims(value, enumerate(weights[value.name].dims))
        elif kept.known(value.name):
            rank = range(len(kept.shape(value.name)))
            _set_dims(value, [(a, kept.size(value.name, a)) for a in rank if kept.pruned(value.name, a)])


def _set_dims(value: onnx.ValueInfoProto, sizes: Iterable[tuple[int, int]]) -> None:
    if not value.type.tensor_type.HasField("shape"):
        return
    dims = value.type.tensor_type.shape.dim
    for axis, size in sizes:
        if axis < len(dims):
            dims[axis].dim_value = size


def _check(model: onnx.ModelProto, result: onnx.ModelProto, kept: Kept) -> None:
    try:
        check_model(result, full=True)
    except ModelError as error:
        # What the checker says of the original too is not ours to refuse.
        try:
            check_model(model, full=True)
        except ModelError:
            return
        raise RewriteError(
            f"the rewritten model is not valid: {error}", hint="please report the model's structure"
        ) from error
    _check_shapes(result, kept)


def _check_shapes(result: onnx.ModelProto, kept: Kept) -> None:
    """Every size that inference finds in ``result`` must be the one that the plan leaves."""
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton(result), data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise RewriteError(
            f"the rewritten model's shapes conflict: {shorten(error)}",
            hint="please report the model's structure",
        ) from error
    for value in inferred.graph.value_info:
        if not kept.known(value.name) or not value.type.tensor_type.HasField("shape"):
            continue
        dims = value.type.tensor_type.shape.dim
        for axis in range(len(dims)):
            if dims[axis].HasField("dim_value") and kept.pruned(value.name, axis):
                expected = kept.size(value.name, axis)
                if dims[axis].dim_value != expected:
                    raise RewriteError(
                        f"axis {axis} of {value.name!r} would have {dims[axis].dim_value} entries, "
                        f"not {expected}",
                        hint="please report the model's structure",
                    )
