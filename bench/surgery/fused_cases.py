"""Node cases of onnxruntime's own ops, which the onnx package knows nothing of."""

from __future__ import annotations

import numpy as np

from bench.surgery.drawing import Drawn, Random, floats, sizes
from onnxprune.graph.fused import DOMAIN


def activation(random: Random, opset: int) -> Drawn:
    op, shape = str(random.choice(["BiasGelu", "FastGelu", "Gelu", "QuickGelu"])), sizes(random)
    biased = op == "BiasGelu" or (op == "FastGelu" and random.random() < 0.5)
    attributes = {"alpha": 1.5} if op == "QuickGelu" else {}
    inputs = [floats(random, *shape), floats(random, shape[-1])][: 2 if biased else 1]
    return f"{DOMAIN}.{op}", inputs, attributes, 1


def product(random: Random, opset: int) -> Drawn:
    lead = sizes(random, int(random.integers(0, 3)))
    m, k, n = sizes(random, 3)
    turned = [int(flag) for flag in random.integers(0, 2, 2)]
    first, second = ((k, m) if turned[0] else (m, k)), ((n, k) if turned[1] else (k, n))
    attributes = {"transA": turned[0], "transB": turned[1], "alpha": 0.7}
    return (
        f"{DOMAIN}.FusedMatMul",
        [floats(random, *lead, *first), floats(random, *(lead if random.random() < 0.5 else []), *second)],
        attributes,
        1,
    )


def skip_normalization(random: Random, opset: int) -> Drawn:
    simplified = bool(random.integers(2))
    op = "SkipSimplifiedLayerNormalization" if simplified else "SkipLayerNormalization"
    shape = sizes(random, 3)
    scales = [floats(random, shape[-1]) for _ in range(1 if simplified else 2)]
    return f"{DOMAIN}.{op}", [floats(random, *shape), floats(random, *shape), *scales], {"epsilon": 1e-5}, 1


def attention(random: Random, opset: int) -> Drawn:
    batch, tokens, heads, each = sizes(random, 4)
    width = heads * each
    if random.random() < 0.5:
        inputs = [floats(random, batch, tokens, width) for _ in range(3)]
        return f"{DOMAIN}.MultiHeadAttention", inputs, {"num_heads": heads}, 1
    source = int(random.integers(2, 7))
    inputs = [
        floats(random, batch, tokens, source),
        floats(random, source, 3 * width),
        floats(random, 3 * width),
    ]
    return f"{DOMAIN}.Attention", inputs, {"num_heads": heads}, 1


def quantizer(random: Random, opset: int) -> Drawn:
    shape, scale, zero = sizes(random, 3), np.array(0.25, np.float32), np.array(128, np.uint8)
    if random.random() < 0.5:
        return f"{DOMAIN}.QuantizeLinear", [floats(random, *shape), scale, zero], {}, 1
    levels = random.integers(0, 256, shape).astype(np.uint8)
    return f"{DOMAIN}.DequantizeLinear", [levels, scale, zero], {}, 1


FUSED = (activation, product, skip_normalization, attention, quantizer)
