"""Ops of onnxruntime's own domain, as its optimizers leave them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.prepare import prepare
from onnxprune.graph.rewrite import rewrite
from onnxprune.profile.cost import CostModel, count
from onnxprune.profile.geometry import layer_geometry
from onnxprune.progress import SilentProgress
from onnxprune.recover.closed_form import recover
from tests.graph.oracle import exact, reasons, units_at
from tests.model_builder import Builder
from tests.plain import run, samples
from tests.strategies import random_plan

DOMAIN = "com.microsoft"


def fused(b: Builder, op: str, inputs: list[str], *shape: int, **attributes: object) -> str:
    name = str(b.node(op, inputs, **attributes))
    b.nodes[-1].domain = DOMAIN
    return b.shaped(name, *shape)


def model(b: Builder, *outputs: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        b.nodes,
        "g",
        b.inputs,
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, b.shapes[name]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in b.constants.items()],
    )
    imports = [helper.make_opsetid("", b.opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def check_cost(built: onnx.ModelProto, groups: list[int]) -> None:
    graph = exact(built, plans=4)
    assert [len(group.units) for group in graph.groups] == groups
    plan = random_plan(graph, 1, 0.5)
    cost, counted = CostModel.of(graph), count(rewrite(graph, plan))
    assert (cost.macs(plan.keep), cost.params(plan.keep)) == (counted.macs, counted.params)


@pytest.mark.parametrize("op", ["Gelu", "QuickGelu", "FastGelu", "BiasGelu", "FastGelu without bias"])
def test_hidden_units_behind_an_activation(op: str) -> None:
    b = Builder()
    x = b.matmul(b.input((1, 5, 4)), 7)
    bias = [b.weight(7)] if op in ("FastGelu", "BiasGelu") else []
    y = fused(b, op.split()[0], [x, *bias], 1, 5, 7)
    check_cost(model(b, b.matmul(y, 3)), [7])


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_a_norm_over_channels_pins_and_what_follows_is_known(op: str) -> None:
    b = Builder()
    x = b.matmul(b.input((1, 5, 4)), 6)
    parameters = [b.weight(6), b.weight(6)]
    names = [b.name("normed"), b.name("sum")]
    node = helper.make_node(op, [x, b.matmul("x", 6), *parameters], [names[0], "", "", names[1]], "n", DOMAIN)
    node.domain = DOMAIN
    b.nodes.append(node)
    for name in names:
        b.shaped(name, 1, 5, 6)
    y = b.matmul(b.relu(b.matmul(names[0], 7)), 6)
    graph = exact(model(b, b.matmul(b.like("Add", y, names[1]), 3)))
    assert [len(group.units) for group in graph.groups] == [7]
    assert "it normalises over channels" in reasons(graph)


FUNCTIONS: list[tuple[str, list[float]]] = [
    ("", []), ("Relu", []), ("LeakyRelu", [0.2]), ("Clip", [-0.1, 0.4]), ("HardSigmoid", [0.3, 0.4]),
    ("Sigmoid", []), ("Tanh", []),
]  # fmt: skip


@pytest.mark.parametrize(("function", "parameters"), FUNCTIONS)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("opset", [10, 17])
def test_an_activation_is_taken_out_of_a_conv(
    function: str, parameters: list[float], added: bool, opset: int
) -> None:
    b = Builder(opset=opset)
    x = b.conv(b.input((1, 3, 5, 5)), 6, 3)
    inputs = [x, b.weight(6, 3, 3, 3), b.weight(6), *([x] if added else [])]
    stated = {"activation": function} if function else {}
    given = {"activation_params": parameters} if parameters else {}
    y = fused(b, "FusedConv", inputs, 1, 6, 5, 5, pads=[1] * 4, group=2, **stated, **given)
    built = model(b, b.conv(y, 2))
    kinds = [node.op_type for node in prepare(built).graph.node]
    assert kinds == ["Conv", "Conv", *(["Add"] if added else []), *([function] if function else []), "Conv"]
    same_results(built)
    check_cost(built, [3] if added else [3, 3])


def test_an_activation_is_taken_out_of_a_gemm() -> None:
    b = Builder()
    x = b.gemm(b.input((1, 5)), 6)
    inputs = [x, b.weight(4, 6), b.weight(4)]
    stated = {"activation": "LeakyRelu", "activation_alpha": 0.3}
    y = fused(b, "FusedGemm", inputs, 1, 4, transB=1, alpha=0.5, **stated)
    built = model(b, b.gemm(y, 2))
    assert [node.op_type for node in prepare(built).graph.node] == ["Gemm", "Gemm", "LeakyRelu", "Gemm"]
    same_results(built)
    check_cost(built, [6, 4])


def same_results(built: onnx.ModelProto) -> None:
    """What the file computes, taking it apart did not change."""
    name, feeds = built.graph.output[0].name, {"x": samples(built, 1)}
    one, two = (run(entry, feeds, [name])[name] for entry in (built, prepare(built)))
    np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("turned", [0, 1])
def test_a_matmul_that_turns_its_weight_and_scales(turned: int) -> None:
    b = Builder()
    x = b.relu(b.matmul(b.input((1, 5, 3), dynamic=True), 6))
    weight = b.weight(4, 6) if turned else b.weight(6, 4)
    y = fused(b, "FusedMatMul", [x, weight], 1, 5, 4, transB=turned, alpha=0.7)
    built = model(b, b.matmul(b.relu(y), 2))
    check_cost(built, [6, 4])
    graph = exact(built)
    plan = random_plan(graph, 2, 0.4)
    pruned = rewrite(graph, plan)
    inputs = samples(graph, 80)
    fits = recover(graph, plan, pruned, inputs, provider="cpu", threads=1, progress=SilentProgress()).fits
    assert fits[0].kept and fits[0].error_after < fits[0].error_before


@pytest.mark.parametrize("turned", [(0, 1), (1, 0), (1, 1), (0, 0)])
def test_products_of_activations_that_are_turned(turned: tuple[int, int]) -> None:
    b = Builder()
    x = b.input((1, 5, 3))
    left, right = b.matmul(x, 6), b.matmul(x, 6)
    left = b.transpose(left, 0, 2, 1) if turned[0] else left
    right = right if turned[1] else b.transpose(right, 0, 2, 1)
    scores = fused(b, "FusedMatMul", [left, right], 1, 5, 5, transA=turned[0], transB=turned[1], alpha=0.4)
    check_cost(model(b, b.matmul(scores, 2)), [6])


@pytest.mark.parametrize("turned", [0, 1])
def test_products_of_activations_that_come_with_their_batch_behind(turned: int) -> None:
    """As it is fused from torch's attention, which keeps its tokens on the first axis."""
    b = Builder()
    x = b.input((5, 1, 6))
    parts = [b.reshape(b.matmul(x, 12), 5, 4, 3) for _ in range(3)]
    keys = parts[1] if turned else b.transpose(parts[1], 2, 1, 0)
    attributes = {"transBatchA": 1, "transBatchB": 1, "transB": turned, "alpha": 0.5}
    scores = fused(b, "FusedMatMul", [parts[0], keys], 4, 5, 5, **attributes)
    mixed = fused(b, "FusedMatMul", [b.like("Softmax", scores, axis=-1), parts[2]], 4, 5, 3, transBatchB=1)
    y = b.reshape(b.transpose(mixed, 1, 0, 2), 5, 12)
    check_cost(model(b, b.matmul(y, 3)), [4])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mask", [None, (1, 4, 5, 5), (1, 1, 5, 5)])
