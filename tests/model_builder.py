"""Builds small ONNX models by hand: numpy weights in, a checked ModelProto out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]


class Builder:
    """A graph under construction; ``shapes`` knows the shape of every tensor that has channels."""

    def __init__(self, *, opset: int = 17, seed: int = 0, dtype: Any = np.float32) -> None:
        self.opset = opset
        self.random = np.random.default_rng(seed)
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[str] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._count = 0

    def name(self, base: str) -> str:
        self._count += 1
        return f"{base}_{self._count}"

    def input(self, shape: Sequence[int], name: str = "x", dynamic: bool = False) -> str:
        dims: list[int | str] = list(shape)
        if dynamic:
            dims[0] = "batch"
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, dims))
        self.shapes[name] = tuple(shape)
        return name

    def constant(self, value: Any, base: str = "const") -> str:
        name = self.name(base)
        self.constants[name] = np.asarray(value)
        return name

    def weight(self, *shape: int, scale: float | None = None, base: str = "w") -> str:
        """Signed normal values, scaled so that a sum over all axes but the first keeps its size."""
        if scale is None:
            scale = float(np.sqrt(1 / max(1, np.prod(shape[1:])))) if len(shape) > 1 else 0.5
        value = self.random.standard_normal(shape) * scale
        return self.constant(value.astype(self.dtype), base)

    def ints(self, values: Sequence[int]) -> str:
        return self.constant(np.asarray(values, np.int64), "ints")

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> Any:
        names = [self.name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=self.name(f"n_{op}"), **attributes))
        return names[0] if outputs == 1 else names

    def shaped(self, name: str, *shape: int) -> str:
        self.shapes[name] = tuple(shape)
        return name

    def like(self, op: str, x: str, *more: str, **attributes: Any) -> str:
        """A node whose output has the shape of its first input."""
        return self.shaped(self.node(op, [x, *more], **attributes), *self.shapes[x])

    def conv(
        self, x: str, channels: int, k: int = 1, *, stride: int = 1, groups: int = 1, dilation: int = 1,
        bias: bool = True, weight: str | None = None, bias_name: str | None = None,
    ) -> str:  # fmt: skip
        n, c, h, w = self.shapes[x]
        weight = weight or self.weight(channels, c // groups, k, k)
        inputs = [x, weight]
        if bias or bias_name:
            inputs.append(bias_name or self.weight(channels, base="b"))
        pad = dilation * (k - 1) // 2
        attributes: dict[str, Any] = {"kernel_shape": [k, k], "strides": [stride] * 2, "pads": [pad] * 4}
        if groups > 1:
            attributes["group"] = groups
        if dilation > 1:
            attributes["dilations"] = [dilation] * 2
        y = self.node("Conv", inputs, **attributes)
        return self.shaped(y, n, channels, (h - 1) // stride + 1, (w - 1) // stride + 1)

    def batch_norm(self, x: str) -> str:
        c = self.shapes[x][1]
        variance = self.constant(self.random.uniform(0.5, 2, c).astype(self.dtype), "var")
        return self.like(
            "BatchNormalization", x, self.weight(c), self.weight(c), self.weight(c), variance, epsilon=1e-3
        )

    def relu(self, x: str) -> str:
        return self.like("Relu", x)

    def slice(self, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
        if self.opset < 10:
            assert step == 1
            y = self.node("Slice", [x], starts=[start], ends=[end], axes=[axis])
        else:
            ints = [self.ints([v]) for v in (start, end, axis)] + ([self.ints([step])] if step != 1 else [])
            y = self.node("Slice", [x, *ints])
        shape = list(self.shapes[x])
        shape[axis] = len(range(*slice(start, end, step).indices(shape[axis])))
        return self.shaped(y, *shape)

    def pad(self, x: str, pads: Sequence[int], mode: str = "constant") -> str:
        if self.opset < 11:
            y = self.node("Pad", [x], pads=list(pads), mode=mode)
        else:
            y = self.node("Pad", [x, self.ints(pads)], mode=mode)
        rank = len(pads) // 2
        return self.shaped(y, *(d + pads[i] + pads[i + rank] for i, d in enumerate(self.shapes[x])))

    def transpose(self, x: str, *perm: int) -> str:
        return self.shaped(self.node("Transpose", [x], perm=perm), *(self.shapes[x][p] for p in perm))

    def reshape(self, x: str, *target: int) -> str:
        y = self.node("Reshape", [x, self.ints(target)])
        shape = [self.shapes[x][i] if t == 0 else t for i, t in enumerate(target)]
        known = int(np.prod([t for t in shape if t > 0]))
        total = int(np.prod(self.shapes[x]))
        return self.shaped(y, *(total // known if t == -1 else t for t in shape))

    def concat(self, *xs: str, axis: int = 1) -> str:
        shape = list(self.shapes[xs[0]])
        shape[axis] = sum(self.shapes[x][axis] for x in xs)
        return self.shaped(self.node("Concat", xs, axis=axis), *shape)

    def split(self, x: str, sizes: Sequence[int], axis: int = 1, *, stated: bool = True) -> list[str]:
        attributes: dict[str, Any] = {"axis": axis}
        inputs = [x]
        if stated and self.opset < 13:
            attributes["split"] = list(sizes)
        elif stated:
            inputs.append(self.ints(sizes))
        elif self.opset >= 18:
            attributes["num_outputs"] = len(sizes)
        names: list[str] = self.node("Split", inputs, len(sizes), **attributes)
        for name, size in zip(names, sizes, strict=True):
            shape = list(self.shapes[x])
            shape[axis] = size
            self.shaped(name, *shape)
        return names

    def pool(self, op: str, x: str) -> str:
        n, c, h, w = self.shapes[x]
        y = self.node(op, [x], kernel_shape=[2, 2], strides=[2, 2])
        return self.shaped(y, n, c, h // 2, w // 2)

    def global_pool(self, x: str) -> str:
        return self.shaped(self.node("GlobalAveragePool", [x]), *self.shapes[x][:2], 1, 1)

    def reduce(self, op: str, x: str, *axes: int, keep: int = 1) -> str:
        if self.opset >= (13 if op == "ReduceSum" else 18):
            y = self.node(op, [x, self.ints(axes)], keepdims=keep)
        else:
            y = self.node(op, [x], axes=list(axes), keepdims=keep)
        shape = self.shapes[x]
        gone = {axis % len(shape) for axis in axes}
        return self.shaped(
            y, *(1 if a in gone else size for a, size in enumerate(shape) if keep or a not in gone)
        )

    def flatten(self, x: str) -> str:
        n, *rest = self.shapes[x]
        return self.shaped(self.node("Flatten", [x]), n, int(np.prod(rest)))

    def gemm(self, x: str, features: int, *, trans: bool = True) -> str:
        n, c = self.shapes[x]
        weight = self.weight(features, c) if trans else self.weight(c, features, scale=float(c) ** -0.5)
        y = self.node("Gemm", [x, weight, self.weight(features, base="b")], transB=int(trans))
        return self.shaped(y, n, features)

    def matmul(self, x: str, features: int) -> str:
        *rest, c = self.shapes[x]
        y = self.node("MatMul", [x, self.weight(c, features, scale=float(c) ** -0.5)])
        return self.shaped(y, *rest, features)

    def model(self, *outputs: str, inputs_for_weights: bool = False) -> onnx.ModelProto:
        """The finished model; from the oldest file format that the opset allows."""
        ir = max(3, helper.find_min_ir_version_for([helper.make_opsetid("", self.opset)]))
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        inputs = list(self.inputs)
        if ir < 4 or inputs_for_weights:
            inputs += [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                for n, v in self.constants.items()
            ]
        graph = helper.make_graph(
            self.nodes,
            "g",
            inputs,
            [helper.make_tensor_value_info(name, kind, self.shapes.get(name)) for name in outputs],
            [numpy_helper.from_array(v, n) for n, v in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir)
        onnx.checker.check_model(model, full_check=True)
        return model


def float_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all floating initializers that have an axis; a scalar is a setting, not a weight."""
    return sum(
        4 * int(np.prod(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.dims
    )
