"""Structural checks of a model, without copying its weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.shape_inference
from onnx import TensorProto, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph.shapes import skeleton

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def check_model(model: onnx.ModelProto, *, full: bool = False) -> None:
    """Run the ONNX checker; with ``full`` also strict shape inference. ModelError in one line.

    Big weights stand in as typed inputs: what is found is the same, and no weight is copied.
    """
    bare = skeleton(model)
    del bare.graph.value_info[:]
    bare.graph.value_info.extend(model.graph.value_info)
    try:
        onnx.checker.check_model(bare, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ModelError(
            f"the model is not valid ONNX: {shorten(error)}",
            hint="export it again, or repair it with the tool that wrote it",
        ) from error


def check_numbers(model: onnx.ModelProto) -> None:
    """ModelError where a weight is NaN: nothing that is computed from it means anything."""
    for tensor in model.graph.initializer:
        if tensor.data_type not in _FLOATS or 0 in tensor.dims:
            continue
        # The smallest of numbers with a NaN among them is NaN, without an array of flags.
        if np.isnan(np.float64(numpy_helper.to_array(tensor).min())):
            raise ModelError(
                f"the weight '{tensor.name}' holds values that are not numbers (NaN)",
                hint="export the model again; its training may have diverged",
            )


def without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of everything in ``model`` but the graph's initializers."""
    copy = onnx.ModelProto()
    for source, target in ((model, copy), (model.graph, copy.graph)):
        for descriptor, value in source.ListFields():
            if descriptor.name in ("graph", "initializer"):
                continue
            if isinstance(value, (str, bytes, int)):
                setattr(target, descriptor.name, value)
            else:
                getattr(target, descriptor.name).MergeFrom(value)
    return copy


def shorten(error: BaseException, limit: int = 300) -> str:
    """The error's message as one line of at most ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
