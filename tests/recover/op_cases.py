"""One-node models for every op that the executor runs: attributes, inputs, and the opsets that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]


def schema_versions(op: str) -> list[int]:
    """The opsets in which the schema of an op changed."""
    schemas = onnx.defs.get_all_schemas_with_history()
    return sorted({entry.since_version for entry in schemas if entry.name == op and entry.domain == ""})


def all_opsets(op: str) -> tuple[int, int]:
    """The first and the last opset to run an op in whose form never changed."""
    changes = schema_versions(op)
    return max(7, changes[0]), max(7, *(since for since in changes if since <= 22))


@dataclass(frozen=True)
class Case:
    """A node with its inputs. Floating arrays become graph inputs, others and ``fixed`` ones constants.

    This form of the op exists from the first of ``opsets`` to the last one; those between them at which
    its schema changed are run as well.
    """

    op: str
    opsets: tuple[int, ...]
    inputs: tuple[Array | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    fixed: tuple[int, ...] = ()
    smooth: bool = True
    """Whether the op can be differentiated at these inputs."""
    domain: str = ""
    silent: tuple[int, ...] = ()
    """Outputs that are left out."""

    def versions(self) -> list[int]:
        """The opsets to run."""
        first, last = self.opsets[0], self.opsets[-1]
        if self.domain:
            return [first]
        return sorted({first, last, *(since for since in schema_versions(self.op) if first < since < last)})

    def label(self, opset: int) -> str:
        """Name of the test."""
        plain = {k: v for k, v in self.attributes.items() if not isinstance(v, onnx.TensorProto)}
        stated = ",".join(f"{k}={v}" for k, v in plain.items())
        return f"{self.op}-{opset}-{stated}"

    def model(self, opset: int, dtype: Any = np.float32) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The model and what to feed it."""
        feeds: dict[str, Array] = {}
        constants, names = [], []
        for place, value in enumerate(self.inputs):
            name = "" if value is None else f"in{place}"
            names.append(name)
            if value is None:
                continue
            if value.dtype.kind == "f" and place not in self.fixed:
                feeds[name] = value.astype(dtype)
            else:
                kept = value.astype(dtype) if value.dtype == np.float32 and self.op != "Resize" else value
                constants.append(numpy_helper.from_array(kept, name))
        outputs = [f"y{i}" if i not in self.silent else "" for i in range(self.outputs)]
        node = helper.make_node(self.op, names, list(outputs), "node", domain=self.domain, **self.attributes)
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                for n, v in feeds.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in outputs if name],
            constants,
        )
        imports = [helper.make_opsetid("", opset)]
        imports += [helper.make_opsetid(self.domain, 1)] if self.domain else []
        ir = max(4, min(10, helper.find_min_ir_version_for(imports, ignore_unknown=True)))
        return helper.make_model(graph, opset_imports=imports, ir_version=ir), feeds


_RANDOM = np.random.default_rng(5)


def real(*shape: int) -> Array:
    """Normal values, at least 0.05 away from the kinks at 0 and at multiples of 1/2."""
    value = _RANDOM.standard_normal(shape)
    near = np.abs(value * 2 - np.rint(value * 2)) < 0.1
    return np.where(near, value + 0.12, value).astype(np.float32)


def positive(*shape: int) -> Array:
    """Values in 0.5 .. 2."""
    return _RANDOM.uniform(0.5, 2.0, shape).astype(np.float32)


def whole(*values: int) -> Array:
    return np.asarray(values, np.int64)


def scalar(value: float) -> Array:
    return np.asarray(value, np.float32)


def apart(*shape: int) -> Array:
    """Distinct values, so that maxima are unique."""
    size = int(np.prod(shape))
    return (_RANDOM.permutation(size).reshape(shape) / size * 4 - 2 + 0.013).astype(np.float32)


