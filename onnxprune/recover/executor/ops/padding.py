"""Pad in all its modes, on any axes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.recover.executor.registry import Call, op


@op("Pad", since=2)
def pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Constant, reflecting, repeating or wrapping; negative amounts cut."""
    amounts = call.ints("pads", pads) or []
    chosen = [axis % x.dim() for axis in call.ints("axes", axes) or range(len(amounts) // 2)]
    begin, end = [0] * x.dim(), [0] * x.dim()
    for number, axis in enumerate(chosen):
        begin[axis], end[axis] = amounts[number], amounts[number + len(chosen)]
    mode = call.text("mode", "constant")
    if mode == "constant":
        fill = call.number("value", 0.0) if value is None else value.reshape(-1)[0].item()
        flat = [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]
        while len(flat) > 2 and flat[-2:] == [0, 0]:
            del flat[-2:]
        return F.pad(x, flat, value=fill)
    for axis in range(x.dim()):
        if begin[axis] or end[axis]:
            places = _sources(mode, x.shape[axis], begin[axis], end[axis], call)
            x = x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))
    return x


def _sources(mode: str, size: int, begin: int, end: int, call: Call) -> list[int]:
    """For each place of the padded axis, the index that its value comes from.

    Cutting comes first: what is mirrored or wrapped is what cutting leaves.
    """
    first, last = max(0, -begin), size - max(0, -end)
    kept = last - first
    places = range(-max(0, begin), kept + max(0, end))
    match mode:
        case "edge":
            local = [min(max(place, 0), kept - 1) for place in places]
        case "wrap":
            local = [place % kept for place in places]
        case "reflect":
            period = max(1, 2 * (kept - 1))
            local = [int(kept - 1 - math.fabs(place % period - (kept - 1))) for place in places]
        case _:
            raise call.unsupported(f"mode {mode} is unknown")
    return [first + place for place in local]
