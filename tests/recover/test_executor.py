"""The executor as a whole: random graphs, taps, weights put back, fusing, and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError, UsageError
from onnxprune.profile.session import open_session
from onnxprune.recover.executor import Executor, trainable_weights
from tests.model_builder import Builder
from tests.strategies import models


def small_net(*, dtype: type = np.float32, opset: int = 17) -> onnx.ModelProto:
    """Conv without bias, BatchNormalization, Relu, a residual branch, pooling, Gemm."""
    b = Builder(opset=opset, dtype=dtype)
    x = b.relu(b.batch_norm(b.conv(b.input((2, 3, 6, 6), dynamic=True), 4, 3, bias=False)))
    y = b.batch_norm(b.conv(x, 4, 3))
    z = b.relu(b.like("Add", x, y))
    return b.model(b.gemm(b.flatten(b.global_pool(z)), 5))


def images(n: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60)
@given(models())
def test_random_graphs_equal_onnxruntime(model: onnx.ModelProto) -> None:
    session = open_session(model, provider="cpu")
    feeds = {
        spec.name: np.random.default_rng(0).standard_normal(spec.shape).astype(spec.dtype)
        for spec in session.inputs
    }
    expected = session.run(feeds)
    executor = Executor(model)
    actual = executor({name: torch.from_numpy(value) for name, value in feeds.items()})
    assert list(actual) == list(expected)
    for name, want in expected.items():
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(actual[name].detach().numpy() / scale, want / scale, atol=1e-5)
    assert executor.write_back().SerializeToString() == model.SerializeToString()


def test_taps_are_inner_tensors_and_nothing_more_is_run() -> None:
    model = small_net()
    tap = next(node.output[0] for node in model.graph.node if node.op_type == "Add")
    found = Executor(model, outputs=[tap])(images())
    assert list(found) == [tap]
    want = open_session(model, provider="cpu", outputs=[tap]).run({"x": images().numpy()})[tap]
    np.testing.assert_allclose(found[tap].detach().numpy(), want, atol=1e-5)
    with pytest.raises(ModelError, match="no tensor named"):
        Executor(model, outputs=["nowhere"])


def test_fused_pairs_give_the_gradients_of_the_single_nodes() -> None:
    model = small_net(dtype=np.float64)
    fused = Executor(model, dtype=torch.float64)
    conv = next(node.output[0] for node in model.graph.node if node.op_type == "Conv")
    apart = Executor(model, outputs=[model.graph.output[0].name, conv], dtype=torch.float64)
    data = images().double()
    for executor in (fused, apart):
        executor(data)[model.graph.output[0].name].square().sum().backward()
    assert len(fused._steps) < len(apart._steps)
    for name, weight in fused.weights.items():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, apart.weights[name].grad)


def test_statistics_stay_frozen_and_weights_are_what_layers_train() -> None:
    model = small_net()
    found = trainable_weights(model)
    roles = {
        name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:]
    }
    assert not roles & set(found)
    assert set(found) == {tensor.name for tensor in model.graph.initializer} - roles


def test_constants_before_the_first_layer_and_single_numbers_are_not_weights() -> None:
    b = Builder()
    x = b.like("Add", b.input((1, 3, 4, 4)), b.weight(3, 1, 1))
    y = b.like("Mul", b.conv(x, 2), b.constant(np.float32(0.5)))
    z = b.like("Add", y, b.weight(2, 1, 1))
    model = b.model(z)
    names = {tensor.name for tensor in model.graph.initializer}
    first, half = model.graph.node[0].input[1], model.graph.node[2].input[1]
    assert set(trainable_weights(model)) == names - {first, half}


def test_new_weights_are_written_into_a_copy_of_the_same_graph() -> None:
    model = small_net()
    before = model.SerializeToString()
    executor = Executor(model)
    with torch.no_grad():
        for weight in executor.weights.values():
            weight.add_(0.1)
    changed = executor.write_back()
    assert model.SerializeToString() == before
    assert list(changed.graph.node) == list(model.graph.node)
    for old, new in zip(model.graph.initializer, changed.graph.initializer, strict=True):
        shift = 0.1 if old.name in executor.weights else 0.0
        np.testing.assert_allclose(
            numpy_helper.to_array(new), numpy_helper.to_array(old) + np.float32(shift), rtol=1e-6
        )
    want = open_session(changed, provider="cpu").run({"x": images().numpy()})
    for name, value in executor(images()).items():
        np.testing.assert_allclose(value.detach().numpy(), want[name], atol=1e-5)


def test_half_precision_weights_are_trained_in_single_and_written_in_half() -> None:
    model = small_net()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    executor = Executor(model)
    assert {weight.dtype for weight in executor.weights.values()} == {torch.float32}
    assert executor.write_back().SerializeToString() == model.SerializeToString()
    want = open_session(model, provider="cpu").run({"x": images().numpy().astype(np.float16)})
    for name, value in executor(images()).items():
        np.testing.assert_allclose(value.detach().numpy(), want[name], atol=2e-2)


def test_weights_in_constant_nodes_are_trained_too() -> None:
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32))
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["w"], value=weight),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [None, 3])],
        [helper.make_tensor_value_info("y", 1, [None, 3])],
    )
    executor = Executor(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert list(executor.weights) == ["w"]
    with torch.no_grad():
        executor.weights["w"].mul_(2)
    result = open_session(executor.write_back(), provider="cpu").run({"x": np.ones((1, 3), np.float32)})
    np.testing.assert_array_equal(result["y"], [[2, 2, 2]])


def test_unknown_ops_old_opsets_and_unsupported_forms_are_named() -> None:
    b = Builder()
    odd = b.model(b.like("Add", b.conv(b.input((1, 2, 3, 3)), 2), b.weight(2, 1, 1)))
    odd.graph.node[1].op_type = "Det"
    with pytest.raises(ModelError, match=r"through Det of opset 17 \('n_Add") as caught:
        Executor(odd)
    assert "closed-form" in caught.value.hint and "newer opset" not in caught.value.hint
    old = small_net(opset=8)
    old.opset_import[0].version = 6
    with pytest.raises(ModelError, match="BatchNormalization of opset 6") as caught:
        Executor(old)
    assert "newer opset" in caught.value.hint
    training = small_net()
    norm = next(node for node in training.graph.node if node.op_type == "BatchNormalization")
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    with pytest.raises(ModelError, match="training mode"):
        Executor(training)(images())
    with pytest.raises(UsageError, match="no constant 'nothing'"):
        Executor(small_net(), trainable=["nothing"])


def test_inputs_that_do_not_fit_are_named() -> None:
    with pytest.raises(ModelError, match="Conv 'n_Conv"):
        Executor(small_net())(torch.zeros(1, 4, 6, 6))
