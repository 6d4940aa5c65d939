"""Constant folding that changes nothing else: names, documentation strings and metadata stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.graph.inference import Dim, infer_symbolic, infer_types
from onnxprune.graph.symbolic import Sizes, evaluate_sizes

_LIMIT = 1 << 24
"""Bytes up to which a folded value may be bigger than what it was computed from."""

_LONGEST = 64
"""Most elements of an integer vector that is taken for shape arithmetic."""

_HALF = ("float16", "bfloat16")

_BROADCASTING = ("Add", "Sub", "Mul", "Div")

_STATED_MODE = 14
"""The opset from which a BatchNormalization states whether it is in training mode."""

_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)

RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)
"""Ops that draw anew at every run."""

# Folding these away would change what the model is: random numbers, and the quantisation it states.
_KEPT = RANDOM | {"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"}


def fold_constants(model: onnx.ModelProto) -> None:
    """Replace, in place, what is computed from constants and stated shapes by initializers.

    Shape arithmetic that only a dynamic batch keeps from being constant is replaced where it ends
    in a Reshape or an Expand: the target becomes a constant that copies or infers the batch.
    """
    spread = {
        name
        for node in model.graph.node
        if node.op_type in ("Expand", "Tile") and node.domain in ("", "ai.onnx")
        for name in node.output
    }
    before = -1
    while before != len(model.graph.initializer):
        before = len(model.graph.initializer)
        shapes = infer_symbolic(model)
        _fold_once(model, shapes)
    remove_dead(model.graph)
    _narrow(model.graph, spread, shapes)


def standard_opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators that the model uses."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The bodies of an If, a Loop or a Scan."""
    graphs = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    for attribute in node.attribute:
        graphs.extend(attribute.graphs)
    return graphs


def captured(node: onnx.NodeProto) -> tuple[str, ...]:
    """Names of the values that the node's bodies read from outside, sorted."""
    names: set[str] = set()
    for graph in subgraphs(node):
        inside = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        inside.update(name for inner in graph.node for name in inner.output)
        for inner in graph.node:
            names.update(name for name in (*inner.input, *captured(inner)) if name and name not in inside)
        names.update(value.name for value in graph.output if value.name not in inside)
    return tuple(sorted(names))


def remove_dead(graph: onnx.GraphProto) -> None:
    """Remove nodes and initializers that nothing reads; initializers that are also inputs stay."""
    needed = {value.name for value in graph.output}
    alive: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            alive.append(node)
            needed.update(name for name in (*node.input, *captured(node)) if name)
    if len(alive) < len(graph.node):
        kept = list(reversed(alive))
        del graph.node[:]
        graph.node.extend(kept)
    needed.update(value.name for value in graph.input)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]


