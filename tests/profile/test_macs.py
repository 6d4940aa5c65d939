"""Counts of recurrent layers and of the attention ops against plain loops and plain models."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.plan import keep_all
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.shapes import infer_concrete, stated_batch
from onnxprune.pipeline import inspect
from onnxprune.profile.cost import CostModel, count
from onnxprune.profile.macs import uncounted
from tests.graph.ops.test_fused import fused
from tests.graph.ops.test_fused import model as with_fused
from tests.model_builder import Builder

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
STEPS, BATCH, INPUTS, HIDDEN = 5, 2, 3, 4


def left_out(model: onnx.ModelProto) -> tuple[str, ...]:
    return uncounted(model, infer_concrete(model))


@pytest.mark.parametrize("layout", (0, 1))
@pytest.mark.parametrize("directions", (1, 2))
@pytest.mark.parametrize("op", GATES)
def test_recurrent_layers(op: str, directions: int, layout: int) -> None:
    b = Builder(opset=17)
    x = b.input((BATCH, STEPS, INPUTS) if layout else (STEPS, BATCH, INPUTS))
    rows = GATES[op] * HIDDEN
    weights = [b.weight(directions, rows, size) for size in (INPUTS, HIDDEN)]
    way = "bidirectional" if directions == 2 else "reverse"
    y = b.node(op, [x, *weights], hidden_size=HIDDEN, direction=way, layout=layout)
    y = b.shaped(y, *((BATCH, STEPS, directions) if layout else (STEPS, directions, BATCH)), HIDDEN)
    model = b.model(b.relu(y))
    total = 0
    for _ in product(range(directions), range(STEPS), range(BATCH), range(GATES[op]), range(HIDDEN)):
        total += INPUTS + HIDDEN  # one entry of one gate
    assert count(model).macs * stated_batch(model) == total
    assert left_out(model) == ()
    graph = analyze_graph(model)
    (layer,) = CostModel.of(graph).by_layer(np.ones(graph.unit_count, np.bool_))
    assert (layer.op, layer.macs * stated_batch(model)) == (op, total)
    assert layer.params == directions * rows * (INPUTS + HIDDEN)


def test_a_deformable_convolution_costs_what_a_plain_one_does() -> None:
    b = Builder(opset=19)
    x, offsets = b.input((1, 4, 6, 6)), b.input((1, 18, 6, 6), "offsets")
    y = b.shaped(b.node("DeformConv", [x, b.weight(8, 2, 3, 3), offsets], group=2, pads=[1] * 4), 1, 8, 6, 6)
    assert count(b.model(b.relu(y))).macs == 8 * 6 * 6 * 2 * 3 * 3


def attention(kind: str, heads: int = 4, shared: int = 4) -> onnx.ModelProto:
    """7 queries and 5 keys of 4 heads, 3 wide, with values 2 wide; ``kind`` says what computes them."""
    b = Builder(opset=23)
    x, other = b.input((1, 7, 6)), b.input((1, 5, 6), "other")
    parts = [b.matmul(x, heads * 3), b.matmul(other, shared * 3), b.matmul(other, shared * 2)]
    if kind != "folded":
        widths = (3, 3, 2)
        parts = [
            b.transpose(b.reshape(part, 1, b.shapes[part][1], -1, width), 0, 2, 1, 3)
            for part, width in zip(parts, widths, strict=True)
        ]
    if kind == "plain":
        query, key, value = parts
        scores = b.node("MatMul", [query, b.transpose(key, 0, 1, 3, 2)])
        scores = b.node("Softmax", [scores], axis=-1)
        y = b.shaped(b.node("MatMul", [scores, value]), 1, heads, 7, 2)
    elif kind == "folded":
        numbers = {"q_num_heads": heads, "kv_num_heads": shared}
        y = b.shaped(b.node("Attention", parts, **numbers), 1, 7, heads * 2)
    else:
        y = b.shaped(b.node("Attention", parts), 1, heads, 7, 2)
    if kind != "folded":
        y = b.reshape(b.transpose(y, 0, 2, 1, 3), 1, 7, -1)
    return b.model(b.matmul(y, 3))


@pytest.mark.parametrize("shared", (4, 2))
@pytest.mark.parametrize("kind", ("split", "folded"))
def test_attention_costs_what_its_products_do(kind: str, shared: int) -> None:
    model = attention(kind, shared=shared)
    total = 7 * 6 * 12 + 5 * 6 * shared * (3 + 2) + 7 * 8 * 3
    for _ in product(range(4), range(7), range(5)):  # one query and one key of one head
        total += 3 + 2
    assert count(model).macs == total
    assert left_out(model) == ()
    if shared == 4:
        assert count(attention("plain")).macs == total
    graph = analyze_graph(model)
    assert len(graph.groups) == 1
    plan = keep_all(graph)
    plan.keep[graph.groups[0].units[0]] = False
    assert CostModel.of(graph).macs(plan.keep) == count(rewrite(graph, plan)).macs < total


def test_a_cache_is_attended_to_as_well() -> None:
    b = Builder(opset=23)
    parts = [b.input((1, 2, 5, 4), name) for name in ("x", "key", "value")]
    caches = [b.input((1, 2, 3, 4), name) for name in ("past_key", "past_value")]
    y = b.shaped(b.node("Attention", [*parts, "", *caches], outputs=3)[0], 1, 2, 5, 4)
    assert count(b.model(y)).macs == 2 * (2 * 5 * (5 + 3) * 4)


def test_attention_of_onnxruntime() -> None:
    b = Builder(opset=17)
    x, other = b.input((1, 7, 6)), b.input((1, 5, 6), "other")
    parts = [b.matmul(x, 12), b.matmul(other, 12), b.matmul(other, 8)]
    y = fused(b, "MultiHeadAttention", parts, 1, 7, 8, num_heads=4)
    model = with_fused(b, b.matmul(y, 3))
    assert count(model).macs == count(attention("plain")).macs
    assert left_out(model) == ()


def test_packed_attention_of_onnxruntime() -> None:
    b = Builder(opset=17)
    x = b.input((1, 5, 6))
    y = fused(b, "Attention", [x, b.weight(6, 24), b.weight(24)], 1, 5, 8, num_heads=2)
    model = with_fused(b, y)
    assert count(model).macs == 5 * 6 * 24 + 2 * (2 * 5 * 5 * 4)


def test_products_whose_sizes_nobody_knows_are_named() -> None:
    """Packed into one input, as onnxruntime takes them too: the projection before it is counted alone."""
    b = Builder(opset=17)
    x = b.reshape(b.matmul(b.input((1, 5, 6)), 24), 1, 5, 2, 3, 4)
    y = fused(b, "MultiHeadAttention", [x], 1, 5, 8, num_heads=2)
    model = with_fused(b, y)
    assert count(model).macs == 5 * 6 * 24
    assert left_out(model) == (f"MultiHeadAttention '{model.graph.node[-1].name}'",)
    (warning,) = inspect(model).warnings
    assert "are not counted" in warning


@pytest.mark.parametrize("op", ("Conv", "LSTM"))
def test_bodies_that_are_not_counted_are_named(op: str) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 8, 8)), 6, 3))
    b.shapes["y"] = b.shapes[x]
    value = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)
    if op == "Conv":
        inner = [onnx.helper.make_node("Conv", [x, b.weight(6, 6, 1, 1)], ["z"])]
    else:
        b.shapes["y"] = (6, 1, 1, 4)
        start = b.constant(np.zeros((6, 1, 3), np.float32))
        weights = [b.weight(1, 16, 3), b.weight(1, 16, 4)]
        inner = [onnx.helper.make_node("LSTM", [start, *weights], ["z"], hidden_size=4)]
    then = onnx.helper.make_graph(inner, "then", [], [value])
    other = onnx.helper.make_graph([onnx.helper.make_node("Identity", [x], ["z"])], "else", [], [value])
    b.nodes.append(
        onnx.helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=then, else_branch=other)
    )
    b.inputs.append(onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    assert left_out(b.model("y")) == ("If 'choice'",)
