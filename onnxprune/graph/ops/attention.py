"""The fused Attention op: whole heads go."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.labels import Labels
from onnxprune.graph.ops.context import Context
from onnxprune.graph.ops.elementwise import meet
from onnxprune.graph.ops.registry import NoRule, rule

_WHY = "it mixes what is not split into heads alike"


@rule("Attention", since=23)
def attention(ctx: Context) -> None:
    """Y = softmax(scale Q K' + mask) V with heads on axis 1; a key's head may serve several queries'.

    The form with heads folded into the last axis states their number and is left alone, and so are
    caches of earlier keys and values.
    """
    if len(ctx.out_shape()) != 4:
        raise NoRule("its heads are folded into the last axis")
    if any(ctx.has(index) for index in range(4, 7)) or any(ctx.used(index) for index in range(1, 4)):
        raise NoRule("it keeps a cache")
    query, key, value = (ctx.uniform(ctx.labels(index), (0, 2, 3), _WHY) for index in range(3))
    heads, shared = query.shape[1], key.shape[1]
    pair = meet(ctx, key_only(key), key_only(value))
    if heads % shared:
        raise NoRule("its query's heads don't share those of its key evenly")
    ids = np.repeat(np.broadcast_to(pair.core.reshape(-1), (shared,)), heads // shared)
    repeated = Labels.along((1, heads, 1, 1), 1, ids)
    result = meet(ctx, key_only(query), repeated)
    if ctx.has(3):
        if ctx.is_constant(3):
            ctx.bind_broadcast(3, Labels((*query.shape[:3], key.shape[2]), result.core))
        else:
            mask = ctx.labels(3)
            heads_axis = len(mask.shape) - 3
            mask = ctx.uniform(mask, [a for a in range(len(mask.shape)) if a != heads_axis], _WHY)
            result = meet(ctx, result, mask)
    ctx.emit(0, Labels(ctx.out_shape(), result.core))


def key_only(labels: Labels) -> Labels:
    """The labels of the heads, with all other axes reduced to size 1."""
    return Labels((1, labels.shape[1], 1, 1), labels.core)
