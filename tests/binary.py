"""A small convolutional network that tells which half of an image is brighter, with every kind of output."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SAMPLES = 160

HEADS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "logit, N x 1": ((), (1,)),
    "p, N x 1": (("Sigmoid",), (1,)),
    "logit, N": (("Reshape",), ()),
    "p, N": (("Sigmoid", "Reshape"), ()),
    "p, squeezed": (("Sigmoid", "Squeeze"), ()),
    "sigmoids, N x 2": (("Sigmoid",), (2,)),
}
"""The ops behind the last layer, and the shape of the output for a sample."""


def images(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Noisy float images (n, 3, 8, 8) and their labels (n,): 1 where the left half is the brighter one."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, SAMPLES)
    x = random.standard_normal((SAMPLES, 3, 8, 8))
    x[..., :4] += 0.2 * (2 * labels - 1)[:, None, None, None]
    return x.astype(np.float32), labels


def network(head: str, *, batch: int | str = "N") -> onnx.ModelProto:
    """Two convolutions at random, and a last layer fitted to the labels, with ``head`` of `HEADS`."""
    ops, shape = HEADS[head]
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((8, 3, 3, 3)) / 5,
        "w2": random.standard_normal((12, 8, 3, 3)) / 8,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("AveragePool", ["r2"], ["a"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["a"], ["features"]),
    ]
    x, labels = images()
    given = outputs(_model(nodes, weights, "features", ["N", 48], "N"), x)
    given = np.column_stack([given, np.ones(len(given))])
    solved = np.linalg.lstsq(given, 3.0 * (2 * labels - 1), rcond=None)[0]
    columns = np.stack([-solved, solved], 1) if shape == (2,) else solved[:, None]
    weights |= {"g": columns[:-1], "b": columns[-1], "flat": np.array([-1])}
    nodes.append(helper.make_node("Gemm", ["features", "g", "b"], ["y"], "last"))
    for number, op in enumerate(ops):
        nodes[-1].output[0] = f"y{number}"
        nodes.append(helper.make_node(op, [f"y{number}", *(["flat"] if op == "Reshape" else [])], ["y"]))
    return _model(nodes, weights, "y", [batch, *shape], batch)


def outputs(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The model's only output for ``x``, with nothing of the package's in between."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given: np.ndarray = session.run(None, {"x": x})[0]
    return given


def probabilities(head: str, values: np.ndarray) -> list[tuple[float, float]]:
    """What the output's ``values`` say of both classes, sample by sample."""
    found = []
    for row in values.astype(np.float64):
        p = np.ravel(row) if "Sigmoid" in HEADS[head][0] else 1 / (1 + np.exp(-np.ravel(row)))
        odds = p / (1 - p)
        ones = odds[1] / odds.sum() if len(p) == 2 else p[0]
        found.append((1 - ones, ones))
    return found


def _model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], output: str, shape: list[int | str],
    batch: int | str,
) -> onnx.ModelProto:  # fmt: skip
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "binary",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(value.astype(np.int64 if name == "flat" else np.float32), name)
            for name, value in weights.items()
            if name in read
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
