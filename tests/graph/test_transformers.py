"""Transformer blocks as exporters write them: whole heads and hidden units of the feed-forward part go."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.graph.prepare import prepare
from tests.graph.ops.test_matmul import attend, heads
from tests.graph.oracle import exact
from tests.model_builder import Builder

WIDTH, HEADS, TOKENS = 12, 4, 5


def linear(b: Builder, x: str, features: int) -> str:
    return b.like("Add", b.matmul(x, features), b.weight(features))


def normed(b: Builder, x: str) -> str:
    return b.like("LayerNormalization", x, b.weight(WIDTH), b.weight(WIDTH))


def gelu(b: Builder, x: str) -> str:
    """By the error function, as exporters spell it before opset 20."""
    inner = b.like("Erf", b.like("Div", x, b.constant(np.float32(2**0.5))))
    gate = b.like("Add", inner, b.constant(np.float32(1)))
    return b.like("Mul", b.like("Mul", x, gate), b.constant(np.float32(0.5)))


def swiglu(b: Builder, x: str, hidden: int) -> str:
    gate = b.matmul(x, hidden)
    return b.matmul(b.like("Mul", b.like("Mul", gate, b.like("Sigmoid", gate)), b.matmul(x, hidden)), WIDTH)


def packed(b: Builder, x: str, how: str) -> list[str]:
    """Query, key and value (1, heads, tokens, 3) of one projection."""
    y = linear(b, x, 3 * WIDTH)
    if how == "reshape":
        stacked = b.transpose(b.reshape(y, 0, TOKENS, 3, HEADS, WIDTH // HEADS), 2, 0, 3, 1, 4)
        shape = b.shapes[stacked][1:]
        return [
            b.shaped(b.node("Gather", [stacked, b.constant(np.int64(i))], axis=0), *shape) for i in range(3)
        ]
    if how == "split":
        parts = b.split(y, [WIDTH] * 3, axis=2)
    else:
        parts = [b.slice(y, 2, i * WIDTH, (i + 1) * WIDTH) for i in range(3)]
    return [heads(b, part, HEADS, WIDTH // HEADS) for part in parts]


def repeated(b: Builder, x: str, x_heads: int) -> str:
    """Each key's head for several queries: an Expand to sizes that the graph computes from its batch."""
    _, shared, tokens, each = b.shapes[x]
    times = x_heads // shared
    batch = b.node(
        "Unsqueeze", [b.node("Gather", [b.node("Shape", [x]), b.constant(np.int64(0))]), b.ints([0])]
    )
    sizes = [b.ints([size]) for size in (shared, times, tokens, each)]
    wanted = b.node("Concat", [batch, *sizes], axis=0)
    unknown = b.node("Equal", [b.node("Reshape", [wanted, b.ints([-1])]), b.ints([-1])])
    target = b.node("Where", [unknown, b.ints([1] * 5), wanted])
    y = b.node("Expand", [b.node("Unsqueeze", [x, b.ints([2])]), target])
    return b.reshape(b.shaped(y, 1, shared, times, tokens, each), 0, x_heads, tokens, each)


@pytest.mark.parametrize("how", ["reshape", "split", "slice"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_blocks_with_one_projection(how: str, dynamic: bool) -> None:
    b = Builder()
    x = linear(b, b.input((1, TOKENS, 6), dynamic=dynamic), WIDTH)
    y = attend(b, *packed(b, normed(b, x), how))
    x = b.like("Add", x, linear(b, y, WIDTH))
    x = b.like("Add", x, linear(b, gelu(b, linear(b, normed(b, x), 9)), WIDTH))
    graph = exact(b.model(b.matmul(normed(b, x), 3)))
    assert [len(group.units) for group in graph.groups] == [HEADS, 9]


@pytest.mark.parametrize("dynamic", [False, True])
def test_keys_that_several_queries_share(dynamic: bool) -> None:
    b = Builder()
    x = linear(b, b.input((1, TOKENS, 6), dynamic=dynamic), WIDTH)
    y = normed(b, x)
    query = heads(b, b.matmul(y, WIDTH), HEADS, 3)
    key, value = (repeated(b, heads(b, b.matmul(y, 6), 2, 3), HEADS) for _ in range(2))
    x = b.like("Add", x, b.matmul(attend(b, query, key, value), WIDTH))
    x = b.like("Add", x, swiglu(b, normed(b, x), 7))
    graph = exact(b.model(b.matmul(normed(b, x), 3)))
    assert [len(group.units) for group in graph.groups] == [2, 7]


def test_a_computed_target_of_expand_becomes_a_constant_that_keeps_the_batch() -> None:
    b = Builder()
    x = b.input((1, 2, TOKENS, 3), dynamic=True)
    model = b.model(repeated(b, x, 4))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    prepared = prepare(model)
    kinds = [node.op_type for node in prepared.graph.node]
    assert kinds == ["Unsqueeze", "Expand", "Reshape"]
    target = next(t for t in prepared.graph.initializer if t.name == prepared.graph.node[1].input[1])
    assert onnx.numpy_helper.to_array(target).tolist() == [1, 2, 2, TOKENS, 3]
