"""Rules that follow channels through ops: one small module for each family. Importing this registers them."""

from onnxprune.graph.ops import (
    attention,
    convolution,
    einsum,
    elementwise,
    matmul,
    movement,
    normalization,
    pooling,
    quantization,
    reduction,
    reshaping,
    shape,
)
from onnxprune.graph.ops.registry import find_rule, ruled_ops

__all__ = [
    "attention",
    "convolution",
    "einsum",
    "elementwise",
    "find_rule",
    "matmul",
    "movement",
    "normalization",
    "pooling",
    "quantization",
    "reduction",
    "reshaping",
    "ruled_ops",
    "shape",
]