def test_multi_head_attention(bias: bool, mask: tuple[int, ...] | None) -> None:
    b = Builder()
    x = b.input((1, 5, 6))
    inputs = [b.matmul(x, 12), b.matmul(x, 12), b.matmul(x, 8)]
    inputs += [b.weight(32) if bias else "", "", b.weight(*mask) if mask else ""]
    y = fused(b, "MultiHeadAttention", inputs, 1, 5, 8, num_heads=4)
    check_cost(model(b, b.matmul(y, 3)), [4])


def test_attention_with_its_projection() -> None:
    b = Builder()
    x = b.relu(b.matmul(b.input((1, 5, 6)), 7))
    y = fused(b, "Attention", [x, b.weight(7, 24), b.weight(24)], 1, 5, 8, num_heads=4)
    built = model(b, b.matmul(y, 3))
    check_cost(built, [7, 4])
    graph = exact(built)
    assert np.array_equal(units_at(graph, graph.layers[1].weight, 1), np.tile(np.repeat(range(7, 11), 2), 3))
    assert layer_geometry(graph, graph.layers[1]) is None
    assert CostModel.of(graph).macs(np.ones(11, np.bool_)) == 5 * (6 * 7 + 7 * 24 + 2 * 5 * 8 + 8 * 3)


def test_a_residual_branch_that_ends_with_an_attention_stays() -> None:
    """Its bias is three times as long as what it gives."""
    b = Builder()
    x = b.relu(b.matmul(b.input((1, 5, 6)), 8))
    inputs = [b.relu(b.matmul(x, 7)), b.weight(7, 24), b.weight(24)]
    y = b.like("Add", fused(b, "Attention", inputs, 1, 5, 8, num_heads=4), b.weight(8))
    graph = analyze_graph(model(b, b.matmul(b.relu(b.like("Add", y, x)), 3)))
    assert graph.residual_branches == ()


def test_a_padding_mask_is_the_same_for_all_heads() -> None:
    b = Builder()
    x = b.input((1, 5, 6))
    y = fused(b, "Attention", [x, b.weight(6, 24), b.weight(24), lengths(b)], 1, 5, 8, num_heads=4)
    parts = [b.matmul(y, 8) for _ in range(3)]
    z = fused(b, "MultiHeadAttention", [*parts, "", lengths(b)], 1, 5, 8, num_heads=2)
    check_cost(model(b, b.matmul(z, 3)), [4, 2])


def lengths(b: Builder) -> str:
    return b.constant(np.array([4], np.int32))


def test_caches_are_left_alone() -> None:
    b = Builder()
    x = b.input((1, 5, 6))
    parts = [b.matmul(x, 8) for _ in range(3)]
    caches = [b.weight(1, 4, 3, 2), b.weight(1, 4, 3, 2)]
    y = fused(b, "MultiHeadAttention", [*parts, "", "", "", *caches], 1, 5, 8, num_heads=4)
    b.nodes[-1].output.extend(["present_key", "present_value"])
    graph = exact(model(b, b.matmul(y, 3)), plans=1)
    assert graph.unit_count == 0 and "it keeps a cache" in reasons(graph)
