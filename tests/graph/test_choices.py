"""An If that always takes one branch is that branch: the same values, and channels that can be followed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.prepare import prepare
from onnxprune.profile.cost import Cost, count
from tests.graph.oracle import exact
from tests.model_builder import Builder
from tests.plain import run, samples


def choosing(condition: object, *, nested: bool = False) -> onnx.ModelProto:
    """Conv, an If between a Conv with weights of its own and nothing, and a last Conv."""
    b = Builder(seed=1)
    x = b.relu(b.conv(b.input((1, 3, 6, 6), dynamic=True), 6, 3))
    weight = numpy_helper.from_array(b.random.standard_normal((5, 6, 1, 1)).astype(np.float32), "w_inner")
    other = numpy_helper.from_array(b.random.standard_normal((5, 6, 1, 1)).astype(np.float32), "w_inner")
    inner = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)

    def body(name: str, tensor: onnx.TensorProto, *more: onnx.NodeProto) -> onnx.GraphProto:
        nodes = [helper.make_node("Conv", [x, "w_inner"], ["a"]), *more]
        last = helper.make_node("Relu", [more[-1].output[0] if more else "a"], ["z"])
        return helper.make_graph([*nodes, last], name, [], [inner], [tensor])

    value = b.constant(np.asarray(condition)) if condition is not None else "flag"
    if condition is None:
        b.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    more = []
    if nested:
        passed = helper.make_tensor_value_info("q", TensorProto.FLOAT, None)
        same = helper.make_graph([helper.make_node("Neg", ["a"], ["q"])], "same", [], [passed])
        more = [helper.make_node("If", [value], ["n"], then_branch=same, else_branch=same)]
    y = b.node("If", [value], then_branch=body("t", weight, *more), else_branch=body("e", other, *more))
    b.shapes[y] = (1, 5, 6, 6)
    model = b.model(b.conv(y, 4, 1))
    model.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, ["n", 5, 6, 6]))
    return model


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("condition", [True, False, np.array([True])])
def test_the_branch_that_is_always_taken_stands_alone(condition: object, nested: bool) -> None:
    model = choosing(condition, nested=nested)
    prepared = prepare(model)
    assert "If" not in [node.op_type for node in prepared.graph.node]
    assert not prepared.graph.value_info  # its channels may go now
    inputs, outputs = {"x": samples(model, 3)}, [value.name for value in model.graph.output]
    before, after = run(model, inputs, outputs), run(prepared, inputs, outputs)
    assert all(np.array_equal(before[name], after[name]) for name in outputs)
    graph = exact(model)
    assert [len(group.units) for group in graph.groups] == [6, 5]
    assert (
        count(model) == count(prepared) == Cost(36 * (6 * 27 + 5 * 6 + 4 * 5), 6 * 27 + 6 + 5 * 6 + 4 * 5 + 4)
    )


def test_a_body_that_stays_may_use_the_same_names() -> None:
    """Exporters name the inner values of all bodies alike."""
    model = choosing(True)
    staying = onnx.NodeProto()
    staying.CopyFrom(next(node for node in model.graph.node if node.op_type == "If"))
    staying.name, staying.input[0] = "staying", "flag"
    result = staying.output[0]
    staying.output[0] = "other"
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    last = model.graph.node[-1]
    model.graph.node.insert(len(model.graph.node) - 1, staying)
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Add", [result, "other"], ["both"]))
    last.input[0] = "both"
    prepared = prepare(model)
    onnx.checker.check_model(prepared, full_check=True)
    feeds = {"x": samples(model, 2), "flag": np.array(True)}
    names = [value.name for value in model.graph.output]
    before, after = run(model, feeds, names), run(prepared, feeds, names)
    assert all(np.array_equal(before[name], after[name]) for name in names)


def test_a_condition_that_is_computed_or_given_stays() -> None:
    model = choosing(None)
    assert "If" in [node.op_type for node in prepare(model).graph.node]


def test_what_a_body_gives_has_the_shape_that_the_model_states() -> None:
    model = choosing(None)
    for node in model.graph.node:  # bodies that inference can't follow
        for entry in node.attribute if node.op_type == "If" else ():
            entry.g.node[0].input[1] = "w_inner"
            entry.g.node.insert(0, helper.make_node("NonZero", [node.input[0]], ["places"]))
            entry.g.node.insert(1, helper.make_node("Gather", ["w_raw", "places"], ["w_inner"]))
            entry.g.initializer[0].name = "w_raw"
    graph = analyze_graph(model)
    layer = graph.layers[-1]
    assert graph.shapes[layer.input] == (1, 5, 6, 6)
    assert [len(group.units) for group in graph.groups] == []
