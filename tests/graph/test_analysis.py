from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.structure import FIXED
from tests.graph.oracle import exact, finish, reasons, start, units_at
from tests.model_builder import Builder


def test_a_chain_has_one_group_a_layer() -> None:
    b, x = start(6)
    y = b.relu(b.conv(b.relu(b.batch_norm(x)), 5, 3))
    logits = b.gemm(b.flatten(y), 3)
    graph = exact(b.model(logits))
    assert [len(group.units) for group in graph.groups] == [6, 5]
    first, second, last = graph.layers
    assert graph.groups[0].name == first.name and graph.groups[0].producers == (first.name,)
    assert graph.groups[0].consumers == (second.name,)
    assert graph.groups[1].consumers == (last.name,)
    assert np.array_equal(first.out_units, second.in_units)
    assert (first.in_units == FIXED).all() and (last.out_units == FIXED).all()
    assert np.array_equal(last.in_units, np.repeat(second.out_units, 36))
    assert graph.layer(last.name) is last
    assert [(item.name, item.channels, item.reason) for item in graph.skipped] == [
        (last.name, 3, f"graph output '{logits}'")
    ]


def test_axes_cover_weights_and_activations() -> None:
    b, x = start(4)
    graph = exact(finish(b, b.relu(x)))
    first, last = graph.layers
    units = units_at(graph, x)
    assert np.array_equal(units_at(graph, first.weight, 0), units)
    assert first.bias is not None and np.array_equal(units_at(graph, first.bias, 0), units)
    assert np.array_equal(units_at(graph, last.weight, 1), units)
    assert graph.axes[last.weight][0] is None and graph.axes["x"] == (None,) * 4
    assert all(len(graph.axes[name]) == len(shape) for name, shape in graph.shapes.items())


def test_residual_branches_share_their_units() -> None:
    b, x = start(6)
    y = b.like("Add", x, b.conv(b.relu(b.conv(x, 4, 3)), 6, 3))
    graph = exact(finish(b, y))
    assert [len(group.units) for group in graph.groups] == [6, 4]
    assert len(graph.groups[0].producers) == 2
    assert np.array_equal(units_at(graph, x), units_at(graph, y))


def test_units_at_different_places_fall_into_different_groups() -> None:
    """ResNet option A: the first stage's channels also live in the middle of the second stage."""
    b, x = start(4)
    narrow = b.slice(b.slice(x, 2, 0, 6, 2), 3, 0, 6, 2)
    wide = b.like("Add", b.pad(narrow, [0, 2, 0, 0, 0, 2, 0, 0]), b.conv(x, 8, 3, stride=2))
    graph = exact(finish(b, wide))
    assert [len(group.units) for group in graph.groups] == [4, 4]
    assert len({group.name for group in graph.groups}) == 2
    assert np.array_equal(units_at(graph, wide)[2:6], units_at(graph, x))
    assert not np.isin(units_at(graph, wide)[[0, 1, 6, 7]], units_at(graph, x)).any()


def test_two_groups_of_one_producer_have_two_names() -> None:
    b, x = start(6)
    left, right = b.split(x, [2, 4])
    graph = exact(b.model(b.conv(left, 2), b.conv(right, 2)))
    name = graph.layers[0].name
    assert [group.name for group in graph.groups] == [name, f"{name}#2"]


def test_an_op_without_rule_pins_by_name_and_nothing_else() -> None:
    b, x = start(6)
    inner = b.conv(x, 4, 3)
    odd = b.like("ReverseSequence", b.conv(b.relu(inner), 5, 3), b.ints([4]), batch_axis=0, time_axis=1)
    graph = exact(finish(b, odd))
    assert [len(group.units) for group in graph.groups] == [6, 4]
    node = b.nodes[-2].name
    assert f"ReverseSequence '{node}': the op has no rule" in reasons(graph)


def test_another_domain_pins() -> None:
    b, x = start(4)
    y = b.shaped(b.node("Relu", [x], domain="com.example"), *b.shapes[x])
    b.nodes.append(helper.make_node("Conv", [x, b.weight(2, 4, 1, 1)], ["z"]))
    graph_proto = helper.make_graph(
        b.nodes, "g", b.inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (y, "z")],
        [onnx.numpy_helper.from_array(v, n) for n, v in b.constants.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    graph = analyze_graph(helper.make_model(graph_proto, opset_imports=imports))
    assert graph.unit_count == 0
    assert "com.example.Relu" in reasons(graph)


def test_what_a_body_captures_is_pinned() -> None:
    b, x = start(4)
    body = helper.make_graph(
        [helper.make_node("Neg", [x], ["inner"])],
        "body", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )  # fmt: skip
    flag = b.node("Cast", [b.node("ReduceSum", ["x"], keepdims=0)], to=TensorProto.BOOL)
    y = b.shaped(b.node("If", [flag], then_branch=body, else_branch=body), *b.shapes[x])
    graph = exact(b.model(b.conv(x, 2), y))
    assert units_at(graph, x).max() == FIXED
    assert "its body is left alone" in reasons(graph)


def test_the_only_channel_stays() -> None:
    b, x = start(1)
    graph = exact(finish(b, b.relu(x)))
    assert graph.unit_count == 0
    assert "would be left" in reasons(graph)


def test_a_graph_without_layers_is_analysed() -> None:
    b = Builder()
    graph = exact(b.model(b.relu(b.input((1, 3, 4, 4)))), plans=1)
    assert (graph.unit_count, graph.layers, graph.groups, graph.skipped) == (0, (), (), ())


@pytest.mark.parametrize("inputs_for_weights", [False, True])
def test_weights_listed_as_inputs_are_constants(inputs_for_weights: bool) -> None:
    b, x = start(6)
    model = b.model(b.conv(b.batch_norm(x), 3), inputs_for_weights=inputs_for_weights)
    assert exact(model).unit_count == 6


def test_shared_weights_are_cut_apart() -> None:
    b, x = start(6)
    weight, bias = b.weight(6, 6, 1, 1), b.weight(6)
    y = b.conv(b.relu(x), 6, weight=weight, bias_name=bias)
    z = b.conv(b.relu(y), 6, weight=weight, bias_name=bias)
    graph = exact(finish(b, z))
    assert [len(group.units) for group in graph.groups] == [6, 6, 6]


def test_the_result_does_not_depend_on_chance() -> None:
    def run() -> str:
        b, x = start(6)
        graph = analyze_graph(finish(b, b.concat(b.conv(x, 3), b.conv(x, 5))))
        return repr((graph.groups, graph.layers, graph.skipped, graph.axes))

    assert run() == run()


def test_a_thousand_nodes_share_one_stream() -> None:
    b, x = start(8, size=4)
    for _ in range(165):
        y = b.relu(b.batch_norm(b.conv(x, 8, 3)))
        x = b.like("Add", x, b.batch_norm(b.conv(y, 8, 3)))
    model = finish(b, x)
    graph = analyze_graph(model)
    assert len(graph.groups) == 166 and len(graph.model.graph.node) > 990
