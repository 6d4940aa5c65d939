"""Ops that choose values by index: Slice, Gather and their relatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.recover.executor.registry import Call, Result, op


@op("Slice")
def slice_axes(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Ranges of indices along axes, with steps of either sign."""
    first, last = call.ints("starts", starts) or [], call.ints("ends", ends) or []
    chosen = call.ints("axes", axes) or list(range(len(first)))
    strides = call.ints("steps", steps) or [1] * len(first)
    for axis, start, end, step in zip(chosen, first, last, strides, strict=True):
        size = x.shape[axis]
        if step > 0:
            places = range(*slice(start, end, step).indices(size))
            x = x.narrow(axis, places.start if len(places) else 0, max(0, places.stop - places.start))
            if step > 1:
                x = x[(slice(None),) * (axis % x.dim()) + (slice(None, None, step),)]
        else:
            # As in numpy a bound below -size stops before the first element; Python would wrap it.
            end_or_none = None if end < -size else end
            places = range(*slice(start, end_or_none, step).indices(size))
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


@op("Gather")
def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Entries along an axis, in the shape of the indices."""
    axis = call.integer("axis", 0) % x.dim()
    places = _wrapped(indices, x.shape[axis], x.device)
    if places.dim() == 0:
        return x.select(axis, int(places))
    flat = x.index_select(axis, places.reshape(-1))
    return flat.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


@op("GatherElements", since=11)
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """One entry along an axis for each element of the indices."""
    axis = call.integer("axis", 0) % x.dim()
    return x.gather(axis, _wrapped(indices, x.shape[axis], x.device))


@op("GatherND", since=11)
def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Slices of x at index tuples on the last axis of the indices."""
    if call.integer("batch_dims", 0):
        raise call.unsupported("it has batch_dims")
    places = indices.to(x.device).long()
    return x[tuple(places.unbind(-1))]


@op("OneHot", since=9)
def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """A new axis with the second value at the index and the first one elsewhere."""
    size, axis = int(depth.reshape(-1)[0]), call.integer("axis", -1)
    axis = axis % (indices.dim() + 1)
    places = torch.where(indices < 0, indices + size, indices).long().unsqueeze(axis)
    shape = [size if number == axis else 1 for number in range(indices.dim() + 1)]
    hit = places == torch.arange(size, device=indices.device).view(shape)
    off, on = values.to(indices.device).unbind()
    return torch.where(hit, on, off)


def _wrapped(indices: Tensor, size: int, device: torch.device) -> Tensor:
    places = indices.to(device).long()
    return torch.where(places < 0, places + size, places)


@op("TopK")
def top(call: Call, x: Tensor, count: Tensor | None = None) -> Result:
    """The greatest or smallest entries along an axis, and where they lie."""
    largest = bool(call.integer("largest", 1))
    values, places = x.topk(
        call.integer("k") if count is None else int(count), call.integer("axis", -1), largest=largest
    )
    return values, places.cpu()


@op("GridSample", since=16)
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """Interpolate each channel at positions from -1 to 1."""
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    mode = call.text("mode", "bilinear")
    return F.grid_sample(
        x,
        grid,
        mode=modes.get(mode, mode),
        padding_mode=call.text("padding_mode", "zeros"),
        align_corners=bool(call.integer("align_corners", 0)),
    )
