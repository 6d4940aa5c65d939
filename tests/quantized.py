"""Models in QDQ form: by hand, on scales that are powers of two so that sums are exact, and by tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tests.model_builder import Array, Builder

STEP = np.float32(2**-6)


def stored(
    b: Builder, shape: Sequence[int], *, axis: int | None = None, kind: type = np.int8, base: str = "w"
) -> str:
    """A constant behind a DequantizeLinear, with a scale and a zero point for each index of ``axis``."""
    low, high = (-7, 8) if kind is not np.uint8 else (121, 136)
    levels = b.constant(b.random.integers(low, high, tuple(shape)).astype(kind), f"{base}_levels")
    count = () if axis is None else (shape[axis],)
    scale = b.constant((2.0 ** -b.random.integers(4, 7, count)).astype(np.float32), f"{base}_scale")
    zero = 128 if kind is np.uint8 else 0
    zeros = b.constant(np.full(count, zero, kind), f"{base}_zero")
    attributes = {} if axis is None else {"axis": axis}
    return b.shaped(b.node("DequantizeLinear", [levels, scale, zeros], **attributes), *shape)


def rounded(b: Builder, x: str, scale: Array | None = None, *, axis: int | None = None) -> str:
    """An activation that is quantized to int8 and dequantized."""
    step = np.asarray(STEP if scale is None else scale, np.float32)
    inputs = [b.constant(step, "step"), b.constant(np.zeros(step.shape, np.int8), "zero")]
    attributes = {} if axis is None else {"axis": axis}
    levels = b.node("QuantizeLinear", [x, *inputs], **attributes)
    again = [b.constant(step, "step"), b.constant(np.zeros(step.shape, np.int8), "zero")]
    return b.shaped(b.node("DequantizeLinear", [levels, *again], **attributes), *b.shapes[x])


def conv(
    b: Builder,
    x: str,
    channels: int,
    k: int = 1,
    *,
    axis: int | None = 0,
    groups: int = 1,
    kind: type = np.int8,
) -> str:
    """A Conv with quantized weights and an int32 bias."""
    weight = stored(b, (channels, b.shapes[x][1] // groups, k, k), axis=axis, kind=kind)
    bias = stored(b, (channels,), axis=None if axis is None else 0, kind=np.int32, base="b")
    return b.conv(x, channels, k, groups=groups, weight=weight, bias_name=bias)


class _Samples(CalibrationDataReader):
    def __init__(self, name: str, values: Array) -> None:
        self._rows = iter([{name: values[i : i + 1]} for i in range(len(values))])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rows, None)


def quantize(model: onnx.ModelProto, samples: Array, folder: Path, *, per_channel: bool) -> onnx.ModelProto:
    """``model`` as onnxruntime's own tool quantizes it, in QDQ form."""
    source, target = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(model, source)
    quantize_static(
        source,
        target,
        _Samples(model.graph.input[0].name, samples),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(target)
