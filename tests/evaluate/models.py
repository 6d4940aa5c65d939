"""Tiny classifiers and image files for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIZE = 8


def classifier(
    classes: int = 10,
    *,
    seed: int = 0,
    batch: int | str = "N",
    layout: str = "nchw",
    dtype: int = TensorProto.FLOAT,
    channels: int = 3,
    size: int | str = SIZE,
    tail: tuple[int, ...] = (),
    softmax: bool = False,
) -> onnx.ModelProto:
    """A random Conv -> Relu -> pool -> Gemm classifier; ``tail`` appends axes to its output."""
    random = np.random.default_rng(seed)
    image = (channels, size, size) if layout == "nchw" else (size, size, channels)
    nodes = []
    name = "input"
    if dtype != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [name], ["as_float"], to=TensorProto.FLOAT))
        name = "as_float"
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", [name], ["as_nchw"], perm=[0, 3, 1, 2]))
        name = "as_nchw"
    weights = {
        "w": random.standard_normal((6, channels, 3, 3)),
        "g": random.standard_normal((6, classes)) * 3,
        "b": random.standard_normal(classes) * 0.1,
    }
    nodes += [
        helper.make_node("Conv", [name, "w"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "g", "b"], ["scores"]),
    ]
    output = "scores"
    if softmax:
        nodes.append(helper.make_node("Softmax", [output], ["probabilities"], axis=1))
        output = "probabilities"
    if tail:
        nodes.append(helper.make_node("Reshape", [output, "shape"], ["shaped"]))
        output = "shaped"
    initializers = [numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([-1, classes, *tail], dtype=np.int64), "shape"))
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("input", dtype, [batch, *image])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, classes, *tail])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def plain_scores(model: onnx.ModelProto, inputs: np.ndarray, batch: int = 1) -> np.ndarray:
    """Scores by a plain onnxruntime loop, with nothing of the package's in between."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [
        session.run(None, {name: inputs[start : start + batch]})[0] for start in range(0, len(inputs), batch)
    ]
    return np.concatenate(parts).reshape(len(inputs), -1)


def plain_counts(scores: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """Correct top-1 and top-5 answers, by a loop over samples and a stable sort."""
    top1 = top5 = 0
    for row, label in zip(scores, labels, strict=True):
        order = sorted(range(len(row)), key=lambda index: (-row[index], index))
        top1 += order[0] == label
        top5 += label in order[:5]
    return top1, top5


def pixels(count: int, *, size: int = SIZE, channels: int = 3, seed: int = 1) -> np.ndarray:
    """Random uint8 images (count, size, size, channels), each of its own brightness."""
    random = np.random.default_rng(seed)
    level = random.integers(30, 226, (count, 1, 1, channels))
    return np.clip(level + random.integers(-30, 31, (count, size, size, channels)), 0, 255).astype(np.uint8)


def save_png(array: np.ndarray, path: Path) -> Path:
    """Write one image (H, W, C) without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path)
    return path


def as_inputs(images: np.ndarray) -> np.ndarray:
    """The default preprocessing written out: x / 255, NCHW."""
    return np.ascontiguousarray((images / 255.0).astype(np.float32).transpose(0, 3, 1, 2))
