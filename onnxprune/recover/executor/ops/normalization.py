"""Normalizations: by frozen statistics, by sample, by group, by norm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.recover.executor.registry import Call, Result, op


@op("BatchNormalization", since=7)
def batch_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Normalize each channel by its stored statistics, which stay as they are."""
    if call.integer("training_mode", 0) or call.outputs > 1:
        raise call.unsupported("it is in training mode")
    if not call.integer("spatial", 1):
        raise call.unsupported("spatial=0 keeps statistics for each position")
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.number("epsilon", 1e-5))


@op("InstanceNormalization", since=6)
def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalize each channel of each sample over its positions."""
    axes = list(range(2, x.dim()))
    shape = (1, -1, *[1] * len(axes))
    return _standardized(x, axes, call.number("epsilon", 1e-5)) * scale.view(shape) + bias.view(shape)


@op("LayerNormalization", since=17)
def layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Result:
    """Normalize over the last axes from ``axis`` on; optionally also the mean and 1 / deviation."""
    first = call.integer("axis", -1) % x.dim()
    axes = list(range(first, x.dim()))
    epsilon = call.number("epsilon", 1e-5)
    result = _standardized(x, axes, epsilon) * scale
    if bias is not None:
        result = result + bias
    if call.outputs == 1:
        return result
    mean = x.mean(axes, keepdim=True)
    return result, mean, (x.var(axes, correction=0, keepdim=True) + epsilon).rsqrt()


@op("RMSNormalization", since=23)
def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Divide by the root mean square over the last axes from ``axis`` on."""
    axes = list(range(call.integer("axis", -1) % x.dim(), x.dim()))
    return x * (x.square().mean(axes, keepdim=True) + call.number("epsilon", 1e-5)).rsqrt() * scale


@op("GroupNormalization", since=18, until=21)
def group_norm_by_group(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalize groups of channels; one scale and bias for each group."""
    groups = call.integer("num_groups")
    each = x.shape[1] // groups
    return _grouped(call, x, scale.repeat_interleave(each), bias.repeat_interleave(each))


@op("GroupNormalization", since=21)
def group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalize groups of channels; one scale and bias for each channel."""
    return _grouped(call, x, scale, bias)


def _grouped(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, call.integer("num_groups"), scale, bias, call.number("epsilon", 1e-5))


@op("MeanVarianceNormalization", since=9)
def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    """Zero mean and unit deviation over ``axes``."""
    axes = [int(axis) for axis in call.get("axes") or (0, 2, 3)]
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


@op("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """Divide by the 1- or 2-norm along an axis; zeros stay zeros."""
    norm = torch.linalg.vector_norm(x, call.integer("p", 2), call.integer("axis", -1), keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@op("LRN")
def local_response_normalization(call: Call, x: Tensor) -> Tensor:
    """Divide by (bias + alpha / size * sum of squares of neighbouring channels) ** beta."""
    size = call.integer("size")
    before = math.floor((size - 1) / 2)
    squares = x.square().flatten(2).transpose(1, 2)
    padded = F.pad(squares, (before, size - 1 - before))
    total = padded.unfold(-1, size, 1).sum(-1).transpose(1, 2).reshape(x.shape)
    return x / (call.number("bias", 1.0) + call.number("alpha", 1e-4) / size * total) ** call.number(
        "beta", 0.75
    )


def _standardized(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    return centred * (centred.square().mean(axes, keepdim=True) + epsilon).rsqrt()
