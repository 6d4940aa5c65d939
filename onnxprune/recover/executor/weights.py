"""The constants of a model as tensors, and which of them are weights to train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from onnxprune.errors import NoGradientError
from onnxprune.graph.weights import replace_values
from onnxprune.recover.executor.ops.shape import FLOATING

_LAYERS: Final[Mapping[str, tuple[int, ...]]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "Attention": (1, 2),
    "Einsum": (0, 1),
}
_FOLLOWERS: Final[Mapping[str, tuple[int, ...]]] = {
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4),
    "SkipSimplifiedLayerNormalization": (2, 3),
    "BiasGelu": (1,),
    "FastGelu": (1,),
    "MultiHeadAttention": (3,),
    "PRelu": (1,),
    "Add": (0, 1),
    "Mul": (0, 1),
}
"""Inputs that are weights where the node comes behind a layer; before the first one they prepare the
model's input. An added or multiplied constant of one element is part of a formula, not a weight."""


def constant_tensors(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """Initializers and the values of Constant nodes of the main graph, by name; the model's own messages."""
    if model.graph.sparse_initializer:
        raise NoGradientError("there are no gradients for sparse weights", hint="use --recover closed-form")
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = attribute.t
    return found


def read_tensor(tensor: TensorProto, floating: torch.dtype) -> Tensor:
    """A constant as a torch tensor; floating types of at most 32 bits become ``floating``."""
    array = numpy_helper.to_array(tensor)
    if tensor.data_type in FLOATING:
        return torch.from_numpy(np.array(array, dtype=np.float32)).to(floating)
    if array.dtype.kind not in "fiub" or array.dtype in (np.uint16, np.uint32, np.uint64):
        raise NoGradientError(
            f"there are no gradients beside the constant '{tensor.name}' of type {array.dtype}",
            hint="use --recover closed-form",
        )
    return torch.from_numpy(np.array(array))


def write_tensor(tensor: TensorProto, value: Tensor) -> None:
    """Store a value in a constant's own type; the message stays untouched where that changes nothing."""
    before = numpy_helper.to_array(tensor)
    after = value.detach().cpu().contiguous().numpy().astype(before.dtype)
    if after.tobytes() == np.ascontiguousarray(before).tobytes():
        return
    replace_values(tensor, after)


def trainable_weights(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the constants that training may change, in the order in which nodes read them.

    These are weights and biases of layers, scales and shifts of normalizations, slopes of PRelu,
    and constants of several elements that are added or multiplied behind a layer. Statistics of
    BatchNormalization stay frozen.
    """
    tensors = constant_tensors(model)
    behind: set[str] = set()
    found: dict[str, None] = {}
    for node in model.graph.node:
        hit = any(name in behind for name in node.input)
        for place in _places(node, hit):
            name = node.input[place] if place < len(node.input) else ""
            if name in tensors and _is_weight(node.op_type, tensors[name]):
                found[name] = None
                hit = True
        if hit or node.op_type in _LAYERS:
            behind.update(node.output)
    return tuple(found)


def _places(node: onnx.NodeProto, behind: bool) -> Iterator[int]:
    yield from _LAYERS.get(node.op_type, ())
    if behind:
        yield from _FOLLOWERS.get(node.op_type, ())


def _is_weight(op: str, tensor: TensorProto) -> bool:
    size = int(np.prod(tensor.dims))
    return tensor.data_type in (*FLOATING, TensorProto.DOUBLE) and (size > 1 or op not in ("Add", "Mul"))
