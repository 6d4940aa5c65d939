"""Pooling with windows, and over all positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.recover.executor.ops.convolution import explicit_pads, pad_spatial, spatial
from onnxprune.recover.executor.registry import Call, op

_MAX: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class _Window:
    """Where the windows of a pooling node lie over an input of ``sizes``.

    ``over`` is how far the last window of each axis, with ceil_mode, reaches past the padded input.
    """

    def __init__(self, call: Call, sizes: Sequence[int]) -> None:
        rank = len(sizes)
        self.kernel = [int(value) for value in call.get("kernel_shape")]
        self.strides = spatial(call, "strides", rank)
        self.dilations = spatial(call, "dilations", rank)
        self.begin, self.end = explicit_pads(call, sizes, self.kernel, self.strides, self.dilations)
        self.over = [0] * rank
        if call.integer("ceil_mode", 0) and call.text("auto_pad", "NOTSET") == "NOTSET":
            for axis, size in enumerate(sizes):
                reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
                room = size + self.begin[axis] + self.end[axis] - reach
                steps = -(-room // self.strides[axis])
                if steps * self.strides[axis] >= size + self.begin[axis]:
                    steps -= 1  # a window has to start inside the input or the padding before it
                self.over[axis] = steps * self.strides[axis] - room

    @property
    def plain(self) -> bool:
        """Whether torch's own symmetric padding does."""
        half = all(2 * pad <= width for pad, width in zip(self.begin, self.kernel, strict=True))
        return self.begin == self.end and not any(self.over) and half and min(self.begin) >= 0

    @property
    def reach(self) -> list[int]:
        """Padding behind each axis, the last window's reach included."""
        return [pad + over for pad, over in zip(self.end, self.over, strict=True)]


@op("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor:
    """Largest value of each window; padding never wins."""
    if call.outputs > 1:
        raise call.unsupported("it gives the places of the maxima")
    rank = x.dim() - 2
    if rank not in _MAX:
        raise call.unsupported(f"it has {rank} spatial axes")
    window = _Window(call, x.shape[2:])
    pads = window.begin
    if not window.plain:
        x, pads = pad_spatial(x, window.begin, window.reach, -math.inf), [0] * rank
    return _MAX[rank](x, window.kernel, window.strides, pads, window.dilations)


@op("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """Mean of each window, over what lies in the input, or with count_include_pad in the padding too."""
    rank = x.dim() - 2
    window = _Window(call, x.shape[2:])
    with_pads = bool(call.integer("count_include_pad", 0))
    if rank not in _AVERAGE:
        raise call.unsupported(f"it has {rank} spatial axes")
    if window.dilations == [1] * rank and window.plain:
        return _AVERAGE[rank](x, window.kernel, window.strides, window.begin, False, with_pads)
    counted = x.new_ones(1, 1, *x.shape[2:])
    if with_pads:
        # What ceil_mode adds behind the padding is never counted.
        counted = pad_spatial(counted, window.begin, window.end, 1.0)
        counted = pad_spatial(counted, [0] * rank, window.over)
    else:
        counted = pad_spatial(counted, window.begin, window.reach)
    x = pad_spatial(x, window.begin, window.reach)
    return _window_sum(x, window) / _window_sum(counted, window)


@op("LpPool", since=2)
def lp_pool(call: Call, x: Tensor) -> Tensor:
    """The p-norm of each window."""
    window = _Window(call, x.shape[2:])
    p = call.integer("p", 2)
    x = pad_spatial(x, window.begin, window.reach)
    return _window_sum(x.abs() ** p, window) ** (1 / p)


def _window_sum(x: Tensor, window: _Window) -> Tensor:
    for axis, (width, stride, dilation) in enumerate(
        zip(window.kernel, window.strides, window.dilations, strict=True), start=2
    ):
        reach = dilation * (width - 1) + 1
        x = x.unfold(axis, reach, stride)[..., ::dilation].sum(-1)
    return x


@op("GlobalAveragePool")
def global_average_pool(call: Call, x: Tensor) -> Tensor:
    """Mean over all positions, whose axes stay with size 1."""
    return x.mean(_positions(x), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(call: Call, x: Tensor) -> Tensor:
    """Largest value over all positions."""
    return x.amax(_positions(x), keepdim=True)


@op("GlobalLpPool", since=2)
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """The p-norm over all positions."""
    norm: Tensor = torch.linalg.vector_norm(x, call.integer("p", 2), _positions(x), keepdim=True)
    return norm


def _positions(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))
