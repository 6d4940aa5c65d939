"""Random models and random plans for property tests.

`models` draws a graph of 3 to 30 nodes out of all op families; weights are signed, BatchNorm
statistics non-zero, so that an error of one channel can't hide. `plans` draws what stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxprune.graph.plan import Plan, must_keep_one
from onnxprune.graph.structure import PruningGraph
from tests.model_builder import Builder

OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 21, 23, 24, 26)
MAX_NODES = 30

Draw = Callable[[st.SearchStrategy[Any]], Any]
Block = Callable[[Builder, Draw, str], str]


def pick(draw: Draw, *options: int) -> int:
    choice: int = draw(st.sampled_from(options))
    return choice


def conv(b: Builder, draw: Draw, x: str) -> str:
    k = pick(draw, 1, 3)
    return b.conv(x, draw(st.integers(2, 8)), k, stride=pick(draw, 1, 1, 2), dilation=pick(draw, 1, 2),
                  bias=bool(pick(draw, 0, 1)))  # fmt: skip


def grouped_conv(b: Builder, draw: Draw, x: str) -> str:
    c = b.shapes[x][1]
    groups = next((g for g in (pick(draw, 2, 3), 2, 3) if c % g == 0), 1)
    return b.conv(x, groups * pick(draw, 1, 2, 3), pick(draw, 1, 3), groups=groups)


def depthwise(b: Builder, draw: Draw, x: str) -> str:
    c = b.shapes[x][1]
    return b.conv(x, c * pick(draw, 1, 1, 2), 3, groups=c, bias=bool(pick(draw, 0, 1)))


def conv_transpose(b: Builder, draw: Draw, x: str) -> str:
    n, c, h, w = b.shapes[x]
    if h > 8:
        return b.relu(x)
    groups = 2 if c % 2 == 0 and pick(draw, 0, 1) else 1
    out = groups * pick(draw, 1, 2, 3)
    weight = b.weight(c, out // groups, 2, 2, scale=float(c) ** -0.5)
    y = b.node("ConvTranspose", [x, weight, b.weight(out)], strides=[2, 2], kernel_shape=[2, 2], group=groups)
    return b.shaped(y, n, out, 2 * h, 2 * w)


def batch_norm(b: Builder, draw: Draw, x: str) -> str:
    return b.batch_norm(x)


def activation(b: Builder, draw: Draw, x: str) -> str:
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return b.like("LeakyRelu", x, alpha=0.1)
    if kind == 1:
        return b.like("Sigmoid", x)
    if kind == 2:
        if b.opset < 11:
            return b.like("Clip", x, min=-0.5, max=2.0)
        return b.like("Clip", x, b.constant(np.float32(-0.5)), b.constant(np.float32(2)))
    if kind == 3:
        return b.like("PRelu", x, b.weight(b.shapes[x][1], 1, 1))
    if kind == 4:
        return b.like("Elu", x)
    return b.relu(x)


def residual(b: Builder, draw: Draw, x: str) -> str:
    c = b.shapes[x][1]
    y = b.conv(b.relu(b.conv(x, draw(st.integers(2, 6)), 3)), c, pick(draw, 1, 3))
    return b.like("Add", x, y) if pick(draw, 0, 1) else b.like("Add", y, x)


def join(b: Builder, draw: Draw, x: str) -> str:
    """Add, Sub, Mul or Concat with an earlier tensor of fitting shape."""
    same = [name for name, shape in b.shapes.items() if shape == b.shapes[x] and name != x]
    flat = [
        name for name, shape in b.shapes.items()
        if len(shape) == 4 and shape[2:] == b.shapes[x][2:] and shape[1] + b.shapes[x][1] <= 16
    ]  # fmt: skip
    if same and pick(draw, 0, 1):
        return b.like(("Add", "Sub", "Mul", "Max")[draw(st.integers(0, 3))], x, draw(st.sampled_from(same)))
    if flat:
        other = draw(st.sampled_from(flat))
        return b.concat(x, other) if pick(draw, 0, 1) else b.concat(other, x)
    return b.relu(x)


def gate(b: Builder, draw: Draw, x: str) -> str:
    c = b.shapes[x][1]
    squeezed = b.relu(b.conv(b.global_pool(x), draw(st.integers(2, 4))))
    return b.like("Mul", x, b.like("Sigmoid", b.conv(squeezed, c)))


def pool(b: Builder, draw: Draw, x: str) -> str:
    if min(b.shapes[x][2:]) < 2:
        return b.relu(x)
    return b.pool("MaxPool" if pick(draw, 0, 1) else "AveragePool", x)


def channel_constant(b: Builder, draw: Draw, x: str) -> str:
    op = ("Mul", "Add", "Sub")[draw(st.integers(0, 2))]
    return b.like(op, x, b.weight(*((1,) if pick(draw, 0, 1) else ()), b.shapes[x][1], 1, 1))


def slice_channels(b: Builder, draw: Draw, x: str) -> str:
    c = b.shapes[x][1]
    start = draw(st.integers(0, c - 1))
    step = pick(draw, 1, 1, 2) if b.opset >= 10 else 1
    return b.slice(x, 1, start, draw(st.integers(start + 1, c)), step)


def shortcut(b: Builder, draw: Draw, x: str) -> str:
    """ResNet option A: strided Slice, channel Pad, and an Add with a projection's output."""
    _n, c, h, w = b.shapes[x]
    if b.opset < 10 or h < 2:
        return b.relu(x)
    y = b.slice(b.slice(x, 2, 0, h, 2), 3, 0, w, 2)
    before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    y = b.pad(y, [0, before, 0, 0, 0, after, 0, 0])
    return b.like("Add", b.conv(x, c + before + after, 3, stride=2), y)


