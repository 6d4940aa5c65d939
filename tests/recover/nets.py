"""Small nets for the tests of recovery."""

from __future__ import annotations

import numpy as np
import onnx

from tests.model_builder import Builder


def resnet(*, norm: bool = True, seed: int = 0, batch: int | None = None) -> onnx.ModelProto:
    """Stem, a residual block, a downsampling block with a projection, pool, Gemm."""
    b = Builder(seed=seed)

    def conv(x: str, channels: int, k: int, stride: int = 1) -> str:
        y = b.conv(x, channels, k, stride=stride, bias=not norm)
        return b.batch_norm(y) if norm else y

    x = b.input((batch or 1, 3, 8, 8), dynamic=batch is None)
    x = b.relu(conv(x, 6, 3))
    x = b.relu(b.like("Add", conv(b.relu(conv(x, 8, 3)), 6, 3), x))
    y = conv(b.relu(conv(x, 8, 3, 2)), 10, 3)
    x = b.relu(b.like("Add", y, conv(x, 10, 1, 2)))
    return b.model(b.gemm(b.flatten(b.global_pool(x)), 4))


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each BatchNormalization folded into the Conv before it, as exporters do."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    made = {node.output[0]: node for node in result.graph.node}
    nodes = []
    for node in result.graph.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        conv = made[node.input[0]]
        gamma, beta, mean, variance = (onnx.numpy_helper.to_array(tensors[n]) for n in node.input[1:5])
        epsilon = next(entry.f for entry in node.attribute if entry.name == "epsilon")
        scale = gamma / np.sqrt(variance + epsilon)
        weight = onnx.numpy_helper.to_array(tensors[conv.input[1]]) * scale[:, None, None, None]
        tensors[conv.input[1]].CopyFrom(onnx.numpy_helper.from_array(weight, conv.input[1]))
        bias = onnx.numpy_helper.from_array((beta - mean * scale).astype(np.float32), node.input[2])
        tensors[node.input[2]].CopyFrom(bias)
        conv.input.append(node.input[2])
        conv.output[0] = node.output[0]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    del result.graph.value_info[:]
    return result


def branches() -> onnx.ModelProto:
    """Concat of a Conv, a grouped Conv and a depthwise one; a strided Slice + Pad shortcut."""
    b = Builder(seed=1)
    x = b.relu(b.conv(b.input((1, 3, 8, 8), dynamic=True), 4, 3))
    parts = [b.conv(x, 3, 1), b.conv(x, 4, 3, groups=2), b.conv(x, 4, 3, groups=4)]
    x = b.relu(b.batch_norm(b.concat(*parts)))
    short = b.pad(b.slice(b.slice(x, 2, 0, 8, 2), 3, 0, 8, 2), [0, 1, 0, 0, 0, 2, 0, 0])
    x = b.relu(b.like("Add", b.batch_norm(b.conv(b.relu(b.conv(x, 6, 3, stride=2)), 14, 3)), short))
    x = b.relu(b.conv(x, 5, 3))
    return b.model(b.matmul(b.flatten(b.pool("MaxPool", x)), 3))
