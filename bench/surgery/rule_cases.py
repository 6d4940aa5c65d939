"""Node cases of random shapes, groups and opsets, beside those of the onnx package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from bench.surgery.common import Array, session
from bench.surgery.drawing import Drawn, Random, floats, sizes
from bench.surgery.fused_cases import FUSED
from onnxprune.graph.ops.elementwise import NARY, UNARY
from onnxprune.graph.reduced import REDUCTIONS
from onnxprune.io.limits import MAX_OPSET, MIN_OPSET


@dataclass(frozen=True)
class Case:
    """A model of one node with inputs and outputs, as the onnx package's cases are."""

    name: str
    model: onnx.ModelProto
    data_sets: list[tuple[list[Array], list[Array]]]


def made_cases(count: int) -> Iterator[Case]:
    """``count`` cases of each kind, less those that onnxruntime can't run."""
    for maker in MAKERS:
        for seed in range(count):
            random = np.random.default_rng([seed, *maker.__name__.encode()])
            opset = int(random.integers(MIN_OPSET, MAX_OPSET + 1))
            case = _case(f"{maker.__name__}_{seed}", maker(random, opset), opset)
            if case is not None:
                yield case


def _case(name: str, drawn: Drawn, opset: int) -> Case | None:
    full, values, attributes, outputs = drawn
    domain, _, op = full.rpartition(".")
    given = {f"i{index}": value for index, value in enumerate(values) if value is not None}
    names = [f"i{index}" if value is not None else "" for index, value in enumerate(values)]
    results = [f"o{index}" for index in range(outputs)]
    kind = helper.np_dtype_to_tensor_dtype
    inputs = [helper.make_tensor_value_info(key, kind(v.dtype), v.shape) for key, v in given.items()]
    first = _RESULTS.get(op, attributes.get("to", onnx.TensorProto.FLOAT))
    stated = [helper.make_tensor_value_info(result, first, None) for result in results]
    node = helper.make_node(op, names, results, domain=domain, **attributes)
    opsets = [helper.make_opsetid(name, 1 if name else opset) for name in dict.fromkeys(("", domain))]
    graph = helper.make_graph([node], "g", inputs, stated)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    try:
        found = session(model).run(None, given)
    except Exception:  # no such op at this opset, or no kernel for it
        return None
    return Case(f"{name}_{op}", model, [(list(given.values()), found)])


_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual")
_RESULTS = {**dict.fromkeys(_COMPARISONS, onnx.TensorProto.BOOL), "QuantizeLinear": onnx.TensorProto.UINT8}
"""Types of first outputs that are not floats."""


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


def convolution(random: Random, opset: int) -> Drawn:
    op = str(random.choice(["Conv", "ConvTranspose"]))
    groups, each = int(random.choice([1, 1, 2, 3])), int(random.integers(1, 4))
    out, dims = int(random.integers(1, 4)), int(random.integers(1, 3))
    if random.random() < 0.3:
        groups, each = int(random.integers(2, 7)), 1
    channels, kernel = groups * each, [int(random.integers(1, 4))] * dims
    weight = (groups * out, each) if op == "Conv" else (channels, out)
    bias = floats(random, groups * out) if random.random() < 0.5 else None
    x = floats(random, 2, channels, *[6] * dims)
    attributes = {"group": groups, "strides": [int(random.integers(1, 3))] * dims}
    return op, [x, floats(random, *weight, *kernel), bias][: 3 if bias is not None else 2], attributes, 1


def gemm(random: Random, opset: int) -> Drawn:
    m, k, n = sizes(random, 3)
    trans_a, trans_b = (int(flag) for flag in random.integers(0, 2, 2))
    a, b = (
        floats(random, *((k, m) if trans_a else (m, k))),
        floats(random, *((n, k) if trans_b else (k, n))),
    )
    c = floats(random, *[[n], [m, n], [1, n], [m, 1]][random.integers(4)])
    return "Gemm", [a, b, c], {"transA": trans_a, "transB": trans_b, "alpha": 0.7, "beta": 1.3}, 1


def matmul(random: Random, opset: int) -> Drawn:
    lead = sizes(random, int(random.integers(0, 3)))
    m, k, n = sizes(random, 3)
    return (
        "MatMul",
        [floats(random, *lead, m, k), floats(random, *(lead * bool(random.integers(2))), k, n)],
        {},
        1,
    )