def _activations() -> list[Case]:
    x = real(2, 3, 4)
    return [
        Case("Relu", (7, 13, 14), (x,)),
        Case("LeakyRelu", (7, 16), (x,)),
        Case("LeakyRelu", (16,), (x,), {"alpha": 0.3}),
        Case("PRelu", (7, 9, 16), (x, real(3, 1))),
        Case("ThresholdedRelu", (10, 22), (x,), {"alpha": 0.5}),
        Case("Elu", (7, 22), (x,), {"alpha": 0.7}),
        Case("Selu", (7, 22), (x,)),
        Case("Celu", (12,), (x,), {"alpha": 0.6}),
        Case("Sigmoid", (7, 13), (x,)),
        Case("HardSigmoid", (7, 22), (x,), {"alpha": 0.3, "beta": 0.4}),
        Case("HardSwish", (14, 22), (x,)),
        Case("Swish", (24,), (x,), {"alpha": 0.8}),
        Case("Tanh", (7, 13), (x,)),
        Case("Gelu", (20,), (x,)),
        Case("Gelu", (20,), (x,), {"approximate": "tanh"}),
        Case("Mish", (18, 22), (x,)),
        Case("Softplus", (7, 22), (x,)),
        Case("Softsign", (7, 22), (x,)),
        Case("Shrink", (9,), (x,), {"lambd": 0.4, "bias": 0.2}),
        Case("Clip", (7,), (x,), {"min": -0.4, "max": 0.6}),
        Case("Clip", (11, 12, 13), (x, scalar(-0.4), scalar(0.6)), fixed=(1, 2)),
        Case("Clip", (13,), (x, None, scalar(0.6)), fixed=(2,)),
        *(Case(name, (7, 11, 13), (x,)) for name in ("Softmax", "LogSoftmax")),
        *(Case(name, (7, 13), (x,), {"axis": 0}) for name in ("Softmax", "LogSoftmax")),
        Case("Hardmax", (7, 13), (apart(2, 3, 4),), smooth=False),
    ]


def _arithmetic() -> list[Case]:
    a, b, c = real(2, 3, 4), positive(3, 1), real(4)
    ints = np.arange(-3, 3).reshape(2, 3)
    unary = ("Abs", "Atan", "Asinh", "Cos", "Cosh", "Erf", "Exp", "Neg", "Reciprocal", "Sin", "Sinh", "Tan")
    steps = ("Ceil", "Floor", "Round", "Sign", "IsNaN")
    return [
        *(Case(name, (7, 13, 14), (a, b)) for name in ("Add", "Sub", "Mul", "Div")),
        Case("Div", (13,), (ints, whole(2, 2, -2)), smooth=False),
        Case("Pow", (7, 12, 13, 15), (positive(2, 3), positive(3))),
        Case("Pow", (15,), (a, scalar(2.0)), fixed=(1,)),
        *(Case(name, all_opsets(name), (a,)) for name in unary),
        *(Case(name, all_opsets(name), (a,), smooth=False) for name in steps),
        *(Case(name, (7, 13), (positive(2, 3),)) for name in ("Sqrt", "Log")),
        *(Case(name, all_opsets(name), (real(2, 3).clip(-0.9, 0.9),)) for name in ("Acos", "Asin", "Atanh")),
        Case("Acosh", (9, 22), (positive(2, 3) + 1,)),
        *(Case(name, (8, 12, 13), (a, b, c)) for name in ("Max", "Min")),
        *(Case(name, (8, 13), (a, b, c)) for name in ("Sum", "Mean")),
        *(Case(name, (7,), (a, positive(2, 3, 4))) for name in ("Max", "Min", "Sum", "Mean")),
        Case("Equal", (7, 11, 13, 19), (ints, ints[:1]), smooth=False),
        *(Case(name, (7, 13), (a, b), smooth=False) for name in ("Greater", "Less")),
        *(Case(name, (12, 16), (a, b), smooth=False) for name in ("GreaterOrEqual", "LessOrEqual")),
        *(Case(name, (7,), (ints > 0, ints > 1), smooth=False) for name in ("And", "Or", "Xor")),
        Case("Not", (7,), (ints > 0,), smooth=False),
        Case(
            "IsInf",
            (10, 20),
            (np.array([1, np.inf, -np.inf], np.float32),),
            {"detect_negative": 0},
            smooth=False,
        ),
        Case("Mod", (10, 13), (ints, whole(2, 3, -2)), smooth=False),
        Case("Mod", (13,), (a, b), {"fmod": 1}),
        Case("Where", (9, 16), (ints[:, :, None] > 0, a, c)),
        Case("CumSum", (11, 14), (a, np.asarray(1)), {"reverse": 1, "exclusive": 1}),
        Case("CumSum", (14,), (a, np.asarray(-1))),
    ]


