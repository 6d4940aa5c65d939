"""The oracle: a pruned model must compute what the original computes with its removed channels silenced."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, OnnxPruneError, VerificationError
from onnxprune.graph.edits import attribute, input_name
from onnxprune.graph.equation import parse_equation
from onnxprune.graph.fold import RANDOM
from onnxprune.graph.fused import DOMAIN, contraction, factor_axes
from onnxprune.graph.inference import infer_types
from onnxprune.graph.kept import Kept
from onnxprune.graph.plan import Plan, validate
from onnxprune.graph.reduced import REDUCTIONS, reduced_axes
from onnxprune.graph.stored import without_rounding
from onnxprune.graph.structure import PruningGraph
from onnxprune.io.limits import INLINE_LIMIT, all_nodes, weight_bytes
from onnxprune.io.save import save
from onnxprune.io.validate import shorten, without_initializers

Array = npt.NDArray[Any]

TOLERANCE = 1e-5
"""Largest relative error of a right result in single precision; the noise seen is near 5e-7."""

_NOISE = (4.0, 1e-3)
"""How many times its own noise of rounding a model may be off, and how much at most."""

_HALF_TOLERANCE = 2e-2  # half precision rounds to 1e-3, and sums of pruned channels round in another order
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CANT_RUN = "onnxruntime can't run the original model"
_FATAL = 4


def masked(graph: PruningGraph, plan: Plan) -> onnx.ModelProto:
    """The whole model, with the channels that ``plan`` removes multiplied by 0 wherever they are summed.

    A Mul with a 0/1 mask is put in front of every input of a Conv, ConvTranspose, Gemm, MatMul or
    Einsum whose contracted axis holds removed units, of a reduction over such an axis, and of an LRN or
    LpNormalization, whose divisors sum along one.
    Nothing else changes, so no rule of the analysis or of the rewriting has a part in it.
    """
    validate(graph, plan)
    kept = Kept(graph, plan)
    model = without_initializers(graph.model)
    model.graph.initializer.extend(graph.model.graph.initializer)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    types = infer_types(graph.model)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    made: dict[tuple[str, int], str] = {}
    for node in nodes:
        for position, axis in contracted_axes(node, kept, constants):
            name = node.input[position]
            if name in constants or not kept.pruned(name, axis):
                continue
            if (name, axis) not in made:
                made[name, axis] = _add_mask(
                    model.graph, kept, name, axis, types.get(name, TensorProto.FLOAT)
                )
            node.input[position] = made[name, axis]
        model.graph.node.append(node)
    return model


def verify(
    graph: PruningGraph,
    plan: Plan,
    pruned: onnx.ModelProto,
    *,
    seed: int = 0,
    samples: int = 2,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    tolerance: float | None = None,
) -> float:
    """Compare ``pruned`` with the masked original on ``samples`` random signed inputs.

    Returns the largest relative error ``max|a - b| / max(1e-6, max|a|)`` over the outputs.
    Activations are left unquantized in both, since a rounding error at the edge between two levels
    would become a whole level. ``input_shapes`` replaces shapes at batch 1 by name; ``tolerance`` is
    1e-5, more in half precision. VerificationError above it, and above four times what onnxruntime's own
    optimisations change in the masked original: deep networks can make more of their rounding errors.
    ModelError if onnxruntime can't run the original.
    """
    random = next((node for node in all_nodes(graph.model) if _is_random(graph.model, node)), None)
    if random is not None:
        raise ModelError(
            f"node {random.name!r} ({random.op_type}) draws random numbers, so there is nothing to compare",
            hint="leave out --verify, or export the model for inference",
        )
    if tolerance is None:
        half = any(tensor.data_type in _HALF for tensor in graph.model.graph.initializer)
        tolerance = _HALF_TOLERANCE if half else TOLERANCE
    silenced = without_rounding(masked(graph, plan))
    original = _session(silenced, ModelError, _CANT_RUN)
    small = _session(without_rounding(pruned), VerificationError, "onnxruntime can't run the pruned model")
    generator = np.random.default_rng(seed)
    worst = 0.0
    for _ in range(samples):
        feed = _random_inputs(graph.model, graph.shapes, input_shapes or {}, generator)
        wanted = _run(original, feed, ModelError, _CANT_RUN)
        found = _run(small, feed, VerificationError, "onnxruntime can't run the pruned model")
        errors = [relative_error(a, b) for a, b in zip(wanted, found, strict=True)]
        worst = max(worst, *errors)
        if not worst <= tolerance:
            tolerance = max(tolerance, _noise(silenced, feed, wanted))
        for value, error in zip(graph.model.graph.output, errors, strict=True):
            if not error <= tolerance:
                raise VerificationError(
                    f"output {value.name!r} of the pruned model is off by {error:.1e}, over {tolerance:.0e}",
                    hint="this is a bug of ours; please report the model's structure",
                )
    return worst


def _noise(silenced: onnx.ModelProto, feed: Mapping[str, Array], wanted: list[Array]) -> float:
    """What another order of the same sums may change: some times what onnxruntime's optimisations do."""
    changed = _run(_session(silenced, ModelError, _CANT_RUN, optimised=True), feed, ModelError, _CANT_RUN)
    noise = max(relative_error(a, b) for a, b in zip(wanted, changed, strict=True))
    times, most = _NOISE
    return min(times * noise, most) if np.isfinite(noise) else 0.0


