"""Resize and Upsample: nearest and linear in any number of axes, cubic in two, by separable matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnxprune.recover.executor.registry import Call, op


@op("Upsample", since=7, until=10)
def upsample(call: Call, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Resize of the first opsets: whole or linear interpolation with asymmetric coordinates."""
    factors = [float(value) for value in (call.get("scales") if scales is None else scales.tolist())]
    sizes = [math.floor(size * factor) for size, factor in zip(x.shape, factors, strict=True)]
    settings = call.text("mode", "nearest"), "asymmetric", "floor"
    return _resized(call, x, sizes, factors, settings)


@op("Resize", since=10, until=11)
def resize_asymmetric(call: Call, x: Tensor, scales: Tensor) -> Tensor:
    """The one form of opset 10: scales, asymmetric coordinates, rounding down."""
    factors = [float(value) for value in scales.tolist()]
    sizes = [math.floor(size * factor) for size, factor in zip(x.shape, factors, strict=True)]
    return _resized(call, x, sizes, factors, (call.text("mode", "nearest"), "asymmetric", "floor"))


@op("Resize", since=11)
def resize(
    call: Call,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Sizes or scales for all axes, or for those that ``axes`` names."""
    if call.integer("antialias", 0) or call.integer("exclude_outside", 0):
        raise call.unsupported("antialias and exclude_outside are not computed")
    axes = [axis % x.dim() for axis in call.get("axes") or range(x.dim())]
    factors = [1.0] * x.dim()
    target = list(x.shape)
    if scales is not None and scales.numel():
        for axis, value in zip(axes, scales.tolist(), strict=True):
            factors[axis] = value
            target[axis] = math.floor(x.shape[axis] * value)
    elif sizes is not None:
        wanted = [int(value) for value in sizes.tolist()]
        policy = call.text("keep_aspect_ratio_policy", "stretch")
        ratios = [want / x.shape[axis] for axis, want in zip(axes, wanted, strict=True)]
        if policy != "stretch":
            one = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [one] * len(axes)
            wanted = [math.floor(x.shape[axis] * one + 0.5) for axis in axes]
        for axis, want, ratio in zip(axes, wanted, ratios, strict=True):
            target[axis], factors[axis] = want, ratio
    settings = (
        call.text("mode", "nearest"),
        call.text("coordinate_transformation_mode", "half_pixel"),
        call.text("nearest_mode", "round_prefer_floor"),
    )
    return _resized(call, x, target, factors, settings)


def _resized(
    call: Call, x: Tensor, sizes: list[int], factors: list[float], settings: tuple[str, str, str]
) -> Tensor:
    for axis, (size, factor) in enumerate(zip(sizes, factors, strict=True)):
        if size == x.shape[axis] and factor == 1.0:
            continue
        places = _coordinates(call, settings[1], x.shape[axis], size, factor).to(x.device)
        x = _along(call, x, axis, places, settings[0], settings[2])
    return x


def _coordinates(call: Call, mode: str, before: int, after: int, factor: float) -> Tensor:
    """Where each index of the resized axis lies on the original one."""
    index = torch.arange(after, dtype=torch.float64)
    match mode:
        case "half_pixel":
            return (index + 0.5) / factor - 0.5
        case "half_pixel_symmetric":
            adjustment = after / (factor * before)
            return before / 2 * (1 - adjustment) + (index + 0.5) / factor - 0.5
        case "pytorch_half_pixel":
            return (index + 0.5) / factor - 0.5 if after > 1 else torch.zeros_like(index)
        case "align_corners":
            return index * (before - 1) / (after - 1) if after > 1 else torch.zeros_like(index)
        case "asymmetric":
            return index / factor
        case _:
            raise call.unsupported(f"coordinates {mode} are not computed")


def _along(call: Call, x: Tensor, axis: int, places: Tensor, mode: str, rounding: str) -> Tensor:
    """Interpolate along one axis at real-valued ``places``."""
    last = x.shape[axis] - 1
    shape = [-1 if number == axis else 1 for number in range(x.dim())]
    if mode == "nearest":
        return x.index_select(axis, _rounded(call, places, rounding).clamp(0, last))
    if mode == "linear":
        places = places.clamp(0, last)
        low = places.floor()
        share = (places - low).to(x.dtype).view(shape)
        lower = x.index_select(axis, low.long())
        upper = x.index_select(axis, (low.long() + 1).clamp_max(last))
        return lower * (1 - share) + upper * share
    if mode == "cubic":
        low = places.floor()
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for offset in range(-1, 3):
            weight = _cubic((places - low - offset).abs(), call.number("cubic_coeff_a", -0.75))
            part = x.index_select(axis, (low.long() + offset).clamp(0, last))
            total = total + part * weight.to(x.dtype).view(shape)
        return total
    raise call.unsupported(f"mode {mode} is unknown")


def _rounded(call: Call, places: Tensor, rounding: str) -> Tensor:
    match rounding:
        case "round_prefer_floor":
            return (places - 0.5).ceil().long()
        case "round_prefer_ceil":
            return (places + 0.5).floor().long()
        case "floor":
            return places.floor().long()
        case "ceil":
            return places.ceil().long()
        case _:
            raise call.unsupported(f"nearest_mode {rounding} is unknown")


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel at distances of at most 2."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance <= 1, near, far)
