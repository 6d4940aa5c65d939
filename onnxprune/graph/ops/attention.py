"""The fused Attention ops, the standard one and onnxruntime's own: whole heads go."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.fused import DOMAIN
from onnxprune.graph.labels import Labels
from onnxprune.graph.ops.context import Context
from onnxprune.graph.ops.elementwise import meet
from onnxprune.graph.ops.registry import NoRule, rule
from onnxprune.graph.structure import IntArray

_WHY = "it mixes what is not split into heads alike"


@rule("Attention", since=23)
def attention(ctx: Context) -> None:
    """Y = softmax(scale Q K' + mask) V; a key's head may serve several queries'.

    Heads lie on axis 1, or are folded into the last axis, where attributes state their number.
    Caches of earlier keys and values are left alone.
    """
    if any(ctx.has(index) for index in range(4, 7)) or any(ctx.used(index) for index in range(1, 4)):
        raise NoRule("it keeps a cache")
    counts = [int(ctx.attribute(name, 0)) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    query, key, value = (heads(ctx, index, count) for index, count in enumerate(counts))
    result = attend(ctx, query, key, value, 3 if ctx.has(3) else None)
    emit_heads(ctx, result)


def heads(ctx: Context, index: int, count: int) -> Labels:
    """Labels (1, heads, tokens, 1) of an input (batch, heads, tokens, e) or (batch, tokens, heads * e)."""
    labels = ctx.labels(index)
    if len(labels.shape) == 3:
        labels = split_heads(ctx, labels, count)
    labels = ctx.uniform(labels, (0, 2, 3), _WHY)
    return Labels((1, *labels.shape[1:3], 1), labels.core)


def split_heads(ctx: Context, labels: Labels, count: int) -> Labels:
    """Labels (batch, heads, tokens, e) of (batch, tokens, heads * e)."""
    batch, tokens, width = labels.shape
    if count < 1 or width % count:
        raise NoRule("its last axis does not split into its heads")
    ids = ctx.channels(labels, 2, "its tokens carry channels")
    core = Labels.of(ids.reshape(1, count, 1, -1)).core
    return Labels((batch, count, tokens, width // count), core)


def attend(ctx: Context, query: Labels, key: Labels, value: Labels, mask: int | None) -> Labels:
    """Merge the heads (1, heads, tokens, 1) that meet, and with them a ``mask`` (..., heads, S, T)."""
    count, shared = query.shape[1], key.shape[1]
    if count % shared or value.shape[1] != shared:
        raise NoRule("its query's heads don't share those of its key evenly")
    pair = meet(ctx, _heads_only(key), _heads_only(value))
    ids = np.repeat(np.broadcast_to(pair.core.reshape(-1), (shared,)), count // shared)
    result = meet(ctx, _heads_only(query), Labels.along((1, count, 1, 1), 1, ids))
    if mask is not None and ctx.is_constant(mask):
        ctx.bind_broadcast(mask, Labels((1, count, query.shape[2], key.shape[2]), result.core))
    elif mask is not None:
        given = ctx.labels(mask)
        others = [axis for axis in range(len(given.shape)) if axis != len(given.shape) - 3]
        result = meet(ctx, result, ctx.uniform(given, others, _WHY))
    return Labels((1, count, 1, 1), result.core)


def emit_heads(ctx: Context, labels: Labels) -> None:
    """Emit heads (1, heads, 1, 1) on axis 1, or folded into the last axis."""
    shape = ctx.out_shape()
    if len(shape) == 4:
        return ctx.emit(0, Labels(shape, labels.core))
    return ctx.emit(0, Labels.along(shape, 2, _folded(labels, shape[2])))


def _heads_only(labels: Labels) -> Labels:
    """The labels of the heads, with all other axes reduced to size 1."""
    return Labels((1, labels.shape[1], 1, 1), labels.core)


@rule("RotaryEmbedding", since=23)
def rotary_embedding(ctx: Context) -> None:
    """Rotates pairs of positions of each head (batch, heads, tokens, e), all heads alike."""
    if len(ctx.shape(0)) != 4:
        raise NoRule("its heads are folded into the last axis")
    if any(ctx.labels(index).varying for index in (1, 2, 3) if ctx.has(index)):
        raise NoRule("its angles carry channels")
    ctx.emit(0, ctx.uniform(ctx.labels(0), (0, 2, 3), _WHY))


@rule("MultiHeadAttention", domain=DOMAIN)
def multi_head_attention(ctx: Context) -> None:
    """The fused form of three inputs (batch, tokens, heads * e), and a bias for all of them in one row."""
    if any(ctx.has(index) for index in range(6, 10)) or any(ctx.used(index) for index in range(1, 4)):
        raise NoRule("it keeps a cache")
    if not all(ctx.has(index) and len(ctx.shape(index)) == 3 for index in range(3)):
        raise NoRule("its inputs are packed")
    count = int(ctx.attribute("num_heads", 1))
    _pin_padding(ctx, 4)
    query, key, value = (heads(ctx, index, count) for index in range(3))
    labels = attend(ctx, query, key, value, 5 if ctx.has(5) else None)
    if ctx.is_constant(3):
        widths = [ctx.shape(index)[2] for index in range(3)]
        ctx.bind_axis(3, 0, np.concatenate([_folded(labels, width) for width in widths]))
    elif ctx.has(3):
        raise NoRule("its bias is computed")
    emit_heads(ctx, labels)


@rule("Attention", domain=DOMAIN)
def packed_attention(ctx: Context) -> None:
    """The fused form with its projection: input (batch, tokens, D), weight (D, 3 * heads * e), bias."""
    if ctx.has(4) or ctx.has(6) or ctx.used(1):
        raise NoRule("it keeps a cache")
    if ctx.attribute("qkv_hidden_sizes") or ctx.attribute("do_rotary", 0):
        raise NoRule("its parts differ in width, or are rotated")
    if not ctx.is_constant(1) or not ctx.is_constant(2):
        raise NoRule("its weight is computed, or it has no bias")
    count, width = int(ctx.attribute("num_heads", 1)), ctx.shape(1)[1] // 3
    incoming = ctx.channels(ctx.labels(0), 2, "its tokens carry channels")
    _pin_padding(ctx, 3)
    tokens = (1, count, ctx.shape(0)[1], 1)
    started = Labels.along(tokens, 1, ctx.atoms.fresh(count, removable=True))
    labels = attend(ctx, started, started, started, 5 if ctx.has(5) else None)
    outgoing = np.tile(_folded(labels, width), 3)
    ctx.bind_axis(1, 0, incoming)
    ctx.bind_axis(1, 1, outgoing)
    ctx.bind_axis(2, 0, outgoing)
    ctx.add_layer(
        data=0,
        weight=1,
        bias=2,
        weight_axes=(0, 1),
        channel_axis=2,
        groups=1,
        ids=(incoming, outgoing),
    )
    emit_heads(ctx, labels)


def _pin_padding(ctx: Context, index: int) -> None:
    """Which tokens count is the same for all heads."""
    if ctx.has(index):
        ctx.pin(ctx.labels(index).core, "it is a padding mask")


def _folded(labels: Labels, width: int) -> IntArray:
    """The label (width,) of each index of an axis into which heads (1, heads, 1, 1) are folded."""
    ids = np.broadcast_to(labels.core.reshape(-1), (labels.shape[1],))
    return np.repeat(ids, width // len(ids))
