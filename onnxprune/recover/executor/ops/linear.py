"""Matrix products: Gemm, MatMul, Einsum."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.recover.executor.registry import Call, op


@op("Gemm", since=7)
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Alpha A B + beta C, either factor transposed where the node says so."""
    left = a.t() if call.integer("transA", 0) else a
    right = b.t() if call.integer("transB", 0) else b
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    if c is None:
        product = left @ right
        return product if alpha == 1.0 else alpha * product
    if c.dim() <= 2 and c.is_floating_point():
        return torch.addmm(c, left, right, beta=beta, alpha=alpha)
    return alpha * (left @ right) + beta * c


@op("MatMul")
def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Product of matrices on the last two axes, as numpy.matmul."""
    return torch.matmul(a, b)


@op("FusedMatMul", domain="com.microsoft")
def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """MatMul with its factors transposed and its result scaled, as fused models have it."""
    return call.number("alpha", 1.0) * torch.matmul(_turned(call, "A", a), _turned(call, "B", b))


def _turned(call: Call, letter: str, x: Tensor) -> Tensor:
    if call.integer(f"transBatch{letter}", 0):
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if call.integer(f"trans{letter}", 0) else x


@op("Einsum", since=12)
def einsum(call: Call, *values: Tensor) -> Tensor:
    """Sum of products over the axes that the equation names."""
    return torch.einsum(call.text("equation").replace(" ", ""), *values)
