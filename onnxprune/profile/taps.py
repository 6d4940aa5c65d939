"""Handing a model's weights over beside the protobuf."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

_SMALL: Final = 4096
"""Bytes up to which an initializer stays inline: shape inference reads shapes and axes from it."""

_NUMPY_TYPES: Final = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT16,
        TensorProto.UINT16,
        TensorProto.INT32,
        TensorProto.UINT32,
        TensorProto.INT64,
        TensorProto.UINT64,
    }
)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the model's initializers, from their shapes: measuring the message would serialize it."""
    return sum(_bytes(tensor) for tensor in model.graph.initializer)


def detach_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, npt.NDArray[Any]]]:
    """A copy of ``model`` without its large weights, and these as arrays by name.

    A protobuf holds at most 2 GiB; onnxruntime takes the arrays as external initializers.
    """
    skeleton = onnx.ModelProto()
    skeleton.ir_version = model.ir_version
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    source, target = model.graph, skeleton.graph
    target.name = source.name
    target.node.extend(source.node)
    target.input.extend(source.input)
    target.output.extend(source.output)
    target.value_info.extend(source.value_info)
    target.sparse_initializer.extend(source.sparse_initializer)
    target.quantization_annotation.extend(source.quantization_annotation)
    weights: dict[str, npt.NDArray[Any]] = {}
    for tensor in source.initializer:
        if tensor.data_type not in _NUMPY_TYPES or _bytes(tensor) <= _SMALL:
            target.initializer.append(tensor)
            continue
        weights[tensor.name] = np.ascontiguousarray(numpy_helper.to_array(tensor))
        stub = target.initializer.add()
        stub.name = tensor.name
        stub.data_type = tensor.data_type
        stub.dims.extend(tensor.dims)
        stub.data_location = TensorProto.EXTERNAL
        entry = stub.external_data.add()
        entry.key, entry.value = "location", "detached-weights"
    return skeleton, weights


def _bytes(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
