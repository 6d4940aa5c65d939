"""The executor on a device that is not the CPU: every op, and recovery's steps through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnxprune.recover.executor import Executor
from tests.recover.second_device import home, second_device

from .op_cases import CASES, Case


@pytest.mark.parametrize("case", [pytest.param(case, id=case.label(case.opsets[-1])) for case in CASES])
def test_every_op_keeps_its_tensors_together(case: Case) -> None:
    model, feeds = case.model(case.opsets[-1])
    given = {name: torch.from_numpy(value) for name, value in feeds.items()}
    wanted = Executor(model, trainable=())(given)
    with second_device() as device:
        actual = Executor(model, trainable=(), device=device)(given)
    for name, value in wanted.items():
        np.testing.assert_allclose(home(actual[name]).numpy(), value.numpy(), rtol=1e-5, atol=1e-5)


def test_two_devices_do_not_meet() -> None:
    with second_device() as device:
        away = torch.ones(3, device=device)
        assert away.device == device and (away + 1).device == device
        with pytest.raises(RuntimeError, match="two devices"):
            away + torch.ones(3)
        assert away.cpu().tolist() == (torch.ones(3) * 1.0).tolist()


def test_what_shape_arithmetic_makes_meets_activations() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("Shape", ["x"], ["size"], start=1, end=2),
        helper.make_node("Concat", ["size", "size"], ["sizes"], axis=0),
        helper.make_node("ConstantOfShape", ["sizes"], ["ones"], value=one),
        helper.make_node("MatMul", ["x", "ones"], ["y"]),
    ]
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=opset, ir_version=8)
    values = torch.arange(6.0).reshape(2, 3)
    with second_device() as device:
        result = Executor(model, trainable=(), device=device)({"x": values})["y"]
    assert home(result).tolist() == (values @ torch.ones(3, 3)).tolist()


def test_a_constant_mask_meets_attention() -> None:
    heads = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 8]) for name in "qkv"]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    mask = numpy_helper.from_array(np.tril(np.ones((4, 4), np.bool_)), "mask")
    graph = helper.make_graph(
        [helper.make_node("Attention", [*"qkv", "mask"], ["y"])], "g", heads, [y], [mask]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    values = {name: torch.randn(1, 2, 4, 8) for name in "qkv"}
    wanted = Executor(model, trainable=())(values)["y"]
    with second_device() as device:
        result = Executor(model, trainable=(), device=device)(values)["y"]
    assert torch.equal(home(result), wanted)
