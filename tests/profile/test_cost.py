"""Counts against numbers worked out by hand, and predictions against counts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.check import verify
from onnxprune.graph.plan import keep_all
from onnxprune.graph.rewrite import rewrite
from onnxprune.io.save import save
from onnxprune.profile.cost import Cost, CostModel, count
from tests.model_builder import Builder
from tests.strategies import random_plan


def test_conv() -> None:
    b = Builder()
    y = b.conv(b.input((1, 3, 8, 8), dynamic=True), 5, 3, stride=2)
    assert count(b.model(y)) == Cost(4 * 4 * 5 * 3 * 9, 5 * 3 * 9 + 5)


def test_grouped_and_depthwise_conv() -> None:
    b = Builder()
    x = b.input((1, 4, 8, 8))
    y = b.conv(b.conv(x, 6, 3, groups=2, bias=False), 6, 3, groups=6, bias=False)
    assert count(b.model(y)) == Cost(64 * 6 * 2 * 9 + 64 * 6 * 9, 6 * 2 * 9 + 6 * 9)


def test_conv_transpose() -> None:
    b = Builder()
    x = b.input((1, 4, 5, 5))
    y = b.node("ConvTranspose", [x, b.weight(4, 3, 2, 2)], strides=[2, 2], group=2)
    b.shaped(y, 1, 6, 10, 10)
    assert count(b.model(y)) == Cost(25 * 4 * 3 * 4, 4 * 3 * 4)


@pytest.mark.parametrize("trans", (True, False))
def test_gemm(trans: bool) -> None:
    b = Builder()
    assert count(b.model(b.gemm(b.input((1, 7)), 4, trans=trans))) == Cost(28, 28 + 4)


def test_matmul_of_a_weight_and_of_two_activations() -> None:
    b = Builder()
    x = b.input((1, 5, 6), dynamic=True)
    scores = b.shaped(b.node("MatMul", [b.matmul(x, 4), b.transpose(b.matmul(x, 4), 0, 2, 1)]), 1, 5, 5)
    assert count(b.model(scores)) == Cost(2 * 5 * 4 * 6 + 5 * 5 * 4, 2 * 24)


def test_counts_are_those_of_one_sample() -> None:
    free, fixed = Builder(), Builder()
    a = free.model(free.gemm(free.input((3, 7), dynamic=True), 4))
    b = fixed.model(fixed.gemm(fixed.input((3, 7)), 4))
    assert (count(a).macs, count(b).macs) == (28, 28)


def test_parameters_are_floating_have_an_axis_and_are_counted_once() -> None:
    b = Builder(opset=13)
    x = b.input((1, 3, 4, 4))
    weight = b.weight(3, 3, 1, 1)
    y = b.conv(b.conv(x, 3, 1, weight=weight, bias=False), 3, 1, weight=weight, bias=False)
    held = b.node("Constant", [], value=numpy_helper.from_array(np.ones((3, 1, 1), np.float32)))
    y = b.like("Mul", b.like("Add", y, held), b.constant(np.float32(2)))
    y = b.reshape(y, 1, 48)
    assert count(b.model(y)).params == 9 + 3


def test_an_unknown_shape_is_refused() -> None:
    b = Builder(opset=13)
    x = b.input((1, 4))
    b.nodes.append(onnx.helper.make_node("Strange", [x], ["s"], name="s", domain="some.where"))
    y = b.shaped(b.node("MatMul", ["s", b.weight(4, 3)]), 1, 3)
    graph = onnx.helper.make_graph(
        b.nodes, "g", b.inputs,
        [onnx.helper.make_tensor_value_info(y, 1, None)],
        [numpy_helper.from_array(v, n) for n, v in b.constants.items()],
    )  # fmt: skip
    imports = [onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid("some.where", 1)]
    with pytest.raises(ModelError, match=r"MatMul .* can't be counted"):
        count(onnx.helper.make_model(graph, opset_imports=imports))


@pytest.fixture(scope="module")
def residual_net() -> Builder:
    b = Builder(opset=13)
    x = b.relu(b.batch_norm(b.conv(b.input((1, 2, 4, 4)), 4, 3)))
    x = b.relu(b.like("Add", x, b.conv(b.relu(b.conv(x, 6, 3)), 4, 3)))
    x = b.conv(x, 4, 3, groups=4)
    b.outputs = [b.gemm(b.flatten(x), 3)]
    return b


def test_the_derivative_is_what_one_unit_saves(residual_net: Builder) -> None:
    """Exactly so for a unit on one side of each layer; checked by removing it."""
    graph = analyze_graph(residual_net.model(*residual_net.outputs))
    cost, keep = CostModel.of(graph), keep_all(graph).keep
    keep[graph.groups[0].units[0]] = False
    macs, params = cost.marginal_macs(keep), cost.marginal_params(keep)
    inner = next(layer for layer in graph.layers if len(layer.out_units) == 6).out_units
    for unit in inner[keep[inner]]:
        less = keep.copy()
        less[unit] = False
        assert cost.macs(keep) - cost.macs(less) == macs[unit]
        assert cost.params(keep) - cost.params(less) == params[unit]


def test_the_derivative_in_general_is_the_slope() -> None:
    """A product is linear in each axis: f(keep) must equal the mean of the slopes at both ends."""
    b = Builder(opset=13)
    x = b.conv(b.input((1, 2, 4, 4)), 6, 1)
    y = b.like("Add", x, b.conv(b.relu(x), 6, 3))
    graph = analyze_graph(b.model(b.conv(y, 3, 1)))
    cost = CostModel.of(graph)
    keep = keep_all(graph).keep
    less = keep.copy()
    less[2] = False
    slope = (cost.marginal_macs(keep)[2] + cost.marginal_macs(less)[2]) / 2
    assert cost.macs(keep) - cost.macs(less) == slope


def test_layers_sum_to_the_whole(residual_net: Builder) -> None:
    graph = analyze_graph(residual_net.model(*residual_net.outputs))
    cost = CostModel.of(graph)
    plan = random_plan(graph, 5, 0.4)
    layers = cost.by_layer(plan.keep)
    assert [layer.name for layer in layers] == [layer.name for layer in graph.layers]
    assert sum(layer.macs for layer in layers) == cost.macs(plan.keep)
    assert {layer.op for layer in layers} == {"Conv", "Gemm"}
    first = layers[0]
    assert first.params == first.macs // 16 + np.sum(plan.keep[graph.layers[0].out_units])


def test_copies_of_one_initializer_count_once_while_they_are_equal(tmp_path: object) -> None:
    b = Builder()
    x = b.input((1, 3, 4, 4))
    bias = b.weight(6)
    left, right = b.conv(x, 6, 3, bias_name=bias), b.conv(x, 6, 1, bias_name=bias)
    model = b.model(b.conv(b.concat(left, right), 4, 1))
    graph = analyze_graph(model)
    cost, plan = CostModel.of(graph), keep_all(graph)
    assert cost.params(plan.keep) == count(model).params == 6 * 27 + 6 * 3 + 6 + 4 * 12 + 4
    units = [graph.axes[name][1] for name in (left, right)]
    plan.keep[units[0][1]] = False  # now the two biases differ: both are stored
    assert cost.params(plan.keep) == count(rewrite(graph, plan)).params == 5 * 27 + 6 * 3 + 6 + 5 + 44 + 4
    plan.keep[units[1][1]] = False  # and now they are equal again
    assert cost.params(plan.keep) == count(rewrite(graph, plan)).params == 5 * 27 + 5 * 3 + 5 + 40 + 4


def test_a_saved_file_counts_the_same(tmp_path: object, residual_net: Builder) -> None:
    graph = analyze_graph(residual_net.model(*residual_net.outputs))
    plan = random_plan(graph, 1, 0.4)
    pruned = rewrite(graph, plan)
    path = save(pruned, f"{tmp_path}/small.onnx")[0]
    assert count(onnx.load(path)) == count(pruned)


def test_a_stated_batch_is_counted_once() -> None:
    def net(batch: int) -> onnx.ModelProto:
        b = Builder()
        x = b.relu(b.conv(b.input((batch, 3, 8, 8)), 6, 3))
        return b.model(b.gemm(b.flatten(b.global_pool(b.conv(x, 5, 3, stride=2))), 4))

    one, eight = net(1), net(8)
    assert count(eight) == count(one)
    graphs = analyze_graph(one), analyze_graph(eight)
    models = [CostModel.of(graph) for graph in graphs]
    keep = random_plan(graphs[0], 1, share=0.5).keep
    assert models[0].macs(keep) == models[1].macs(keep)
    assert [layer.macs for layer in models[0].by_layer(keep)] == [
        layer.macs for layer in models[1].by_layer(keep)
    ]
    assert np.allclose(models[0].marginal_macs(keep), models[1].marginal_macs(keep))


def with_function(opset: int = 17) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A net whose second Conv is inside a function of that opset, and the same net without the function."""
    b = Builder(opset=17)
    x = b.relu(b.conv(b.input((1, 3, 8, 8)), 6, 3))
    plain = b.model(b.conv(b.relu(b.conv(x, 5, 3)), 4, 1))
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    node = model.graph.node[2]
    body = onnx.helper.make_node("Conv", ["a", "b", "c"], ["d"])
    body.attribute.extend(node.attribute)
    imports = [onnx.helper.make_opsetid("", opset)]
    model.functions.append(onnx.helper.make_function("own", "Layer", ["a", "b", "c"], ["d"], [body], imports))
    node.op_type, node.domain = "Layer", "own"
    del node.attribute[:]
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    onnx.checker.check_model(model)
    return plain, model


def test_what_functions_of_the_model_do_is_counted_and_pruned() -> None:
    plain, model = with_function()
    assert count(model) == count(plain)
    graph = analyze_graph(model)
    assert [len(group.units) for group in graph.groups] == [6, 5]
    plan = random_plan(graph, 0, share=0.5)
    pruned = rewrite(graph, plan)
    verify(graph, plan, pruned)
    assert not pruned.functions and len(model.functions) == 1
    assert count(pruned) == Cost(CostModel.of(graph).macs(plan.keep), CostModel.of(graph).params(plan.keep))


def test_a_function_of_another_opset_stays_a_call() -> None:
    _, model = with_function(opset=16)
    graph = analyze_graph(model)
    assert [entry.name for entry in graph.model.functions] == ["Layer"]
    plan = random_plan(graph, 0, share=0.5)
    verify(graph, plan, rewrite(graph, plan))
