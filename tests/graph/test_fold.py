"""BatchNormalization of constants: how exports before opset 14 standardise their weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.graph.prepare import prepare
from onnxprune.pipeline import inspect
from tests.graph.oracle import exact
from tests.model_builder import Array, Builder

_EPSILON = 1e-3


def standardised(opset: int, *, training: bool = True, read: int = 1, **attributes: int) -> onnx.ModelProto:
    """A net whose first Conv has a normalised weight; the first ``read`` outputs of the norm are read.

    The statistics given are not those of the weight, so that modes differ.
    """
    b = Builder(opset=opset)
    x, weight = b.input((1, 3, 6, 6)), b.shaped(b.weight(8, 3, 3, 3, scale=1.0), 8, 3, 3, 3)
    if opset >= 14:
        attributes["training_mode"] = int(training)
    outputs = (5 if opset < 14 else 3) if training else 1
    flat = b.reshape(weight, 1, 8, 27)
    variance = b.constant(np.linspace(0.5, 2, 8, dtype=np.float32))
    given = [flat, b.weight(8), b.weight(8), b.weight(8), variance]
    names = b.node("BatchNormalization", given, outputs, epsilon=_EPSILON, momentum=0.3, **attributes)
    norm = names if isinstance(names, list) else [names]
    weight = b.reshape(b.shaped(norm[0], 1, 8, 27), 8, 3, 3, 3)
    bias = b.node("Sum", norm[1:read]) if read > 1 else b.weight(8)
    x = b.relu(b.conv(x, 8, 3, weight=weight, bias_name=bias))
    return b.model(b.gemm(b.flatten(b.global_pool(x)), 4))


def by_loop(model: onnx.ModelProto, training: bool) -> Array:
    """The normalised weight, channel by channel in double precision."""
    node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    reshape = next(node for node in model.graph.node if node.op_type == "Reshape")
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    scale, bias, mean, variance = (held[name] for name in node.input[1:])
    result = np.empty((8, 3, 3, 3))
    for channel, values in enumerate(held[reshape.input[0]]):
        m, v = mean[channel], variance[channel]
        if training:
            m = values.sum() / 27
            v = sum((value - m) ** 2 for value in values.ravel()) / 27
        result[channel] = (values - m) / np.sqrt(v + _EPSILON) * scale[channel] + bias[channel]
    return result


def outputs(model: onnx.ModelProto) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((1, 3, 6, 6)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("opset", (7, 8, 9, 12, 13, 14, 15, 17))
def test_a_normalised_weight_is_a_constant(opset: int, training: bool) -> None:
    model = standardised(opset, training=training)
    prepared = prepare(model)
    assert [node.op_type for node in prepared.graph.node] == [
        "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm",
    ]  # fmt: skip
    name = prepared.graph.node[0].input[1]
    folded = next(numpy_helper.to_array(t) for t in prepared.graph.initializer if t.name == name)
    assert np.allclose(folded, by_loop(model, training), rtol=1e-5, atol=1e-6)
    assert np.allclose(outputs(prepared), outputs(model), rtol=1e-5, atol=1e-6)
    if opset >= 14:  # before, onnx's evaluator is wrong
        x = np.random.default_rng(1).standard_normal((1, 3, 6, 6)).astype(np.float32)
        assert np.allclose(outputs(prepared), ReferenceEvaluator(model).run(None, {"x": x})[0], atol=1e-6)


@pytest.mark.parametrize("opset", (7, 13, 15))
def test_layers_with_standardised_weights_are_pruned(opset: int) -> None:
    model = standardised(opset)
    assert inspect(model).coverage.macs == 1.0
    exact(model)


def test_statistics_that_something_reads_stay_computed() -> None:
    """What the old op gives besides its first output is not defined well enough to be a constant."""
    assert "BatchNormalization" in {node.op_type for node in prepare(standardised(13, read=3)).graph.node}
    settled = prepare(standardised(15, read=3))
    assert "BatchNormalization" not in {node.op_type for node in settled.graph.node}
    assert np.allclose(outputs(settled), outputs(standardised(15, read=3)), rtol=1e-5, atol=1e-6)


def test_statistics_for_each_position_stay_computed() -> None:
    b = Builder(opset=7)
    flat = b.shaped(b.weight(1, 8, 27), 1, 8, 27)
    given = [flat, *(b.constant(np.full((8, 27), value, np.float32)) for value in (2, 1, 0.5, 4))]
    norm = b.shaped(b.node("BatchNormalization", given, spatial=0), 1, 8, 27)
    x = b.conv(b.input((1, 3, 6, 6)), 8, 3, weight=b.reshape(norm, 8, 3, 3, 3))
    prepared = prepare(b.model(b.conv(x, 4)))
    assert "BatchNormalization" in {node.op_type for node in prepared.graph.node}


def test_outputs_that_only_a_body_reads_are_kept() -> None:
    b = Builder(opset=17)
    x = b.input((1, 4, 4, 4))
    values, places = b.node("TopK", [b.weight(6, scale=1.0), b.ints([4])], 2)
    branches = {}
    for branch, name in (("then_branch", values), ("else_branch", places)):
        node = helper.make_node("Cast", [name], [branch], to=onnx.TensorProto.FLOAT)
        value = helper.make_tensor_value_info(branch, onnx.TensorProto.FLOAT, [4])
        branches[branch] = helper.make_graph([node], branch, [], [value])
    b.inputs.append(helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    chosen = b.node("If", ["flag"], **branches)
    y = b.shaped(b.node("MatMul", [x, chosen]), 1, 4, 4)
    model = b.model(y)
    prepared = prepare(model)
    assert "TopK" not in {node.op_type for node in prepared.graph.node}
    data = np.random.default_rng(0).standard_normal((1, 4, 4, 4)).astype(np.float32)
    for flag in (True, False):
        found = [
            ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
                None, {"x": data, "flag": np.array(flag)}
            )[0]
            for m in (model, prepared)
        ]
        assert np.array_equal(*found)
