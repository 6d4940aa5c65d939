"""The fused Attention op, with heads on an axis of their own or folded into the last one."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.recover.executor.registry import Call, op


@op("Attention", since=23)
def attention(
    call: Call, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *caches: Tensor | None
) -> Tensor:
    """Softmax(scale Q K' + mask) V; a key's head may serve several queries' heads."""
    if any(cache is not None for cache in caches) or call.outputs > 1:
        raise call.unsupported("it keeps a cache of keys and values")
    folded = query.dim() == 3
    if folded:
        query = split_heads(query, call.integer("q_num_heads"))
        key, value = (split_heads(part, call.integer("kv_num_heads")) for part in (key, value))
    result = attend(
        query,
        key,
        value,
        mask,
        scale=call.number("scale", 0.0) or query.shape[-1] ** -0.5,
        causal=bool(call.integer("is_causal", 0)),
        softcap=call.number("softcap", 0.0),
    )
    return fold_heads(result) if folded else result


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    causal: bool,
    softcap: float = 0.0,
) -> Tensor:
    """Softmax(scale Q K' + mask) V of (batch, heads, tokens, e)."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = scale * (query @ key.transpose(-1, -2))
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ value


def split_heads(x: Tensor, count: int) -> Tensor:
    """(batch, tokens, heads * e) to (batch, heads, tokens, e)."""
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def fold_heads(x: Tensor) -> Tensor:
    """(batch, heads, tokens, e) to (batch, tokens, heads * e)."""
    return x.transpose(1, 2).flatten(2)


@op("RotaryEmbedding", since=23)
def rotary_embedding(
    call: Call, x: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Rotate pairs of each head's positions; pairs are neighbours, or lie half a head apart."""
    if x.dim() != 4:
        raise call.unsupported("its heads are folded into the last axis")
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    size = call.integer("rotary_embedding_dim", 0) or x.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    interleaved = bool(call.integer("interleaved", 0))
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    cos, sin = cosines[:, None, :, : size // 2], sines[:, None, :, : size // 2]
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    if interleaved:
        result = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        result = torch.cat([real, imaginary], -1)
    return torch.cat([result, rest], -1)
