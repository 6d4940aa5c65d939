"""Activations: elementwise functions of one tensor, and PRelu."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.recover.executor.registry import Call, op


@op("Relu")
def relu(call: Call, x: Tensor) -> Tensor:
    """max(x, 0)."""
    return F.relu(x) if x.is_floating_point() else x.clamp_min(0)


@op("LeakyRelu", since=6)
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """Alpha x below zero, x above."""
    return F.leaky_relu(x, call.number("alpha", 0.01))


@op("PRelu", since=7)
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """Slope x below zero, x above; the slope broadcasts to x."""
    return torch.where(x < 0, x * slope, x)


@op("ThresholdedRelu", since=10)
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """The input where it is above alpha, 0 elsewhere."""
    return torch.where(x > call.number("alpha", 1.0), x, torch.zeros_like(x))


@op("Elu", since=6)
def elu(call: Call, x: Tensor) -> Tensor:
    """Alpha (e^x - 1) below zero, x above."""
    return F.elu(x, call.number("alpha", 1.0))


@op("Selu", since=6)
def selu(call: Call, x: Tensor) -> Tensor:
    """Gamma times Elu with the alpha of self-normalizing networks."""
    return call.number("gamma", 1.0507009873554805) * F.elu(x, call.number("alpha", 1.6732632423543772))


@op("Celu", since=12)
def celu(call: Call, x: Tensor) -> Tensor:
    """Alpha (e^(x / alpha) - 1) below zero, x above."""
    return F.celu(x, call.number("alpha", 1.0))


@op("Sigmoid", since=6)
def sigmoid(call: Call, x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return torch.sigmoid(x)


@op("HardSigmoid", since=6)
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """Alpha x + beta, cut to 0..1."""
    return (call.number("alpha", 0.2) * x + call.number("beta", 0.5)).clamp(0, 1)


@op("HardSwish", since=14)
def hard_swish(call: Call, x: Tensor) -> Tensor:
    """The input times its hard sigmoid with alpha 1/6 and beta 1/2."""
    return x * (x / 6 + 0.5).clamp(0, 1)


@op("Swish", since=24)
def swish(call: Call, x: Tensor) -> Tensor:
    """The input times the sigmoid of alpha x."""
    return x * torch.sigmoid(call.number("alpha", 1.0) * x)


@op("Tanh", since=6)
def tanh(call: Call, x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return torch.tanh(x)


@op("Gelu", since=20)
def gelu(call: Call, x: Tensor) -> Tensor:
    """The input times the normal distribution function, or its tanh approximation."""
    return F.gelu(x, approximate="tanh" if call.text("approximate", "none") == "tanh" else "none")


@op("Mish", since=18)
def mish(call: Call, x: Tensor) -> Tensor:
    """The input times tanh of its softplus."""
    return F.mish(x)


@op("Softplus")
def softplus(call: Call, x: Tensor) -> Tensor:
    """log(1 + e^x)."""
    return F.softplus(x)


@op("Softsign")
def softsign(call: Call, x: Tensor) -> Tensor:
    """X / (1 + |x|)."""
    return F.softsign(x)


@op("Shrink", since=9)
def shrink(call: Call, x: Tensor) -> Tensor:
    """Towards zero by bias outside -lambd..lambd, 0 inside."""
    threshold, bias = call.number("lambd", 0.5), call.number("bias", 0.0)
    outside = torch.where(x < -threshold, x + bias, torch.zeros_like(x))
    return torch.where(x > threshold, x - bias, outside)


@op("Clip", since=6, until=11)
def clip_attributes(call: Call, x: Tensor) -> Tensor:
    """Cut to the bounds that attributes state."""
    return x.clamp(call.number("min", -math.inf), call.number("max", math.inf))


@op("Clip", since=11)
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Cut to the bounds that inputs give; the upper one wins where they cross."""
    if low is not None:
        x = torch.maximum(x, low.to(x))
    return x if high is None else torch.minimum(x, high.to(x))
