"""Conv and ConvTranspose in one to three dimensions, and the windows that they share with pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from onnxprune.recover.executor.registry import Call, op

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def spatial(call: Call, attribute: str, rank: int) -> list[int]:
    """An attribute with one entry for each spatial axis; ones where it is left out."""
    return [int(value) for value in call.get(attribute) or [1] * rank]


def explicit_pads(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis, auto_pad worked out for inputs of these ``sizes``."""
    rank = len(sizes)
    mode = call.text("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * rank, [0] * rank
    if mode == "NOTSET":
        pads = [int(value) for value in call.get("pads") or [0] * (2 * rank)]
        return pads[:rank], pads[rank:]
    begin, end = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        outputs = -(-size // stride)
        total = max(0, (outputs - 1) * stride + dilation * (width - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        begin.append(large if mode == "SAME_LOWER" else small)
        end.append(small if mode == "SAME_LOWER" else large)
    return begin, end


def pad_spatial(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad (or, with negative amounts, cut) the last axes."""
    amounts = [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]
    return F.pad(x, amounts, value=value) if any(amounts) else x


@op("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Correlation of (n, C, ...) with weights (O, C / group, ...)."""
    rank = x.dim() - 2
    function = _rank(call, _CONV, rank)
    strides, dilations = spatial(call, "strides", rank), spatial(call, "dilations", rank)
    begin, end = explicit_pads(call, x.shape[2:], weight.shape[2:], strides, dilations)
    if begin != end or min(begin) < 0:
        x, begin = pad_spatial(x, begin, end), [0] * rank
    return function(x, weight, bias, strides, begin, dilations, call.integer("group", 1))


@op("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The adjoint of Conv, weights (C, O / group, ...); the output is cut to what the pads say."""
    rank = x.dim() - 2
    function = _rank(call, _TRANSPOSED, rank)
    strides, dilations = spatial(call, "strides", rank), spatial(call, "dilations", rank)
    extra = [int(value) for value in call.get("output_padding") or [0] * rank]
    kernel = weight.shape[2:]
    full = [
        (size - 1) * stride + dilation * (width - 1) + 1 + more
        for size, stride, dilation, width, more in zip(
            x.shape[2:], strides, dilations, kernel, extra, strict=True
        )
    ]
    mode = call.text("auto_pad", "NOTSET")
    wanted = call.get("output_shape")
    if wanted is not None or mode in ("SAME_UPPER", "SAME_LOWER"):
        sizes = list(wanted or [s * stride for s, stride in zip(x.shape[2:], strides, strict=True)])[-rank:]
        total = [have - want for have, want in zip(full, sizes, strict=True)]
        # The specification gives the odd one to the end for SAME_UPPER only.
        begin = [value // 2 if mode == "SAME_UPPER" else value - value // 2 for value in total]
        end = [value - first for value, first in zip(total, begin, strict=True)]
    else:
        begin, end = explicit_pads(call, x.shape[2:], kernel, strides, dilations)
    # torch takes output_padding below the stride or dilation only: the rest is appended, then all is cut.
    result = function(x, weight, None, strides, [0] * rank, 0, call.integer("group", 1), dilations)
    last = [more - cut for more, cut in zip(extra, end, strict=True)]
    result = pad_spatial(result, [-cut for cut in begin], last)
    return result if bias is None else result + bias.view(1, -1, *[1] * rank)


def _rank(call: Call, functions: dict[int, Callable[..., Tensor]], rank: int) -> Callable[..., Tensor]:
    if rank not in functions:
        raise call.unsupported(f"it has {rank} spatial axes")
    return functions[rank]
