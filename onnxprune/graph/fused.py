"""Ops of onnxruntime's own domain: what each computes in terms of standard ops, as far as it matters here."""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx
from onnx import helper

from onnxprune.errors import ModelError

DOMAIN = "com.microsoft"

_STANDARD = ("", "ai.onnx")
_CONTRACTIONS = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul"}

_REQUIRED = {
    "Attention": (0, 1),
    "BiasGelu": (0, 1),
    "DequantizeLinear": (0, 1),
    "EmbedLayerNormalization": (0, 2, 3, 5, 6),
    "FastGelu": (0,),
    "FusedConv": (0, 1),
    "FusedGemm": (0, 1),
    "FusedMatMul": (0, 1),
    "Gelu": (0,),
    "MultiHeadAttention": (0,),
    "QuantizeLinear": (0, 1),
    "QuickGelu": (0,),
    "RotaryEmbedding": (0, 1, 2, 3),
    "SkipLayerNormalization": (0, 1, 2),
    "SkipSimplifiedLayerNormalization": (0, 1, 2),
}
"""Positions of the inputs that an op can't do without, by its schema in onnxruntime."""


def check_inputs(node: onnx.NodeProto) -> None:
    """Raise ModelError where a node of this domain lacks an input or its output: onnx checks none of them."""
    if node.domain != DOMAIN or node.op_type not in _REQUIRED:
        return
    given = {place for place, name in enumerate(node.input) if name}
    lacking = [place for place in _REQUIRED[node.op_type] if place not in given]
    if lacking or not node.output or not node.output[0]:
        what = f"input {lacking[0]}" if lacking else "its output"
        name = node.name or next((entry for entry in node.output if entry), node.op_type)
        raise ModelError(f"{node.op_type} node {name!r} lacks {what}", hint="export the model again")


def contraction(node: onnx.NodeProto) -> str:
    """The standard op whose product a node computes, or its own type in the standard domain; else ""."""
    if node.domain in _STANDARD:
        return node.op_type
    return _CONTRACTIONS.get(node.op_type, "") if node.domain == DOMAIN else ""


def stand_in(node: onnx.NodeProto, opset: int, matrices: Collection[str] = ()) -> list[onnx.NodeProto] | None:
    """Standard nodes whose outputs have the shapes of the node's; None where onnx infers them, or nobody can.

    ``matrices`` are values known to have two axes. GroupNormalization is among the ops: onnx knows it,
    but infers no shape for it.
    """
    if node.domain in _STANDARD:
        return _like_input(node) if node.op_type == "GroupNormalization" else None
    if node.op_type == "FusedMatMul" and node.domain == DOMAIN:
        return _matmul(node, matrices)
    build = _STAND_INS.get(node.op_type) if node.domain == DOMAIN else None
    return None if build is None else build(node, opset)


def _like_input(node: onnx.NodeProto, opset: int = 0) -> list[onnx.NodeProto]:
    return [helper.make_node("Identity", [node.input[0]], [node.output[0]])]


def _normalization(node: onnx.NodeProto, opset: int) -> list[onnx.NodeProto]:
    """Its fourth output is the sum that it normalises."""
    outputs = [node.output[index] for index in (0, 3) if index < len(node.output) and node.output[index]]
    return [helper.make_node("Identity", [node.input[0]], [name]) for name in outputs]


def _embedding(node: onnx.NodeProto, opset: int) -> list[onnx.NodeProto]:
    """Its first and third output hold a row of the table, its third input, for each token."""
    outputs = [node.output[index] for index in (0, 2) if index < len(node.output) and node.output[index]]
    return [helper.make_node("Gather", [node.input[2], node.input[0]], [name]) for name in outputs]


def _conv(node: onnx.NodeProto, opset: int) -> list[onnx.NodeProto]:
    return [_retyped(node, "Conv", ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"))]


def _gemm(node: onnx.NodeProto, opset: int) -> list[onnx.NodeProto]:
    return [_retyped(node, "Gemm", ("alpha", "beta", "transA", "transB"))]


def _retyped(node: onnx.NodeProto, op: str, attributes: tuple[str, ...]) -> onnx.NodeProto:
    result = helper.make_node(op, list(node.input[:3]), list(node.output))
    result.attribute.extend(entry for entry in node.attribute if entry.name in attributes)
    return result


def factor_axes(node: onnx.NodeProto, position: int, rank: int) -> list[int]:
    """The axes of a factor of a MatMul, FusedMatMul or Gemm, in the order in which it is multiplied.

    The fused form may take the first axis for the last but one (``transBatch``), and swap the last two.
    """
    given = {entry.name: entry.i for entry in node.attribute}
    axes, letter = list(range(rank)), "AB"[position]
    if given.get(f"transBatch{letter}") and rank > 2:
        axes = [*axes[1:-1], axes[0], axes[-1]]
    if given.get(f"trans{letter}") and rank > 1:
        axes[-2:] = axes[-1], axes[-2]
    return axes


def _matmul(node: onnx.NodeProto, matrices: Collection[str]) -> list[onnx.NodeProto]:
    given = {entry.name: entry.i for entry in node.attribute}
    nodes, factors, terms = [], list(node.input), []
    for position, (letter, name) in enumerate(zip("AB", node.input, strict=True)):
        first, last = "ik" if position == 0 else "kj"
        if given.get(f"trans{letter}"):
            first, last = last, first
        terms.append(f"{first}...{last}" if given.get(f"transBatch{letter}") else f"...{first}{last}")
        if given.get(f"trans{letter}") and name in matrices:
            factors[position] = f"{node.output[0]}::factor{position}"
            nodes.append(helper.make_node("Transpose", [name], [factors[position]]))
    changed = [any(given.get(f"{kind}{letter}") for kind in ("trans", "transBatch")) for letter in "AB"]
    if all(name in matrices or not change for name, change in zip(node.input, changed, strict=True)):
        return [*nodes, helper.make_node("MatMul", factors, list(node.output))]
    equation = f"{terms[0]},{terms[1]}->...ij"
    return [helper.make_node("Einsum", list(node.input), list(node.output), equation=equation)]


def _heads(node: onnx.NodeProto, opset: int) -> list[onnx.NodeProto] | None:
    if len(node.input) < 3 or not node.input[1] or not node.input[2]:
        return None
    inputs, outputs = [node.input[0], node.input[2]], [node.output[0]]
    return [helper.make_node("Einsum", inputs, outputs, equation="bsd,btv->bsv")]


def _attention(node: onnx.NodeProto, opset: int) -> list[onnx.NodeProto] | None:
    if any(entry.name == "qkv_hidden_sizes" for entry in node.attribute):
        return None
    product, spare = f"{node.output[0]}::product", [f"{node.output[0]}::{part}" for part in range(2)]
    split = helper.make_node("Split", [product], [*spare, node.output[0]], axis=-1)
    if opset >= 18:
        split.attribute.append(helper.make_attribute("num_outputs", 3))
    return [helper.make_node("MatMul", list(node.input[:2]), [product]), split]


_STAND_INS: dict[str, Callable[[onnx.NodeProto, int], list[onnx.NodeProto] | None]] = {
    "Attention": _attention,
    "BiasGelu": _like_input,
    "DequantizeLinear": _like_input,
    "EmbedLayerNormalization": _embedding,
    "FastGelu": _like_input,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "Gelu": _like_input,
    "MultiHeadAttention": _heads,
    "QuantizeLinear": _like_input,
    "QuickGelu": _like_input,
    "RotaryEmbedding": _like_input,
    "SkipLayerNormalization": _normalization,
    "SkipSimplifiedLayerNormalization": _normalization,
}
