from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.prepare import prepare
from onnxprune.graph.sigmoid import behind_sigmoid
from onnxprune.profile.session import open_session

OPSETS = [
    helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("own", 1)
]  # fmt: skip


def model(*nodes: onnx.NodeProto, functions: tuple[onnx.FunctionProto, ...] = ()) -> onnx.ModelProto:
    constants = {
        "w": np.ones((4, 1), np.float32), "half": np.float32(0.5), "scale": np.float32(1 / 255),
        "level": np.uint8(0), "flat": np.array([-1]), "axis": np.array([1]), "yes": np.array(True),
    }  # fmt: skip
    graph = helper.make_graph(
        list(nodes),
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("free", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=8, functions=functions)


def node(op: str, *inputs: str, to: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [to], **attributes)


def body(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "body", [], [output])


def function(*nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function("own", "Last", ["a"], ["b"], list(nodes), OPSETS)


SIGMOID = node("Sigmoid", "x", to="p")
MOVED = [node("Unsqueeze", "p", "axis", to="u"), node("Transpose", "u", perm=[0, 2, 1], to="t"),
         node("Squeeze", "t", to="s"), node("Flatten", "s", to="f"), node("Identity", "f", to="i"),
         node("Cast", "i", to="c")]  # fmt: skip
MOVED[-1].attribute.append(helper.make_attribute("to", TensorProto.DOUBLE))
BACK = node("Cast", "c", to="d")
BACK.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))

BEHIND = {
    "alone": model(node("Sigmoid", "x")),
    "moved and cast": model(SIGMOID, *MOVED, BACK, node("Reshape", "d", "flat")),
    "in levels": model(
        SIGMOID, node("QuantizeLinear", "p", "scale", "level", to="q"),
        node("DequantizeLinear", "q", "scale", "level"),
    ),
    "in a function": model(
        node("Last", "x", domain="own"), functions=(function(node("Sigmoid", "a", to="b")),)
    ),
    "moved in a function": model(
        SIGMOID, node("Last", "p", domain="own"), functions=(function(node("Identity", "a", to="b")),)
    ),
    "in both bodies": model(
        node("If", "free", then_branch=body(node("Sigmoid", "x", to="a")),
             else_branch=body(node("Neg", "x", to="b"), node("Sigmoid", "b", to="c"))),
    ),
    "moved in both bodies": model(
        SIGMOID, node("If", "free", then_branch=body(node("Squeeze", "p", to="a")),
                      else_branch=body(node("Identity", "p", to="b"))),
    ),
    "in a layer": model(node("FusedGemm", "x", "w", domain="com.microsoft", activation="Sigmoid")),
}  # fmt: skip
NOT_BEHIND = {
    "the input": model(node("Identity", "x")),
    "before a layer": model(SIGMOID, node("MatMul", "p", "w")),
    "as a gate": model(SIGMOID, node("Mul", "p", "x")),
    "shifted": model(SIGMOID, node("Sub", "p", "half")),
    "hard": model(node("HardSigmoid", "x")),
    "softmax": model(SIGMOID, node("Softmax", "p")),
    "in one body": model(
        node("If", "free", then_branch=body(node("Sigmoid", "x", to="a")),
             else_branch=body(node("Relu", "x", to="b"))),
    ),
    "in another layer's function": model(
        SIGMOID, node("Last", "p", domain="own"), functions=(function(node("Neg", "a", to="b")),)
    ),
    "another activation in a layer": model(
        node("FusedGemm", "x", "w", domain="com.microsoft", activation="Tanh")
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "behind"),
    [
        *(pytest.param(given, True, id=name) for name, given in BEHIND.items()),
        *(pytest.param(given, False, id=name) for name, given in NOT_BEHIND.items()),
    ],
)
def test_what_is_behind_a_sigmoid(given: onnx.ModelProto, behind: bool) -> None:
    before = given.SerializeToString(deterministic=True)
    session = open_session(given, provider="cpu")  # so that it is a model that runs
    assert session.sigmoids == (frozenset("y") if behind else frozenset())
    assert given.SerializeToString(deterministic=True) == before
    if behind:
        x = np.repeat(np.float32([[-4], [4]]), 4, axis=1)
        values = session.run({"x": x, "free": np.array(True)})["y"]
        assert 0.0 <= values.min() < 0.1 and 0.9 < values.max() <= 1.0
    assert behind_sigmoid(prepare(given), ["y"]) == session.sigmoids
