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
        query = _heads(query, call.integer("q_num_heads"))
        key, value = (_heads(part, call.integer("kv_num_heads")) for part in (key, value))
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scale = call.number("scale", 0.0) or query.shape[-1] ** -0.5
    scores = scale * (query @ key.transpose(-1, -2))
    if call.number("softcap", 0.0):
        scores = call.number("softcap", 0.0) * torch.tanh(scores / call.number("softcap", 0.0))
    if call.integer("is_causal", 0):
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    result = scores.softmax(-1) @ value
    return result.transpose(1, 2).flatten(2) if folded else result


def _heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)