def pad_space(b: Builder, draw: Draw, x: str) -> str:
    return b.pad(x, [0, 0, pick(draw, 0, 1), 1, 0, 0, 0, 1], "constant" if pick(draw, 0, 1) else "edge")


def channels_last(b: Builder, draw: Draw, x: str) -> str:
    y = b.transpose(x, 0, 2, 3, 1)
    if pick(draw, 0, 1):
        y = b.like("Add", y, b.weight(b.shapes[x][1]))
    else:
        y = b.matmul(y, draw(st.integers(2, 6)))
    return b.transpose(y, 0, 3, 1, 2)


def split_branches(b: Builder, draw: Draw, x: str) -> str:
    c = b.shapes[x][1]
    if c < 2:
        return b.relu(x)
    first = c // 2 if c % 2 == 0 else draw(st.integers(1, c - 1))
    left, right = b.split(x, [first, c - first], stated=c % 2 == 1 or bool(pick(draw, 0, 1)))
    return b.concat(b.conv(left, draw(st.integers(2, 4)), 1), right)


def channel_shuffle(b: Builder, draw: Draw, x: str) -> str:
    n, c, h, w = b.shapes[x]
    groups = next((g for g in (2, 3) if c % g == 0 and c > g), 1)
    y = b.reshape(x, n, groups, c // groups, h, w)
    y = b.transpose(y, 0, 2, 1, 3, 4)
    return b.reshape(y, n, -1, h, w) if pick(draw, 0, 1) else b.reshape(y, n, c, h, w)


def tokens(b: Builder, draw: Draw, x: str) -> str:
    """Flatten space, transpose to tokens, a residual two-layer perceptron, and back."""
    n, c, h, w = b.shapes[x]
    t = b.transpose(b.reshape(x, 0, 0, -1) if pick(draw, 0, 1) else b.reshape(x, n, c, h * w), 0, 2, 1)
    hidden = draw(st.integers(2, 6))
    y = b.matmul(b.relu(b.like("Add", b.matmul(t, hidden), b.weight(hidden))), c)
    return b.reshape(b.transpose(b.like("Add", t, y), 0, 2, 1), n, c, h, w)


def permute_channels(b: Builder, draw: Draw, x: str) -> str:
    n, c, h, w = b.shapes[x]
    size = draw(st.integers(1, c))
    indices = b.random.permutation(c)[:size] - (c if pick(draw, 0, 1) else 0)
    return b.shaped(b.node("Gather", [x, b.ints(indices.tolist())], axis=1), n, size, h, w)


def instance_norm(b: Builder, draw: Draw, x: str) -> str:
    c = b.shapes[x][1]
    return b.like("InstanceNormalization", x, b.weight(c), b.weight(c), epsilon=0.1)


def upsample(b: Builder, draw: Draw, x: str) -> str:
    n, c, h, w = b.shapes[x]
    if h > 4:
        return b.relu(x)
    scales = b.constant(np.array([1, 1, 2, 2], np.float32))
    if b.opset < 9:
        y = b.node("Upsample", [x], scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
    elif b.opset < 10:
        y = b.node("Upsample", [x, scales], mode="nearest")
    elif b.opset < 11:
        y = b.node("Resize", [x, scales], mode="nearest")
    elif b.opset >= 13 and pick(draw, 0, 1):
        y = b.node("Resize", [x, "", "", b.ints([n, c, 2 * h, 2 * w])], mode="nearest")
    else:
        roi = b.constant(np.zeros(0, np.float32))
        y = b.node("Resize", [x, roi, scales], mode="nearest")
    return b.shaped(y, n, c, 2 * h, 2 * w)


def space_to_depth(b: Builder, draw: Draw, x: str) -> str:
    n, c, h, w = b.shapes[x]
    if c % 4 == 0 and h <= 4 and pick(draw, 0, 1):
        return b.shaped(b.node("DepthToSpace", [x], blocksize=2), n, c // 4, 2 * h, 2 * w)
    if h % 2 or w % 2 or c > 4:
        return b.relu(x)
    return b.shaped(b.node("SpaceToDepth", [x], blocksize=2), n, 4 * c, h // 2, w // 2)


def shared_weights(b: Builder, draw: Draw, x: str) -> str:
    """Two Convs with one bias, or one weight and one bias."""
    c = b.shapes[x][1]
    out = draw(st.integers(2, 5))
    weight = b.weight(out, c, 1, 1) if pick(draw, 0, 1) else None
    bias = b.weight(out)
    left = b.conv(x, out, 1, weight=weight, bias_name=bias)
    right = b.conv(b.relu(x), out, 1, weight=weight, bias_name=bias)
    return b.concat(left, right) if pick(draw, 0, 1) else b.like("Add", left, b.like("Sigmoid", right))


def pinned(b: Builder, draw: Draw, x: str) -> str:
    """Ops that look at several channels at once: nothing that reaches the Softmax may go."""
    if pick(draw, 0, 1):
        return b.like("Softmax", x, axis=1)
    return b.like("LRN", x, size=pick(draw, 1, 3, 5), alpha=2.0, bias=0.7)


def reduce_space(b: Builder, draw: Draw, x: str) -> str:
    y = b.reduce("ReduceMean" if pick(draw, 0, 1) else "ReduceMax", x, 2, 3)
    return b.like("Add", x, y) if pick(draw, 0, 1) else y


def other_ranks(b: Builder, draw: Draw, x: str) -> str:
    """A fifth axis in front of the channels and away again, a ReLU in between."""
    n, c, h, w = b.shapes[x]
    axes = {"axes": [1]} if b.opset < 13 else {}
    extra = [b.ints([1])] if b.opset >= 13 else []
    y = b.shaped(b.node("Unsqueeze", [x, *extra], **axes), n, 1, c, h, w)
    y = b.like("Mul", b.relu(y), b.weight(c, 1, 1)) if pick(draw, 0, 1) else b.relu(y)
    return b.shaped(b.node("Squeeze", [y, *([b.ints([1])] if extra else [])], **axes), n, c, h, w)


def repeat(b: Builder, draw: Draw, x: str) -> str:
    """Tile along channels or space, or Expand a pooled map."""
    n, c, h, w = b.shapes[x]
    if pick(draw, 0, 1) and b.opset >= 8:
        y = b.node("Expand", [b.global_pool(x), b.ints([n, c, h, w] if pick(draw, 0, 1) else [1, h, w])])
        return b.like("Sub", x, b.shaped(y, n, c, h, w))
    if c > 6 or h > 4:
        return b.relu(x)
    repeats = [1, 2, 1, 1] if pick(draw, 0, 1) else [1, 1, 2, 1]
    y = b.node("Tile", [x, b.ints(repeats)])
    return b.shaped(y, n, c * repeats[1], h * repeats[2], w)


def several_inputs(b: Builder, draw: Draw, x: str) -> str:
    """Sum of three, or a Where whose condition looks at every channel."""
    y, z = b.relu(x), b.like("Sigmoid", x)
    if b.opset >= 9 and pick(draw, 0, 1):
        chosen = b.node("Less", [x, b.weight(b.shapes[x][1], 1, 1)])  # no shape: no other block may read it
        return b.shaped(b.node("Where", [chosen, y, z]), *b.shapes[x])
    bias = [b.weight(b.shapes[x][1], 1, 1)] if b.opset >= 8 else []  # onnxruntime broadcasts from there on
    return b.shaped(b.node("Sum", [x, y, *bias, z]), *b.shapes[x])


def to_tokens(b: Builder, x: str) -> str:
    """Space flattened and put before the channels."""
    n, c, h, w = b.shapes[x]
    return b.transpose(b.reshape(x, n, c, h * w), 0, 2, 1)


def to_maps(b: Builder, t: str, h: int, w: int) -> str:
    n, _, c = b.shapes[t]
    return b.reshape(b.transpose(t, 0, 2, 1), n, c, h, w)


def attention(b: Builder, draw: Draw, x: str) -> str:
    """Self-attention over positions: heads from one projection or three, and a residual."""
    n, c, h, w = b.shapes[x]
    if h * w > 16:
        return b.relu(x)
    heads, size = pick(draw, 2, 3), pick(draw, 1, 2, 3)
    t = to_tokens(b, x)
    if pick(draw, 0, 1):
        joint = b.reshape(b.like("Add", b.matmul(t, 3 * heads * size), b.weight(3 * heads * size)),
                          n, h * w, 3, heads, size)  # fmt: skip
        parts = b.split(b.transpose(joint, 2, 0, 3, 1, 4), [1, 1, 1], axis=0)
        q, k, v = (b.reshape(part, n, heads, h * w, size) for part in parts)
    else:
        q, k, v = (b.transpose(b.reshape(b.matmul(t, heads * size), n, h * w, heads, size), 0, 2, 1, 3)
                   for _ in range(3))  # fmt: skip
    scores = b.shaped(b.node("MatMul", [q, b.transpose(k, 0, 1, 3, 2)]), n, heads, h * w, h * w)
    if pick(draw, 0, 1):
        scores = b.like("Add", scores, b.weight(heads, 1, h * w))
    y = b.shaped(b.node("MatMul", [b.like("Softmax", scores, axis=3), v]), n, heads, h * w, size)
    y = b.matmul(b.reshape(b.transpose(y, 0, 2, 1, 3), n, h * w, heads * size), c)
    return to_maps(b, b.like("Add", t, y), h, w)


def fused_attention(b: Builder, draw: Draw, x: str) -> str:
    n, c, h, w = b.shapes[x]
    if b.opset < 23 or h * w > 16:
        return b.relu(x)
    t, shared, times = to_tokens(b, x), pick(draw, 1, 2), pick(draw, 1, 2)
    q, k, v = (b.transpose(b.reshape(b.matmul(t, heads * 2), n, h * w, heads, 2), 0, 2, 1, 3)
               for heads in (shared * times, shared, shared))  # fmt: skip
    y = b.like("Attention", q, k, v)
    y = b.reshape(b.transpose(y, 0, 2, 1, 3), n, h * w, shared * times * 2)
    return to_maps(b, b.like("Add", t, b.matmul(y, c)), h, w)


def gated_dense(b: Builder, draw: Draw, x: str) -> str:
    """A gated hidden layer (SwiGLU): from two projections, or from one that is split."""
    _n, c, h, w = b.shapes[x]
    t, hidden = to_tokens(b, x), pick(draw, 2, 3, 5)
    if pick(draw, 0, 1):
        gate, value = b.matmul(t, hidden), b.matmul(t, hidden)
    else:
        gate, value = b.split(b.matmul(t, 2 * hidden), [hidden, hidden], axis=2)
    y = b.like("Mul", b.like("Mul", gate, b.like("Sigmoid", gate)), value)
    return to_maps(b, b.like("Add", t, b.matmul(y, c)), h, w)


def layer_norm(b: Builder, draw: Draw, x: str) -> str:
    """Over the channels or over the positions, as one op or (RMS) as its parts."""
    n, c, h, w = b.shapes[x]
    t = b.reshape(x, n, c, h * w) if pick(draw, 0, 1) else to_tokens(b, x)
    back = b.shapes[t][1] == c
    size = b.shapes[t][2]
    if b.opset >= 17 and pick(draw, 0, 1):
        y = b.like("LayerNormalization", t, b.weight(size), b.weight(size), axis=-1)
    else:
        square = b.like("Mul", t, t)
        mean = b.reduce("ReduceMean", square, 2)
        root = b.node("Sqrt", [b.node("Add", [mean, b.constant(np.float32(0.1))])])
        y = b.like("Div", t, root)
    return b.reshape(y, n, c, h, w) if back else to_maps(b, y, h, w)


def group_norm(b: Builder, draw: Draw, x: str) -> str:
    """As one op, or as InstanceNormalization of the groups."""
    n, c, h, w = b.shapes[x]
    groups = next((g for g in (pick(draw, 2, 3), 2, 3) if c % g == 0), 1)
    if b.opset >= 21:
        return b.like("GroupNormalization", x, b.weight(c), b.weight(c), num_groups=groups, epsilon=0.1)
    y = b.reshape(x, n, groups, c // groups * h * w)
    one = b.constant(np.ones(groups, np.float32))
    y = b.like("InstanceNormalization", y, one, b.weight(groups), epsilon=0.1)
    return b.like("Mul", b.reshape(y, n, c, h, w), b.weight(c, 1, 1))


def odd_weights(b: Builder, draw: Draw, x: str) -> str:
    """A weight from a Constant node, one that a node transposes, or one that nodes compute."""
    n, c, h, w = b.shapes[x]
    out = draw(st.integers(2, 5))
    kind = draw(st.integers(0, 2))
    weight = b.weight(c, out, 1, 1) if kind == 1 else b.weight(out, c, 1, 1)
    if kind == 0:
        held = numpy_helper.from_array(b.constants.pop(weight))
        b.nodes.append(onnx.helper.make_node("Constant", [], [weight], value=held))
    elif kind == 1:
        weight = b.node("Transpose", [weight], perm=[1, 0, 2, 3])
    else:
        weight = b.node("Mul", [weight, b.weight(out, 1, 1, 1)])
    y = b.node("Conv", [x, weight], kernel_shape=[1, 1])
    return b.shaped(y, n, out, h, w)


def channel_statistics(b: Builder, draw: Draw, x: str) -> str:
    """A map of what all channels do at each position, as spatial attention has it."""
    ops = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
    first, second = draw(st.integers(0, len(ops) - 1)), draw(st.integers(0, len(ops) - 1))
    both = b.concat(b.reduce(ops[first], x, 1), b.reduce(ops[second], x, -3))
    return b.like("Mul", x, b.like("Sigmoid", b.conv(both, 1, 3)))


def normalised_response(b: Builder, draw: Draw, x: str) -> str:
    """Each channel's norm over space by the mean norm, as ConvNeXt V2 has it, or each by all."""
    if pick(draw, 0, 1):
        return b.like("LpNormalization", b.like("Exp", b.like("Tanh", x)), axis=1, p=pick(draw, 1, 2))
    norms = b.reduce("ReduceL2", x, 2, 3)
    mean = b.node("Add", [b.reduce("ReduceMean", norms, 1), b.constant(np.float32(0.1))])
    y = b.like("Mul", b.like("Mul", x, b.like("Div", norms, mean)), b.weight(b.shapes[x][1], 1, 1))
    return b.like("Add", x, y)


BLOCKS: tuple[Block, ...] = (
    conv, conv, conv, grouped_conv, depthwise, conv_transpose, batch_norm, batch_norm, activation, activation,
    residual, residual, join, join, join, gate, pool, channel_constant, slice_channels, shortcut, pad_space,
    channels_last, split_branches, channel_shuffle, tokens, permute_channels, instance_norm, upsample,
    space_to_depth, shared_weights, pinned, reduce_space, other_ranks, repeat, several_inputs,
    attention, fused_attention, gated_dense, layer_norm, group_norm, odd_weights, channel_statistics,
    normalised_response,
)  # fmt: skip


def head(b: Builder, draw: Draw, x: str) -> str:
    """A classifier: (pool,) flatten, one or two dense layers; or the feature map itself."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return b.conv(x, 3, 1)
    x = b.flatten(b.global_pool(x) if kind == 1 else x) if kind < 3 else b.reshape(x, b.shapes[x][0], -1)
    if pick(draw, 0, 1):
        x = b.relu(b.gemm(x, draw(st.integers(2, 6)), trans=bool(pick(draw, 0, 1))))
    return b.gemm(x, 3) if pick(draw, 0, 1) else b.like("Add", b.matmul(x, 3), b.weight(3))


@st.composite
def models(draw: Draw) -> onnx.ModelProto:
    """A random model of 3 to about 30 nodes, with one or two outputs."""
    b = Builder(opset=draw(st.sampled_from(OPSETS)), seed=draw(st.integers(0, 2**16)))
    size = pick(draw, 4, 6, 7)
    x = b.input((1, draw(st.integers(1, 4)), size, size))
    x = b.conv(x, draw(st.integers(2, 8)), 3)
    live = [x]
    blocks = draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=10))
    for block in blocks:
        if len(b.nodes) > MAX_NODES - 14:
            break
        x = live[-1] if pick(draw, 0, 0, 1) == 0 else draw(st.sampled_from(live))
        live.append(block(b, draw, x))
    outputs = [head(b, draw, live[-1])]
    if pick(draw, 0, 0, 0, 1):
        outputs.append(head(b, draw, live[0]))
    return b.model(*outputs)


def random_plan(graph: PruningGraph, seed: int, share: float) -> Plan:
    """Each unit goes with probability ``share``; where an axis would be left empty, one unit stays.

    Half as often, what is left of a residual branch goes as a whole.
    """
    random = np.random.default_rng(seed)
    keep = random.random(graph.unit_count) >= share
    for units in must_keep_one(graph):
        if not keep[units].any():
            keep[random.choice(units)] = True
    for branch in graph.residual_branches:
        if random.random() < 0.5 * share:
            keep[branch.units] = False
    return Plan(keep)


@st.composite
def plan_seeds(draw: Draw) -> tuple[int, float]:
    """Seed and share for `random_plan`."""
    return draw(st.integers(0, 2**16)), pick(draw, 10, 30, 50, 80, 100) / 100
