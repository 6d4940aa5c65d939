"""Which values of a model are behind a Sigmoid, with nothing in between that makes other numbers of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import inliner

from onnxprune.graph.fold import subgraphs
from onnxprune.graph.unfuse import unfuse
from onnxprune.io.validate import without_initializers

_SAME_NUMBERS = frozenset(
    ["Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose",
     "Unsqueeze"]
)  # fmt: skip


def behind_sigmoid(model: onnx.ModelProto, names: Iterable[str]) -> frozenset[str]:
    """Those of the values ``names`` of ``model`` that are probabilities of their own, each by itself.

    Also seen are a Sigmoid in one of the model's functions, in all bodies of an If, and one that onnxruntime
    has put into a layer. ``model`` may be any that runs, and is not changed.
    """
    shell = without_initializers(model)
    if shell.functions:
        shell = inliner.inline_local_functions(shell)
    unfuse(shell)
    makers = _makers(shell.graph)
    return frozenset(name for name in names if _is_behind(name, makers))


def _makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def _is_behind(name: str, makers: Mapping[str, onnx.NodeProto]) -> bool:
    while (node := makers.get(name)) is not None and node.domain in ("", "ai.onnx"):
        if node.op_type == "If":
            place = list(node.output).index(name)
            bodies = subgraphs(node)
            return all(_is_behind(body.output[place].name, {**makers, **_makers(body)}) for body in bodies)
        if node.op_type not in _SAME_NUMBERS:
            return node.op_type == "Sigmoid"
        name = node.input[0]
    return False