def _narrow(graph: onnx.GraphProto, spread: Collection[str], shapes: Mapping[str, tuple[Dim, ...]]) -> None:
    """Undo what an Expand or a Tile of a constant came to, where its readers broadcast anyway."""
    if not spread:
        return
    readers = _readers(graph)
    constants = {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        reading = readers.get(tensor.name, [None])
        if tensor.name not in spread or not all(_broadcasts(node) for node in reading):
            continue
        met = [name for node in reading if node is not None for name in node.input if name != tensor.name]
        # Two constants might both be narrowed, and nothing be left to broadcast to.
        if len(met) != len(reading) or not constants.isdisjoint(met):
            continue
        value = numpy_helper.to_array(tensor)
        for axis, size in enumerate(value.shape):
            first = value.take([0], axis)
            beside = [shapes.get(name, ()) for name in met]
            fits = all(len(shape) == value.ndim and shape[axis] == size for shape in beside)
            if size > 1 and fits and np.broadcast_to(first, value.shape).tobytes() == value.tobytes():
                value = first
        if value.size < np.prod(tensor.dims):
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto | None]]:
    """The nodes that read each value; None stands for a body, or for the outside of the graph."""
    found: dict[str, list[onnx.NodeProto | None]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
        for name in captured(node):
            found.setdefault(name, []).append(None)
    for value in graph.output:
        found.setdefault(value.name, []).append(None)
    return found


def _broadcasts(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in _BROADCASTING


def _fold_once(model: onnx.ModelProto, shapes: Mapping[str, tuple[Dim, ...]]) -> None:
    graph = model.graph
    overridable = {value.name for value in graph.input}
    tensors = {t.name: t for t in graph.initializer if t.name not in overridable}
    outputs = {value.name for value in graph.output}
    readers = _readers(graph)
    opset = standard_opset(model)
    types = infer_types(model) if any(node.op_type == "CastLike" for node in graph.node) else {}
    arithmetic: dict[str, Sizes] = {}

    def read(name: str) -> Sizes | None:
        if name in arithmetic or name not in tensors:
            return arithmetic.get(name)
        tensor = tensors[name]
        if tensor.data_type not in _INTEGERS or len(tensor.dims) > 1 or sum(tensor.dims) > _LONGEST:
            return None
        return _as_sizes(numpy_helper.to_array(tensor))

    local = {(function.domain, function.name) for function in model.functions}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        values = None
        standard = node.domain in ("", "ai.onnx") and (node.domain, node.op_type) not in local
        if standard and not any(name in outputs for name in node.output):
            wanted = [name for name in node.output if name and name in readers]
            values = _node_values(_concrete_cast(node, tensors, types), wanted, opset, tensors, shapes)
            sizes = evaluate_sizes(node, shapes, read) if values is None else None
            if sizes is not None:
                arithmetic[node.output[0]] = sizes
                if all(isinstance(size, int) for size in sizes.ravel()):
                    kind = np.bool_ if node.op_type == "Equal" else np.int64
                    values = {node.output[0]: np.asarray(sizes, kind)}
        if values is None:
            kept.append(node)
            if node.op_type in ("Reshape", "Expand") and standard:
                _fix_target(node, graph, shapes, read)
            continue
        for name, value in values.items():
            tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, name)
            tensor.name = name
            graph.initializer.append(tensor)
            tensors[name] = graph.initializer[-1]
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


_Values = dict[str, Any]


def _concrete_cast(
    node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto], types: Mapping[str, int]
) -> onnx.NodeProto:
    """A CastLike of a constant reads nothing but a type: the Cast that it stands for, where that is known."""
    if node.op_type != "CastLike" or node.input[0] not in tensors or not types.get(node.input[1]):
        return node
    return onnx.helper.make_node("Cast", [node.input[0]], list(node.output), to=types[node.input[1]])


def _node_values(
    node: onnx.NodeProto,
    wanted: Sequence[str],
    opset: int,
    tensors: Mapping[str, onnx.TensorProto],
    shapes: Mapping[str, tuple[Dim, ...]],
) -> _Values | None:
    """The ``wanted`` outputs of a node on constants; None where they aren't to be had."""
    if node.op_type == "Constant":
        return _constant(node)
    given = [name for name in node.input if name]
    if node.op_type in _KEPT or not all(name in tensors for name in given) or subgraphs(node):
        return None
    if not given and node.op_type != "ConstantOfShape":
        return None
    if node.op_type == "BatchNormalization" and opset < _STATED_MODE:
        node, opset = _with_mode(node), _STATED_MODE
    return _evaluate(node, wanted, opset, [tensors[name] for name in given], shapes)


def _with_mode(node: onnx.NodeProto) -> onnx.NodeProto:
    """The same BatchNormalization as of opset 14, its first output alone.

    Before, several outputs are what says that it normalises by the statistics of its own input, and
    onnx's evaluator mixes those with the given ones in either case.
    """
    result = onnx.NodeProto()
    result.CopyFrom(node)
    del result.output[1:]
    del result.attribute[:]
    # One with statistics for each position keeps `spatial`, which stops the evaluator.
    result.attribute.extend(a for a in node.attribute if a.name != "spatial" or a.i != 1)
    result.attribute.append(onnx.helper.make_attribute("training_mode", int(len(node.output) > 1)))
    return result


def _constant(node: onnx.NodeProto) -> _Values | None:
    attribute = node.attribute[0] if len(node.attribute) == 1 else None
    if attribute is None or attribute.ref_attr_name:
        return None
    name, value = node.output[0], onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return {name: value}
    kinds: dict[str, Any] = {"value_int": np.int64, "value_ints": np.int64}
    kinds |= {"value_float": np.float32, "value_floats": np.float32}
    if attribute.name in kinds:
        return {name: np.asarray(value, kinds[attribute.name])}
    if attribute.name in ("value_string", "value_strings"):
        return {name: np.asarray(value, np.object_)}
    return None