def broadcast(random: Random, opset: int) -> Drawn:
    op = str(random.choice([*(op for op in NARY if op[:3] not in ("And", "Bit", "Or", "Xor")), "PRelu"]))
    shape = sizes(random)
    other = [size if random.random() < 0.6 else 1 for size in shape][int(random.integers(0, len(shape))) :]
    x, y = floats(random, *shape), floats(random, *other)
    if op == "Where":
        return op, [x > 0, x, y], {}, 1
    if op == "Clip":
        return op, [x, np.float32(-0.5), np.float32(0.7)], {}, 1
    if op == "Mod":
        return op, [x, y], {"fmod": 1}, 1
    return op, [np.abs(x) if op == "Pow" else x, y], {}, 1


def reduction(random: Random, opset: int) -> Drawn:
    op, shape = str(random.choice(REDUCTIONS)), sizes(random)
    axes = random.permutation(len(shape))[: random.integers(1, len(shape) + 1)].tolist()
    keep = {"keepdims": int(random.integers(2))}
    x = floats(random, *shape)
    x = np.abs(x) if op == "ReduceLogSum" else x
    if opset >= (13 if op == "ReduceSum" else 18):
        return op, [x, _ints(*axes)], keep, 1
    return op, [x], {**keep, "axes": axes}, 1


def normalisation(random: Random, opset: int) -> Drawn:
    kinds = ["BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization",
             "RMSNormalization", "Softmax", "LogSoftmax", "LpNormalization"]  # fmt: skip
    op, groups = str(random.choice(kinds)), int(random.integers(1, 4))
    channels = groups * int(random.integers(1, 4))
    x, one = floats(random, 2, channels, 3, 4), floats(random, channels)
    if op == "BatchNormalization":
        return op, [x, one, one, one, np.abs(one) + 0.5], {}, 1
    if op == "InstanceNormalization":
        return op, [x, one, one + 1], {}, 1
    if op == "GroupNormalization":
        return op, [x, one, one + 1], {"num_groups": groups}, 1
    axis = int(random.integers(1, 4))
    if op in ("LayerNormalization", "RMSNormalization"):
        scale = floats(random, *x.shape[axis:])
        return op, [x, scale], {"axis": axis}, 1
    return op, [x], {"axis": axis}, 1


def pooling(random: Random, opset: int) -> Drawn:
    op = str(
        random.choice(
            ["AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"]
        )
    )
    dims = int(random.integers(1, 3))
    size = {} if op.startswith("Global") else {"kernel_shape": [2] * dims, "strides": [2] * dims}
    return op, [floats(random, 2, int(random.integers(2, 6)), *[6] * dims)], size, 1


def regions(random: Random, opset: int) -> Drawn:
    x, corners = floats(random, 2, 3, 6, 6), np.array([[0, 0, 4, 4], [1, 2, 5, 5]], np.float32)
    if random.random() < 0.5:
        named = np.concatenate([np.array([[0], [1]], np.float32), corners], axis=1)
        return "MaxRoiPool", [x, named], {"pooled_shape": [2, 2]}, 1
    size = {"output_height": 2, "output_width": 2, "mode": str(random.choice(["avg", "max"]))}
    return "RoiAlign", [x, corners, _ints(0, 1)], size, 1


def resizing(random: Random, opset: int) -> Drawn:
    x = floats(random, 2, int(random.integers(2, 6)), 3, 4)
    scales = np.array([1, 1, 2, 2], np.float32)
    if opset < 9:
        return "Upsample", [x], {"scales": scales.tolist()}, 1
    if opset < 11:
        return "Upsample" if opset == 9 else "Resize", [x, scales], {}, 1
    if random.random() < 0.5:
        return "Resize", [x, None, None, _ints(*x.shape[:2], 5, 7)], {"mode": "linear"}, 1
    return "Resize", [x, None, scales], {"mode": str(random.choice(["nearest", "linear"]))}, 1


def unary(random: Random, opset: int) -> Drawn:
    op, x = str(random.choice(UNARY)), floats(random, *sizes(random))
    if op in ("Acos", "Asin", "Atanh"):
        x = np.tanh(x) * np.float32(0.9)
    elif op in ("Acosh", "Log", "Sqrt"):
        x = np.abs(x) + np.float32(op == "Acosh")
    return op, [x], {"to": onnx.TensorProto.DOUBLE} if op == "Cast" else {}, 1