def relative_error(wanted: Array, found: Array) -> float:
    """``max|a - b| / max(1e-6, max|a|)``; infinite where shapes, types or non-finite entries differ."""
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return float("inf")
    if not np.issubdtype(wanted.dtype, np.floating):
        return 0.0 if np.array_equal(wanted, found) else float("inf")
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max() / max(1e-6, np.abs(a[finite]).max()))


def contracted_axes(
    node: onnx.NodeProto, kept: Kept, constants: Mapping[str, TensorProto]
) -> Iterator[tuple[int, int]]:
    """Inputs of ``node``, by position, with the axis that it sums over: channels that meet there mix."""
    op = contraction(node)
    if not all(kept.known(name) for name in node.input[:2]):
        return
    if op == "Conv":
        if kept.shape(node.input[1])[1] > 1 or attribute(node, "group", 1) == 1:  # else depthwise: no sum
            yield 0, 1
    elif op in ("ConvTranspose", "LRN"):
        yield 0, 1
    elif op in ("Gemm", "MatMul"):
        yield 0, factor_axes(node, 0, len(kept.shape(node.input[0])))[-1]
        yield 1, factor_axes(node, 1, len(kept.shape(node.input[1])))[-2:][0]
    elif node.op_type == "Attention" and node.domain == DOMAIN:
        yield 0, 2
    elif op in REDUCTIONS:
        axes = constants.get(input_name(node, 1))
        stated = None if axes is None else numpy_helper.to_array(axes)
        for axis in reduced_axes(node, len(kept.shape(node.input[0])), stated):
            yield 0, axis
    elif op == "LpNormalization":
        yield 0, attribute(node, "axis", -1) % len(kept.shape(node.input[0]))
    elif op == "Einsum":
        yield from _summed_axes(node, kept)


def _summed_axes(node: onnx.NodeProto, kept: Kept) -> Iterator[tuple[int, int]]:
    ranks = [len(kept.shape(name)) for name in node.input if kept.known(name)]
    equation = parse_equation(attribute(node, "equation", b"").decode(), ranks)
    if equation is None:
        return
    for position, letters in enumerate(equation.operands):
        for axis, letter in enumerate(letters):
            if letter in equation.summed:
                yield position, axis


def _add_mask(graph: onnx.GraphProto, kept: Kept, name: str, axis: int, kind: int) -> str:
    taken = {tensor.name for tensor in graph.initializer}
    taken.update(output for node in graph.node for output in node.output)
    base = f"{name}_silenced_{axis}"
    while base in taken:
        base += "_"
    mask = kept.mask(name, axis)
    shape = [1] * len(kept.shape(name))
    shape[axis] = len(mask)
    values = mask.astype(helper.tensor_dtype_to_np_dtype(kind)).reshape(shape)
    graph.initializer.append(numpy_helper.from_array(values, f"{base}_mask"))
    graph.node.append(helper.make_node("Mul", [name, f"{base}_mask"], [base], name=base))
    return base


def _is_random(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether the node gives other values at every run."""
    if node.op_type != "Dropout":
        return node.op_type in RANDOM
    if len(node.input) < 3 or not node.input[2]:
        return False
    training = next((t for t in model.graph.initializer if t.name == node.input[2]), None)
    return training is None or bool(numpy_helper.to_array(training).any())


def _session(
    model: onnx.ModelProto, kind: type[OnnxPruneError], message: str, *, optimised: bool = False
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if not optimised:  # fusions differ between the two models, and would raise the floor of rounding errors
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        if weight_bytes(model.graph.initializer) > INLINE_LIMIT:
            with tempfile.TemporaryDirectory() as folder:
                path = save(model, Path(folder, "model.onnx"), external_data=True)[0]
                return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise kind(f"{message}: {shorten(error)}", hint="go without --verify") from error


def _run(
    session: ort.InferenceSession, feed: Mapping[str, Array], kind: type[OnnxPruneError], message: str
) -> list[Array]:
    try:
        outputs = session.run(None, feed)
    except Exception as error:  # onnxruntime's errors share no base class
        raise kind(f"{message}: {shorten(error)}", hint="go without --verify") from error
    return [np.asarray(output) for output in outputs]


def _random_inputs(
    model: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
    generator: np.random.Generator,
) -> dict[str, Array]:
    """Signed normal numbers for floats, 0 and 1 for integers (which may be indices)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    feed: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type.elem_type
        shape = given.get(value.name, shapes.get(value.name))
        if shape is None or kind in (TensorProto.UNDEFINED, TensorProto.STRING):
            raise ModelError(
                f"can't make a random value for the input {value.name!r}", hint="go without --verify"
            )
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
            feed[value.name] = generator.integers(0, 2, shape).astype(dtype)
        else:
            feed[value.name] = generator.standard_normal(shape).astype(dtype)
    return feed