def _evaluate(
    node: onnx.NodeProto,
    wanted: Sequence[str],
    opset: int,
    inputs: Iterable[onnx.TensorProto],
    shapes: Mapping[str, tuple[Dim, ...]],
) -> _Values | None:
    feeds: dict[str, npt.NDArray[Any]] = {tensor.name: numpy_helper.to_array(tensor) for tensor in inputs}
    allowed = _LIMIT + 2 * sum(value.nbytes for value in feeds.values())
    for name in wanted:
        size = 8
        for dim in shapes.get(name, ()):
            size *= dim if isinstance(dim, int) else 1
        if name not in shapes or size > allowed:
            return None
    graph = onnx.helper.make_graph(
        [node],
        "fold",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in feeds],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in wanted],
    )
    single = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(single).run(None, feeds)
    except Exception:  # the evaluator raises whatever numpy does; an op it can't run just stays
        return None
    values = dict(zip(wanted, results, strict=True))
    if not all(isinstance(value, (np.ndarray, np.generic)) for value in values.values()):
        return None
    return None if any(_is_rounded(value, feeds) for value in values.values()) else values


def _is_rounded(value: npt.NDArray[Any], inputs: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether it is a single half-precision number that had to be rounded, so other than what it came from.

    Runtimes may skip such a rounding between two nodes, and a single number carries no channels: it stays
    as it is computed.
    """
    if value.size != 1 or value.dtype.name not in _HALF:
        return False
    return not any(given.size == 1 and np.all(given == value) for given in inputs.values())


def _as_sizes(value: npt.NDArray[Any]) -> Sizes:
    result = np.empty(value.shape, np.object_)
    for index in np.ndindex(value.shape):
        result[index] = int(value[index])
    return result


def _fix_target(
    node: onnx.NodeProto,
    graph: onnx.GraphProto,
    shapes: Mapping[str, tuple[Dim, ...]],
    read: Callable[[str], Sizes | None],
) -> None:
    if len(node.input) < 2 or any(tensor.name == node.input[1] for tensor in graph.initializer):
        return
    target = None
    constant = _expand_target if node.op_type == "Expand" else _reshape_target
    wanted = read(node.input[1])
    if wanted is not None:
        target = constant(shapes.get(node.input[0]), list(wanted))
    if target is None and 0 not in shapes.get(node.output[0], (0,)):
        target = constant(shapes.get(node.input[0]), shapes[node.output[0]])
    if target is None:
        return
    literal = [attribute for attribute in node.attribute if attribute.name == "allowzero" and attribute.i]
    if literal and (0 in shapes.get(node.output[0], ()) or (wanted is not None and 0 in list(wanted))):
        return
    for attribute in literal:  # every 0 of the new target copies
        node.attribute.remove(attribute)
    taken = {tensor.name for tensor in graph.initializer} | {
        name for other in graph.node for name in other.output
    }
    name = unique_name(f"{node.output[0]}_shape", taken)
    graph.initializer.append(numpy_helper.from_array(np.asarray(target, np.int64), name))
    node.input[1] = name


def _reshape_target(source: Sequence[Dim] | None, wanted: Sequence[Dim]) -> list[int] | None:
    """A constant Reshape target for one with at most one size that is neither known nor copied."""
    target = []
    for axis, dim in enumerate(wanted):
        copied = source is not None and axis < len(source) and source[axis] == dim
        target.append(dim if isinstance(dim, int) else 0 if copied else -1)
    return target if target.count(-1) <= 1 else None


def _expand_target(source: Sequence[Dim] | None, wanted: Sequence[Dim]) -> list[int] | None:
    """A constant Expand target for one whose unknown sizes are those of the input already."""
    if source is None or len(source) > len(wanted):
        return None
    aligned = (*(1 for _ in range(len(wanted) - len(source))), *source)
    target = [dim if isinstance(dim, int) else 1 for dim in wanted]
    same = all(isinstance(dim, int) or dim == given for dim, given in zip(wanted, aligned, strict=True))
    return target if same else None


def unique_name(wanted: str, taken: set[str]) -> str:
    """``wanted``, or with the first number behind it that makes it new; it is added to ``taken``."""
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
