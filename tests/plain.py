"""Running a model with onnxruntime and nothing else: the oracle of what any tensor holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnxprune.graph.structure import PruningGraph
from tests.model_builder import Builder

Array = npt.NDArray[np.generic]


def run(model: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """Values of the tensors named, which may be inner ones."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))


def samples(graph: PruningGraph | onnx.ModelProto, count: int, seed: int = 0) -> Array:
    """``count`` normal samples for the graph's first input."""
    model = graph.model if isinstance(graph, PruningGraph) else graph
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(seed).standard_normal((count, *dims[1:])).astype(np.float32)


def tap(graph: PruningGraph, inputs: Array, names: Sequence[str]) -> dict[str, Array]:
    """Values of tensors of the graph's model, all samples in one batch."""
    return run(graph.model, {graph.model.graph.input[0].name: inputs}, names)


def finished(b: Builder, *outputs: str) -> onnx.ModelProto:
    """The builder's model, with what shape inference says of outputs whose shape it was not told."""
    untold = [name for name in outputs if name not in b.shapes]
    if untold:
        tensors = [numpy_helper.from_array(value, name) for name, value in b.constants.items()]
        bare = onnx.helper.make_graph(b.nodes, "g", b.inputs, [], tensors)
        opset = [onnx.helper.make_opsetid("", b.opset)]
        inferred = onnx.shape_inference.infer_shapes(onnx.helper.make_model(bare, opset_imports=opset))
        known = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.value_info}
        for name in untold:
            b.shapes[name] = tuple(dim.dim_value or 1 for dim in known[name])
    return b.model(*outputs)
