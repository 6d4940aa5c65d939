from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.check import masked
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.stored import without_rounding
from onnxprune.io.load import load
from onnxprune.profile.cost import CostModel, count
from tests.graph.oracle import exact, reasons, start, units_at
from tests.model_builder import Array, Builder
from tests.quantized import conv, quantize, rounded, stored
from tests.strategies import random_plan


def run(model: onnx.ModelProto, x: Array) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": x})
    assert isinstance(result, np.ndarray)
    return result


def network(opset: int, *, axis: int | None = 0, kind: type = np.int8) -> onnx.ModelProto:
    """Plain, depthwise and grouped layers, a residual join and a classifier, all rounded between."""
    b = Builder(opset=opset)
    x = rounded(b, b.input((1, 3, 6, 6)))
    x = rounded(b, b.relu(conv(b, x, 8, 3, axis=axis, kind=kind)))
    y = rounded(b, b.relu(conv(b, x, 8, 3, axis=axis, kind=kind, groups=8)))
    y = rounded(b, conv(b, y, 8, 1, axis=axis, kind=kind, groups=2))
    x = rounded(b, b.relu(b.like("Add", x, y)))
    x = rounded(b, b.relu(conv(b, x, 6, 3, axis=axis, kind=kind)))
    x = b.flatten(rounded(b, b.pool("MaxPool", x)))
    weight = stored(b, (5, b.shapes[x][1]), axis=None if axis is None else 0, kind=kind)
    x = b.shaped(b.node("Gemm", [x, weight, stored(b, (5,), kind=np.int32)], transB=1), 1, 5)
    last = b.node("MatMul", [rounded(b, b.relu(x)), stored(b, (5, 3), axis=None if axis is None else 1)])
    return b.model(b.shaped(last, 1, 3))


FORMS = [(10, None, np.int8), (13, 0, np.int8), (13, None, np.uint8), (19, 0, np.uint8), (21, 0, np.int8)]


@pytest.mark.parametrize(("opset", "axis", "kind"), FORMS)
def test_levels_scales_and_zero_points_are_cut_alike(opset: int, axis: int | None, kind: type) -> None:
    model = network(opset, axis=axis, kind=kind)
    graph = exact(model)
    assert sorted(len(group.units) for group in graph.groups) == [4, 5, 6]
    plan = random_plan(graph, 1, 0.5)
    pruned = rewrite(graph, plan)
    x = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)
    # With these scales every sum is exact, so that no rounding may differ either.
    assert np.array_equal(run(masked(graph, plan), x), run(pruned, x))
    assert not np.array_equal(run(pruned, x), run(without_rounding(pruned), x))
    cost, counted = CostModel.of(graph), count(pruned)
    assert (cost.macs(plan.keep), cost.params(plan.keep)) == (counted.macs, counted.params)


def test_levels_count_as_parameters_and_scales_do_not() -> None:
    b, x = start(4, inputs=3)
    plain = b.model(b.conv(b.relu(x), 5, 3))
    c = Builder()
    y = conv(c, c.input((1, 3, 6, 6)), 4, 3)
    quantized = c.model(conv(c, c.relu(y), 5, 3))
    assert count(quantized) == count(plain)
    layers = CostModel.of(analyze_graph(quantized)).by_layer(np.ones(4, np.bool_))
    assert [layer.params for layer in layers] == [4 * 27 + 4, 5 * 36 + 5]


def test_a_scale_for_each_channel_of_an_activation() -> None:
    b, x = start(5)
    step = (2.0 ** -np.arange(3, 8)).astype(np.float32)
    y = rounded(b, x, step, axis=-3)
    graph = exact(b.model(b.conv(y, 3)))
    assert graph.unit_count == 5
    plan = random_plan(graph, 0, 0.5)
    pruned = {t.name: numpy_helper.to_array(t) for t in rewrite(graph, plan).graph.initializer}
    for node in graph.model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert np.array_equal(pruned[node.input[1]], step[plan.keep])
            assert pruned[node.input[2]].shape == (plan.keep.sum(),)


@pytest.mark.parametrize("axis", [None, 0])
def test_float_weights_that_the_model_quantizes_itself(axis: int | None) -> None:
    b, x = start(6)
    scale = b.constant(np.full(() if axis is None else (4,), 0.05, np.float32))
    zero = b.constant(np.zeros(() if axis is None else (4,), np.int8))
    attributes = {} if axis is None else {"axis": axis}
    levels = b.node("QuantizeLinear", [b.weight(4, 6, 3, 3), scale, zero], **attributes)
    weight = b.node("DequantizeLinear", [levels, scale, zero], **attributes)
    y = b.conv(rounded(b, b.relu(x)), 4, 3, weight=weight)
    graph = exact(b.model(b.conv(b.relu(y), 3)))
    assert [len(group.units) for group in graph.groups] == [6, 4]


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_transposed_weight_is_stored_transposed(axis: int | None) -> None:
    b = Builder(opset=13)
    x = b.relu(b.matmul(b.input((1, 4, 3)), 6))
    weight = b.transpose(stored(b, (5, 6), axis=axis), 1, 0)
    y = b.shaped(b.node("MatMul", [x, weight]), 1, 4, 5)
    graph = exact(b.model(b.matmul(b.relu(y), 2)))
    assert [len(group.units) for group in graph.groups] == [6, 5]
    assert all(node.op_type != "Transpose" for node in graph.model.graph.node)


