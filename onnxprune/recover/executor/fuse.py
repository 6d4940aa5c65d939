"""Conv followed by a frozen BatchNormalization, computed as one Conv.

The scale goes into the weights anew at every step, W' = W gamma / sqrt(var + eps), so gradients
reach W, gamma and beta as before while one pass over the activations, forward and backward, is saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onnxprune.recover.executor.ops.convolution import conv
from onnxprune.recover.executor.registry import Call


@dataclass(frozen=True)
class ConvBatchNorm:
    """The function of a fused pair of nodes; its inputs are those of the Conv, then of the other."""

    epsilon: float

    def __call__(
        self,
        call: Call,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        mean: Tensor,
        variance: Tensor,
    ) -> Tensor:
        """Run the pair; ``call`` is the Conv's."""
        scale = gamma * torch.rsqrt(variance + self.epsilon)
        shift = beta - mean * scale if bias is None else beta + (bias - mean) * scale
        return conv(call, x, weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift)
