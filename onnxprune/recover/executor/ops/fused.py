"""Ops of onnxruntime's own domain, as its optimizers write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.recover.executor.ops.attention import attend, fold_heads, split_heads
from onnxprune.recover.executor.registry import Call, Result, op

_DOMAIN = "com.microsoft"


@op("Gelu", domain=_DOMAIN)
def gelu(call: Call, x: Tensor) -> Tensor:
    """The exact Gelu."""
    return F.gelu(x)


@op("BiasGelu", domain=_DOMAIN)
def bias_gelu(call: Call, x: Tensor, bias: Tensor) -> Tensor:
    """The exact Gelu of a sum."""
    return F.gelu(x + bias)


@op("FastGelu", domain=_DOMAIN)
def fast_gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The tanh approximation of Gelu, of a sum where a bias is given."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@op("QuickGelu", domain=_DOMAIN)
def quick_gelu(call: Call, x: Tensor) -> Tensor:
    """The input times the sigmoid of alpha x."""
    return x * torch.sigmoid(call.number("alpha", 1.702) * x)


@op("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=_DOMAIN)
def skip_layer_norm(call: Call, x: Tensor, skip: Tensor, scale: Tensor, *rest: Tensor | None) -> Result:
    """Normalize a sum over its last axis; the fourth output is the sum."""
    simplified = call.op == "SkipSimplifiedLayerNormalization"
    shift, bias = (None, *rest, None)[:2] if simplified else (*rest, None, None)[:2]
    total = x + skip if bias is None else x + skip + bias
    epsilon = call.number("epsilon", 1e-12)
    centred = total if simplified else total - total.mean(-1, keepdim=True)
    result = centred * (centred.square().mean(-1, keepdim=True) + epsilon).rsqrt() * scale
    result = result if shift is None else result + shift
    return result if call.outputs == 1 else (result, total.new_empty(0), total.new_empty(0), total)


@op("MultiHeadAttention", domain=_DOMAIN)
def multi_head_attention(
    call: Call,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    padding: Tensor | None = None,
    mask: Tensor | None = None,
    *caches: Tensor | None,
) -> Tensor:
    """Attention of inputs (batch, tokens, heads * e), with one bias for all three in a row."""
    if key is None or value is None or query.dim() != 3 or key.dim() != 3:
        raise call.unsupported("its inputs are packed")
    if padding is not None or any(cache is not None for cache in caches) or call.outputs > 1:
        raise call.unsupported("it has a padding mask or a cache")
    parts = [query, key, value]
    if bias is not None:
        ends = [query.shape[-1], query.shape[-1] + key.shape[-1]]
        shifts = (bias[: ends[0]], bias[ends[0] : ends[1]], bias[ends[1] :])
        parts = [part + shift for part, shift in zip(parts, shifts, strict=True)]
    return _attention(call, parts, mask)


@op("Attention", domain=_DOMAIN)
def packed_attention(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    padding: Tensor | None = None,
    past: Tensor | None = None,
    mask: Tensor | None = None,
    *rest: Tensor | None,
) -> Tensor:
    """Attention with the projection of its input to queries, keys and values."""
    if padding is not None or past is not None or call.outputs > 1:
        raise call.unsupported("it has a padding mask or a cache")
    if call.get("qkv_hidden_sizes") or call.integer("do_rotary", 0):
        raise call.unsupported("its parts differ in width, or are rotated")
    return _attention(call, list((x @ weight + bias).chunk(3, -1)), mask)


def _attention(call: Call, parts: list[Tensor], mask: Tensor | None) -> Tensor:
    query, key, value = (split_heads(part, call.integer("num_heads", 1)) for part in parts)
    scale = call.number("scale", 0.0) or query.shape[-1] ** -0.5
    causal = bool(call.integer("unidirectional", 0))
    return fold_heads(attend(query, key, value, mask, scale=scale, causal=causal))