def test_a_stored_constant_that_several_nodes_read_goes_apart() -> None:
    b, x = start(4, opset=13)
    weight, factor = stored(b, (4, 4, 1, 1), axis=0), stored(b, (4, 1, 1), axis=0)
    y = b.conv(b.relu(b.like("Mul", x, factor)), 4, weight=weight)
    z = b.conv(b.relu(b.like("Mul", y, factor)), 4, weight=weight)
    graph = exact(b.model(b.conv(b.relu(z), 3)))
    assert [len(group.units) for group in graph.groups] == [4, 4, 4]
    plan = random_plan(graph, 1, 0.4)
    assert CostModel.of(graph).params(plan.keep) == count(rewrite(graph, plan)).params


def test_stored_constants_meet_and_join_channels() -> None:
    b, x = start(4, opset=13)
    y = b.like("Add", x, stored(b, (1, 4, 1, 1), axis=1))
    y = b.like("Mul", y, stored(b, (6, 6)))
    y = b.concat(y, stored(b, (1, 2, 6, 6), axis=1))
    graph = exact(b.model(b.conv(y, 3)))
    assert graph.unit_count == 4


def test_a_computed_scale_pins() -> None:
    b, x = start(4, opset=13)
    scale = b.node("ReduceMax", [b.like("Abs", "x")], keepdims=0)
    y = b.node("QuantizeLinear", [x, scale])
    y = b.shaped(b.node("DequantizeLinear", [y, scale]), *b.shapes[x])
    graph = exact(b.model(b.conv(y, 3)))
    assert graph.unit_count == 0 and "its scale is computed" in reasons(graph)


def test_blocks_are_refused_with_the_way_out() -> None:
    b = Builder(opset=21)
    levels, scale = b.constant(np.ones((4, 8), np.int8)), b.constant(np.ones((4, 2), np.float32))
    weight = b.node("DequantizeLinear", [levels, scale], axis=1, block_size=4)
    y = b.shaped(b.node("MatMul", [b.input((1, 4)), weight]), 1, 8)
    with pytest.raises(ModelError, match="block-quantized weights") as refused:
        load(b.model(y))
    assert "quantize the result" in refused.value.hint


@pytest.mark.parametrize("per_channel", [False, True])
def test_what_onnxruntime_quantizes(per_channel: bool, tmp_path: Path) -> None:
    b, x = start(8, size=8)
    x = b.relu(b.batch_norm(x))
    x = b.relu(b.like("Add", x, b.conv(b.relu(b.conv(x, 8, 3, groups=8)), 8)))
    gate = b.like("Sigmoid", b.conv(b.relu(b.conv(b.global_pool(x), 3)), 8))
    x = b.like("Mul", x, gate)
    x = b.concat(b.relu(b.conv(x, 5, 3)), b.relu(b.conv(x, 4)))
    plain = b.model(b.matmul(b.relu(b.gemm(b.flatten(b.global_pool(x)), 6)), 3))
    samples = np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
    model = quantize(plain, samples, tmp_path, per_channel=per_channel)
    assert count(model) == count(plain)
    graph = exact(model)
    assert sorted(len(group.units) for group in graph.groups) == [3, 4, 5, 6, 8]
    assert len(units_at(graph, graph.layers[0].output)) == 8


def test_dequantizers_of_the_runtimes_own_domain() -> None:
    b = Builder(opset=13)
    x = b.relu(b.conv(b.input((1, 3, 4, 4)), 5))
    levels = b.node("QuantizeLinear", [x, b.constant(np.float32(0.02)), b.constant(np.uint16(9))])
    y = b.node("DequantizeLinear", [levels, b.constant(np.float32(0.02)), b.constant(np.uint16(9))])
    for node in b.nodes[-2:]:
        node.domain = "com.microsoft"
    graph = onnx.helper.make_graph(
        [*b.nodes, onnx.helper.make_node("Conv", [y, b.weight(2, 5, 1, 1)], ["z"])],
        "g",
        b.inputs,
        [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 2, 4, 4])],
        [numpy_helper.from_array(value, name) for name, value in b.constants.items()],
    )
    imports = [onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    assert exact(model).unit_count == 5
