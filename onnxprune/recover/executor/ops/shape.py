"""Shapes, constants and types. Shape arithmetic stays on the CPU, as int64."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from onnxprune.recover.executor.registry import Call, op

TYPES: dict[int, torch.dtype] = {
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}
FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@op("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    """Sizes of the axes from ``start`` to ``end``."""
    return torch.tensor(list(x.shape)[slice(call.integer("start", 0), call.get("end"))], dtype=torch.int64)


@op("Size")
def size(call: Call, x: Tensor) -> Tensor:
    """Number of elements."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@op("Constant")
def constant(call: Call) -> Tensor:
    """The value that an attribute states."""
    if "value" in call.attributes:
        value: Tensor = call.get("value")
        return value
    for name, kind in (
        ("value_float", call.floating),
        ("value_floats", call.floating),
        ("value_int", torch.int64),
        ("value_ints", torch.int64),
    ):
        if name in call.attributes:
            return torch.tensor(call.get(name), dtype=kind)
    raise call.unsupported("its value is text or sparse")


@op("ConstantOfShape", since=9)
def constant_of_shape(call: Call, sizes: Tensor) -> Tensor:
    """One value all over a shape; float zeros where none is stated."""
    value = call.get("value")
    value = torch.zeros(1, dtype=call.floating) if value is None else value
    return value.reshape(1).expand([int(item) for item in sizes.tolist()]).clone()


@op("Range", since=11)
def count(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers from start up to limit in steps of delta."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


@op("Cast", since=6)
def cast(call: Call, x: Tensor) -> Tensor:
    """Another type; half precision is computed in single."""
    kind = call.integer("to")
    if kind in FLOATING:
        return x.to(call.floating)
    if kind not in TYPES:
        raise call.unsupported(f"no type of torch stands for {TensorProto.DataType.Name(kind)}")
    return x.to(TYPES[kind])


@op("CastLike", since=15)
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    """The type of another tensor."""
    return x.to(like.dtype)