def _convolutions() -> list[Case]:
    x, w = real(2, 4, 7, 8), real(6, 2, 3, 3)
    t = real(4, 3, 3, 2)
    small = real(2, 4, 4, 5)
    return [
        Case("Conv", (7, 11, 22), (x, w, real(6)), {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
        Case("Conv", (11,), (x, w), {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 3]}),
        Case("Conv", (11,), (x, w), {"group": 2, "auto_pad": "SAME_LOWER", "strides": [1, 2]}),
        Case("Conv", (11,), (x, w), {"group": 2, "auto_pad": "VALID", "dilations": [2, 1]}),
        Case("Conv", (11,), (real(2, 4, 9), real(4, 1, 3)), {"group": 4, "pads": [1, 1]}),
        Case(
            "Conv", (11,), (real(1, 2, 4, 4, 5), real(3, 2, 2, 3, 2), real(3)), {"pads": [1, 1, 0, 1, 1, 0]}
        ),
        Case("ConvTranspose", (7, 11, 22), (small, t, real(3)), {"strides": [2, 2]}),
        Case(
            "ConvTranspose",
            (11,),
            (small, t),
            {"pads": [1, 0, 1, 1], "output_padding": [1, 0], "strides": [2, 3]},
        ),
        Case("ConvTranspose", (11,), (small, t), {"group": 2, "dilations": [2, 1]}),
        Case("ConvTranspose", (11,), (small, t), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        Case("ConvTranspose", (11,), (small, t), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        Case("ConvTranspose", (11,), (small, t), {"output_shape": [9, 10], "strides": [2, 2]}),
        Case("ConvTranspose", (11,), (real(2, 3, 5), real(3, 2, 4)), {"strides": [3], "pads": [1, 1]}),
    ]


def _pools() -> list[Case]:
    x = apart(2, 3, 7, 8)
    window: dict[str, Any] = {"kernel_shape": [3, 2], "strides": [2, 2]}
    ceil = {**window, "ceil_mode": 1}
    return [
        Case("MaxPool", (7, 22), (x,), window),
        Case("MaxPool", (8,), (x,), {**window, "pads": [1, 0, 2, 1]}),
        Case("MaxPool", (10, 12), (x,), {**ceil, "pads": [1, 0, 1, 1]}),
        Case("MaxPool", (10,), (x,), {"kernel_shape": [2, 2], "dilations": [2, 3]}),
        Case("MaxPool", (12,), (x,), {**window, "auto_pad": "SAME_UPPER"}),
        Case("MaxPool", (12,), (x,), {**window, "auto_pad": "SAME_LOWER"}),
        Case("MaxPool", (12,), (apart(2, 3, 8),), {"kernel_shape": [3], "strides": [2]}),
        Case("MaxPool", (12,), (apart(1, 2, 4, 5, 6),), {"kernel_shape": [2, 2, 3]}),
        Case("AveragePool", (7, 10, 11, 19, 22), (x,), window),
        Case("AveragePool", (7, 19), (x,), {**window, "pads": [1, 0, 2, 1]}),
        Case("AveragePool", (7, 19), (x,), {**window, "pads": [1, 0, 2, 1], "count_include_pad": 1}),
        Case("AveragePool", (19,), (x,), {**ceil, "pads": [1, 0, 1, 1]}),
        Case("AveragePool", (19,), (x,), {**ceil, "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        Case("AveragePool", (19,), (x,), {"kernel_shape": [2, 2], "dilations": [2, 3]}),
        Case("AveragePool", (19,), (x,), {**window, "auto_pad": "SAME_UPPER"}),
        Case("LpPool", (7, 22), (x,), {"kernel_shape": [2, 2], "strides": [2, 1]}),
        Case("GlobalAveragePool", (7, 22), (x,)),
        Case("GlobalMaxPool", (7, 22), (x,)),
        Case("GlobalLpPool", (7,), (x,), {"p": 2}),
    ]


def _linear() -> list[Case]:
    return [
        Case("Gemm", (7, 9, 11, 13), (real(3, 4), real(4, 5), real(5))),
        Case(
            "Gemm",
            (7, 13),
            (real(4, 3), real(5, 4), real(5)),
            {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
        ),
        Case("Gemm", (11,), (real(3, 4), real(4, 5)), {"alpha": 0.5}),
        Case("MatMul", (7, 9, 13), (real(2, 3, 4), real(4, 5))),
        Case("Einsum", (12,), (real(2, 3, 4), real(2, 5, 4)), {"equation": "bij, bkj -> bik"}),
    ]


def _normalizations() -> list[Case]:
    x, s, b = real(2, 6, 3, 4), positive(6), real(6)
    return [
        Case(
            "BatchNormalization",
            (7, 9, 14, 15),
            (x, s, b, real(6), positive(6)),
            {"epsilon": 1e-3},
            fixed=(3, 4),
        ),
        Case("InstanceNormalization", (7, 22), (x, s, b)),
        Case("LayerNormalization", (17,), (x, positive(3, 4), real(3, 4)), {"axis": 2}),
        Case("LayerNormalization", (17,), (x, positive(4)), outputs=3),
        Case("RMSNormalization", (23,), (x, positive(4))),
        Case("GroupNormalization", (18,), (x, positive(2), real(2)), {"num_groups": 2}),
        Case("GroupNormalization", (21,), (x, s, b), {"num_groups": 2}),
        Case("MeanVarianceNormalization", (9, 13), (x,)),
        Case("LpNormalization", (7, 22), (x,), {"axis": 1, "p": 2}),
        Case("LRN", (7, 13), (x,), {"size": 3, "alpha": 0.1, "bias": 0.7}),
    ]


def _reductions() -> list[Case]:
    smooth = ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSumSquare")
    x = apart(2, 3, 4)
    cases = []
    for name in (*smooth, "ReduceMax", "ReduceMin", "ReduceLogSum"):
        value = np.abs(x) + 0.1 if name == "ReduceLogSum" else x
        cases.append(Case(name, (7, 11, 13), (value,), {"axes": [0, 2]}))
        cases.append(Case(name, (18,), (value, whole(-1, 0)), {"keepdims": 0}))
        cases.append(Case(name, (7, 18), (value,)))
    return [
        *cases,
        *(Case(name, (18, 20), (x, whole(1))) for name in ("ReduceMax", "ReduceMin")),
        Case("ReduceSum", (7, 11), (x,), {"axes": [1], "keepdims": 0}),
        Case("ReduceSum", (13,), (x, whole(1)), {"keepdims": 0}),
        Case("ReduceSum", (13,), (x,), {"noop_with_empty_axes": 1}),
        Case("ArgMin", (7, 13), (x,), {"axis": 2}, smooth=False),
        Case("ArgMax", (7, 11, 12, 13), (x,), {"axis": 1, "keepdims": 0}, smooth=False),
        Case(
            "ArgMin",
            (12,),
            (np.ones((2, 3), np.float32),),
            {"axis": -1, "select_last_index": 1},
            smooth=False,
        ),
    ]


def _movement() -> list[Case]:
    x = real(2, 6, 4, 4)
    return [
        Case("Identity", (7, 13, 14, 16, 19, 21), (x,)),
        Case("Dropout", (7, 22), (x,)),
        Case("Reshape", (7, 13, 14, 19, 21), (x, whole(0, -1, 8))),
        Case("Flatten", (7, 9, 11, 13, 21), (x,), {"axis": 2}),
        Case("Flatten", (11,), (x,), {"axis": -1}),
        Case("Transpose", (7, 13, 21), (x,), {"perm": [2, 0, 3, 1]}),
        Case("Transpose", (13,), (x,)),
        Case("Concat", (7, 11, 13), (x, real(2, 1, 4, 4), x), {"axis": 1}),
        Case("Split", (7, 11), (x,), {"axis": 1, "split": [1, 5]}, outputs=2),
        Case("Split", (7, 11), (x,), {"axis": 1}, outputs=3),
        Case("Split", (13, 18), (x, whole(2, 4)), {"axis": 1}, outputs=2),
        Case("Split", (18,), (real(2, 7),), {"axis": 1, "num_outputs": 3}, outputs=3),
        Case("Squeeze", (7, 11), (real(1, 3, 1),), {"axes": [2]}),
        Case("Squeeze", (13, 21), (real(1, 3, 1), whole(-1, 0))),
        Case("Squeeze", (13,), (real(1, 3, 1),)),
        Case("Unsqueeze", (7, 11), (real(3, 2),), {"axes": [0, 3]}),
        Case("Unsqueeze", (13, 21), (real(3, 2), whole(-1, 0))),
        Case("Expand", (8, 13), (real(3, 1), whole(2, 1, 4))),
        Case("Tile", (7, 13), (real(2, 3), whole(2, 3))),
        Case("DepthToSpace", (7, 11, 13), (real(1, 8, 2, 3),), {"blocksize": 2}),
        Case("DepthToSpace", (11, 13), (real(1, 8, 2, 3),), {"blocksize": 2, "mode": "CRD"}),
        Case("SpaceToDepth", (7, 13), (real(1, 2, 4, 6),), {"blocksize": 2}),
        Case("Trilu", (14,), (real(3, 4), np.asarray(1)), {"upper": 0}),
    ]


def _indexing() -> list[Case]:
    x = real(3, 5, 6)
    big = 2**31 - 1
    return [
        Case("Slice", (7,), (x,), {"starts": [1, -4], "ends": [9, -1], "axes": [1, 2]}),
        Case("Slice", (10, 11, 13), (x, whole(1, -4), whole(9, -1), whole(1, 2))),
        Case("Slice", (10, 13), (x, whole(-1, 0), whole(-big, 6), whole(1, -1), whole(-2, 2))),
        Case("Slice", (13,), (x, whole(4), whole(4), whole(1))),
        Case("Slice", (13,), (x, whole(5), whole(2), whole(2), whole(-1))),
        Case("Gather", (7, 11, 13), (x, np.array([[0, 4], [-1, 2]])), {"axis": 1}),
        Case("Gather", (13,), (x, np.asarray(-2)), {"axis": 2}),
        Case("GatherElements", (11, 13), (x, np.array([[[0, -1, 2, 1, 0, 2]]])), {"axis": 0}),
        Case("GatherND", (11, 12, 13), (x, np.array([[0, 1], [2, -2]]))),
        Case(
            "OneHot",
            (9, 11),
            (whole(0, -1, 2), np.asarray(4), np.array([0.5, 2], np.float32)),
            fixed=(2,),
            smooth=False,
        ),
    ]


def _padding() -> list[Case]:
    x = real(1, 2, 4, 5)
    cases = [
        Case("Pad", (7,), (x,), {"pads": [0, 1, 2, 0, 0, 0, 1, 3], "value": 0.7}),
        Case("Pad", (7,), (x,), {"pads": [0, 0, -1, 1, 0, 0, 1, -2]}),
        Case("Pad", (11, 13, 18, 19, 21), (x, whole(0, 1, 2, 0, 0, 0, 1, 3), scalar(0.7)), fixed=(2,)),
        Case("Pad", (18,), (x, whole(1, 2, 0, 1), None, whole(-1, 2))),
    ]
    for mode in ("reflect", "edge"):
        cases.append(Case("Pad", (7,), (x,), {"pads": [0, 0, 2, 1, 0, 0, 1, 3], "mode": mode}))
        cases.append(Case("Pad", (11, 19), (x, whole(0, 1, 2, 0, 0, 0, 1, 3)), {"mode": mode}))
    return [*cases, Case("Pad", (19,), (x, whole(0, 0, 2, 1, 0, 0, 1, 3)), {"mode": "wrap"})]


def _shapes() -> list[Case]:
    x = real(2, 3)
    two = numpy_helper.from_array(np.array([2.5], np.float32))
    return [
        Case("Shape", (7, 13, 15, 19, 21), (real(2, 3, 4),), smooth=False),
        Case("Shape", (15,), (real(2, 3, 4),), {"start": -2, "end": 3}, smooth=False),
        Case("Size", (7, 21), (x,), smooth=False),
        Case("Constant", (7, 21), (), {"value": two}, smooth=False),
        Case("Constant", (12,), (), {"value_ints": [1, 2]}, smooth=False),
        Case("ConstantOfShape", (9, 21), (whole(2, 3),), {"value": two}, smooth=False),
        Case("ConstantOfShape", (9,), (whole(2),), smooth=False),
        Case("Range", (11,), (np.asarray(1), np.asarray(9), np.asarray(3)), smooth=False),
        Case("Cast", (7, 9, 13, 19, 21), (x,), {"to": onnx.TensorProto.INT64}, smooth=False),
        Case("Cast", (13,), (whole(1, 2),), {"to": onnx.TensorProto.FLOAT}, smooth=False),
        Case("CastLike", (15, 21), (whole(1, 2), x), smooth=False),
    ]


def _resizes() -> list[Case]:
    x = real(1, 2, 4, 5)
    up, down = np.array([1, 1, 2, 1.5], np.float32), np.array([1, 1, 0.5, 0.6], np.float32)
    none = np.array([], np.float32)
    cases = [
        Case("Upsample", (7,), (x,), {"scales": [1.0, 1.0, 2.0, 3.0]}),
        Case("Upsample", (9,), (x, np.array([1, 1, 2, 2], np.float32)), {"mode": "linear"}, fixed=(1,)),
        Case("Resize", (10,), (x, up), fixed=(1,)),
        Case("Resize", (10,), (x, up), {"mode": "linear"}, fixed=(1,)),
        Case("Resize", (18, 19), (x, None, up[2:]), {"axes": [2, 3], "mode": "linear"}, fixed=(2,)),
        Case("Resize", (13, 18), (x, None, None, whole(1, 2, 7, 3)), {"mode": "linear"}),
        Case("Resize", (11,), (x, none, none, whole(1, 2, 7, 3)), fixed=(1, 2)),
        Case(
            "Resize", (18,), (x, None, None, whole(8, 8)),
            {"axes": [2, 3], "mode": "linear", "keep_aspect_ratio_policy": "not_larger"},
        ),
        Case("Resize", (13,), (x, None, up), {"mode": "cubic"}, fixed=(2,)),
    ]  # fmt: skip
    for mode in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
        attributes = {"mode": "linear", "coordinate_transformation_mode": mode}
        cases.append(Case("Resize", (11, 13), (x, none, up), attributes, fixed=(1, 2)))
        cases.append(Case("Resize", (13,), (x, none, down), attributes, fixed=(1, 2)))
    for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        for mode in ("half_pixel", "asymmetric"):
            attributes = {"nearest_mode": rounding, "coordinate_transformation_mode": mode}
            cases.append(Case("Resize", (13,), (x, none, up), attributes, fixed=(1, 2)))
    return cases


def _attention() -> list[Case]:
    q, k, v = real(2, 4, 3, 5), real(2, 2, 6, 5), real(2, 2, 6, 5)
    return [
        Case("Attention", (23, 24), (q, k, v)),
        Case("Attention", (23,), (q, k, v, real(3, 6)), {"scale": 0.3}),
        Case(
            "Attention",
            (23,),
            (real(2, 3, 8), real(2, 3, 4), real(2, 3, 4)),
            {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1},
        ),
    ]


def _rotations() -> list[Case]:
    x, angles = real(2, 3, 4, 6), real(5, 2)
    places = np.array([[0, 1, 2, 3], [4, 3, 2, 1]])
    return [
        Case("RotaryEmbedding", (23,), (x, real(2, 4, 3), real(2, 4, 3))),
        Case("RotaryEmbedding", (23,), (x, real(2, 4, 3), real(2, 4, 3)), {"interleaved": 1}),
        Case("RotaryEmbedding", (23,), (x, angles, real(5, 2), places), {"rotary_embedding_dim": 4}),
    ]


def _choices() -> list[Case]:
    x = apart(2, 3, 4, 5)
    grid = _RANDOM.uniform(-1.2, 1.2, (2, 3, 4, 2)).astype(np.float32)
    cases = [
        Case("TopK", (7,), (x,), {"axis": 1, "k": 2}, outputs=2),
        Case("TopK", (10, 11), (x, whole(2)), {"axis": 1}, outputs=2),
        Case("TopK", (11,), (x, whole(3)), {"largest": 0}, outputs=2),
    ]
    for mode in ("bilinear", "bicubic"):
        cases.append(Case("GridSample", (16,), (x, grid), {"mode": mode}))
        cases.append(Case("GridSample", (16,), (x, grid), {"mode": mode, "align_corners": 1}))
    for padding in ("border", "reflection"):
        attributes = {"mode": "linear", "padding_mode": padding}
        cases.append(Case("GridSample", (20, 22), (x, grid), attributes, smooth=False))
    return cases


def _fused() -> list[Case]:
    x, y, s, b = real(2, 3, 8), real(2, 3, 8), positive(8), real(8)

    def case(op: str, *inputs: Array | None, **more: Any) -> Case:
        outputs, silent = more.pop("outputs", 1), more.pop("silent", ())
        return Case(op, (17,), inputs, more, domain="com.microsoft", outputs=outputs, silent=silent)

    return [
        case("Gelu", x),
        case("BiasGelu", x, b),
        case("FastGelu", x, b),
        case("FastGelu", x),
        case("QuickGelu", x, alpha=1.3),
        case("FusedMatMul", real(2, 4, 3), real(2, 5, 4), transA=1, transB=1, alpha=0.3),
        case("FusedMatMul", real(4, 2, 3), real(4, 2, 3), transBatchA=1, transBatchB=1, transB=1),
        case("SkipLayerNormalization", x, y, s, b, real(8)),
        case("SkipLayerNormalization", x, y, s, b, outputs=4, silent=(1, 2)),
        case("SkipSimplifiedLayerNormalization", x, y, s, real(8), epsilon=1e-5),
        case("MultiHeadAttention", x, real(2, 4, 8), real(2, 4, 8), num_heads=2),
        case("MultiHeadAttention", x, x, y, real(24), None, real(1, 2, 3, 3), num_heads=2),
        case("Attention", x, real(8, 24), real(24), num_heads=2, unidirectional=1),
    ]


CASES = [
    case
    for family in (
        _activations, _arithmetic, _convolutions, _pools, _linear, _normalizations, _reductions, _movement,
        _indexing, _padding, _shapes, _resizes, _attention, _rotations, _choices, _fused,
    )
    for case in family()
]  # fmt: skip
