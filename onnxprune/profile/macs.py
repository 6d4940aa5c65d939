"""Multiply-accumulates of one node, as products of the sizes of axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from onnxprune.errors import ModelError
from onnxprune.graph.edits import attribute
from onnxprune.graph.equation import parse_equation
from onnxprune.graph.fold import subgraphs
from onnxprune.graph.fused import DOMAIN, contraction, factor_axes
from onnxprune.io.limits import all_graphs

Product = list[tuple[str, int, int]]
"""(tensor, axis, size) of each factor."""

_Shapes = Mapping[str, Sequence[int]]
_Factors = list[tuple[str, slice]]

_CONTRACTIONS = ("Conv", "ConvTranspose", "DeformConv", "Einsum", "Gemm", "MatMul")
_RECURRENT = ("GRU", "LSTM", "RNN")
_ALL, _TOKENS = slice(None), slice(-2, -1)


def mac_products(node: onnx.NodeProto, shapes: _Shapes) -> list[Product]:
    """Products whose sum is the number of the node's multiply-accumulates; none where it has none.

    Conv, DeformConv: every output entry sums over the weight's other axes (C_in / group, kernel).
    ConvTranspose: every input entry meets the weight's other axes. Gemm, MatMul: every output entry sums
    over K, Einsum: over all letters that are not in its result. GRU, LSTM, RNN: every row of every step meets
    both weights of each direction. Attention: every entry of the query meets every key, every entry of
    the output every value, those of a cache included; masks save nothing.

    ModelError where the shape of a plain contraction is unknown; of other ops only what has known
    shapes is given, and `is_counted` tells.
    """
    products = _products(node, shapes)
    if None in products and contraction(node) in _CONTRACTIONS:
        for name in (*node.input[:2], node.output[0]):
            if name not in shapes:
                raise ModelError(
                    f"{node.op_type} {node.name or node.output[0]!r} can't be counted: "
                    f"the shape of {name!r} is unknown",
                    hint="export the model with fixed input sizes",
                )
    return [product for product in products if product is not None]


def is_counted(node: onnx.NodeProto, shapes: _Shapes) -> bool:
    """Whether `mac_products` gives all multiply-accumulates of the node."""
    return None not in _products(node, shapes)


def uncounted(model: onnx.ModelProto, shapes: _Shapes) -> tuple[str, ...]:
    """Nodes with multiply-accumulates that no count includes, by op and name.

    If, Loop and Scan whose bodies hold some, and nodes whose tensors have no shape in ``shapes``.
    """
    return tuple(
        f"{node.op_type} '{node.name or node.output[0]}'"
        for node in model.graph.node
        if not is_counted(node, shapes)
        or any(
            _products(inner, {})
            for body in subgraphs(node)
            for graph in all_graphs(body)
            for inner in graph.node
        )
    )


def _products(node: onnx.NodeProto, shapes: _Shapes) -> list[Product | None]:
    """One entry for each product of the node, None where it can't be told."""
    if contraction(node) in _CONTRACTIONS and len(node.input) > 1:
        return [_contraction(node, shapes)]
    return [_sized(factors, shapes) for factors in _fused_factors(node)]


def _sized(factors: _Factors, shapes: _Shapes) -> Product | None:
    if not all(name in shapes for name, _ in factors):
        return None
    return [
        (name, axis, shapes[name][axis]) for name, axes in factors for axis in range(len(shapes[name]))[axes]
    ]


def _contraction(node: onnx.NodeProto, shapes: _Shapes) -> Product | None:
    first, second, output = node.input[0], node.input[1], node.output[0]
    if not all(name in shapes for name in (first, second, output)):
        return None
    match contraction(node):
        case "Conv" | "DeformConv":
            return _sized([(output, _ALL), (second, slice(1, None))], shapes)
        case "ConvTranspose":
            return _sized([(first, _ALL), (second, slice(1, None))], shapes)
        case "Einsum":
            return _einsum(node, shapes)
        case _:
            contracted = factor_axes(node, 0, len(shapes[first]))[-1]
            return _sized([(output, _ALL), (first, slice(contracted, contracted + 1))], shapes)


def _einsum(node: onnx.NodeProto, shapes: _Shapes) -> Product | None:
    if not all(name in shapes for name in node.input):
        return None
    ranks = [len(shapes[name]) for name in node.input]
    equation = parse_equation(attribute(node, "equation", b"").decode(), ranks)
    if equation is None:
        return None
    factors: _Factors = [(node.output[0], _ALL)]
    for letter in equation.summed:
        place = next(index for index, letters in enumerate(equation.operands) if letter in letters)
        axis = equation.operands[place].index(letter)
        factors.append((node.input[place], slice(axis, axis + 1)))
    return _sized(factors, shapes)


def _fused_factors(node: onnx.NodeProto) -> list[_Factors]:
    """The products of recurrent layers and of the attention ops."""
    inputs = [*node.input, *[""] * 8]
    query, key, value = inputs[:3]
    if contraction(node) in _RECURRENT:  # X (steps, batch, I), W (directions, gates * H, I), R (.., .., H)
        return [[(query, slice(2)), (weight, _ALL)] for weight in (key, value)]
    if contraction(node) == "Attention":
        return _attention(node, query, [key, inputs[4]], [value, inputs[5]])
    if node.domain != DOMAIN:
        return []
    if node.op_type == "MultiHeadAttention":
        return _attention(node, query, [key, inputs[6]], [value, inputs[7]])
    if node.op_type == "Attention":  # X (batch, tokens, D), weight (D, 3 * heads * e), both in one cache
        tokens = [query, inputs[4]]
        return [[(query, _ALL), (key, slice(1, 2))], *_attention(node, node.output[0], tokens, tokens)]
    return []


def _attention(
    node: onnx.NodeProto, query: str, keys: Sequence[str], values: Sequence[str]
) -> list[_Factors]:
    """Of the query with ``keys``, of the output with ``values`` (.., tokens, e), whose second may be none."""
    return [
        [(rows, _ALL), (name, _TOKENS)]
        for rows, others in ((query, keys), (node.output[0], values))
        for place, name in enumerate(others)
        if name or place == 0
    ]
