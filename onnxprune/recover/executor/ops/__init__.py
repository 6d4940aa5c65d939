"""The ops that the executor runs: one small module for each family. Importing this registers them."""

from onnxprune.recover.executor.ops import (
    activation,
    arithmetic,
    attention,
    convolution,
    fused,
    indexing,
    linear,
    movement,
    normalization,
    padding,
    pooling,
    reduction,
    resize,
    shape,
    softmax,
)

__all__ = [
    "activation",
    "arithmetic",
    "attention",
    "convolution",
    "fused",
    "indexing",
    "linear",
    "movement",
    "normalization",
    "padding",
    "pooling",
    "reduction",
    "resize",
    "shape",
    "softmax",
]