def movement(random: Random, opset: int) -> Drawn:
    """Transpose, Tile, Expand, Concat, Gather, Flatten or a blocked op, on random shapes."""
    shape = sizes(random)
    x, axis = floats(random, *shape), int(random.integers(len(shape)))
    match random.integers(7):
        case 0:
            return "Transpose", [x], {"perm": random.permutation(len(shape)).tolist()}, 1
        case 1:
            return "Tile", [x, _ints(*random.integers(1, 3, len(shape)))], {}, 1
        case 2:
            wide = [size if a != axis else 1 for a, size in enumerate(shape)]
            return "Expand", [floats(random, *wide), _ints(*shape)], {}, 1
        case 3:
            other = [size if a != axis else 3 for a, size in enumerate(shape)]
            return "Concat", [x, floats(random, *other)], {"axis": axis}, 1
        case 4:
            picked = random.integers(0, shape[axis], int(random.integers(1, 5)))
            return "Gather", [x, _ints(*picked)], {"axis": axis}, 1
        case 5:
            return "Flatten", [x], {"axis": axis}, 1
        case _:
            op = str(random.choice(["DepthToSpace", "SpaceToDepth"]))
            size = (2, 4 * int(random.integers(1, 4)), 2, 4)
            mode = {"mode": str(random.choice(["DCR", "CRD"]))} if op[0] == "D" and opset >= 11 else {}
            return op, [floats(random, *size)], {"blocksize": 2, **mode}, 1


def cutting(random: Random, opset: int) -> Drawn:
    """Split, Slice or Pad along a random axis, their lengths stated as the opset asks."""
    shape = sizes(random)
    x, axis = floats(random, *shape), int(random.integers(len(shape)))
    start, end = sorted(int(place) for place in random.choice(shape[axis] + 1, 2, replace=False))
    kind = random.integers(3)
    if kind == 0:
        first = int(random.integers(1, shape[axis]))
        lengths = [first, shape[axis] - first]
        if opset >= 13:
            return "Split", [x, _ints(*lengths)], {"axis": axis}, 2
        return "Split", [x], {"axis": axis, "split": lengths}, 2
    if kind == 1:
        if opset < 10:
            return "Slice", [x], {"axes": [axis], "starts": [start], "ends": [end]}, 1
        step = int(random.choice([1, 1, 2, -1]))
        low, high = (start, end) if step > 0 else (end - 1, start - 1 - shape[axis] * (start == 0))
        return "Slice", [x, _ints(low), _ints(high), _ints(axis), _ints(step)], {}, 1
    pads = random.integers(0, 3, 2 * len(shape)).tolist()
    if opset < 11:
        return "Pad", [x], {"pads": pads}, 1
    return "Pad", [x, _ints(*pads), np.float32(random.standard_normal())], {}, 1


def reshaping(random: Random, opset: int) -> Drawn:
    """An axis split in two, two axes joined, or an axis of size 1 added or dropped."""
    shape = sizes(random)
    axis = int(random.integers(len(shape)))
    if random.random() < 0.4:
        shape[axis] = 1
        if opset >= 13:
            return str(random.choice(["Squeeze", "Unsqueeze"])), [floats(random, *shape), _ints(axis)], {}, 1
        return str(random.choice(["Squeeze", "Unsqueeze"])), [floats(random, *shape)], {"axes": [axis]}, 1
    if axis and random.random() < 0.5:
        target = [*shape[: axis - 1], shape[axis - 1] * shape[axis], *shape[axis + 1 :]]
    else:
        shape[axis] = 6
        target = [*shape[:axis], *([2, 3] if random.random() < 0.5 else [3, 2]), *shape[axis + 1 :]]
    return "Reshape", [floats(random, *shape), _ints(*target)], {}, 1


def attention(random: Random, opset: int) -> Drawn:
    shared, times = int(random.integers(1, 4)), int(random.integers(1, 3))
    query, key = floats(random, 1, shared * times, 3, 4), floats(random, 1, shared, 5, 4)
    mask = [floats(random, 3, 5), floats(random, 1, shared * times, 3, 5), None][random.integers(3)]
    return (
        "Attention",
        [query, key, floats(random, 1, shared, 5, 2), mask][: 3 if mask is None else 4],
        {},
        1,
    )


MAKERS: tuple[Callable[[Random, int], Drawn], ...] = (
    convolution, gemm, matmul, broadcast, reduction, normalisation, pooling, regions, resizing, unary,
    movement, cutting, reshaping, attention, *FUSED,
)  # fmt: skip
