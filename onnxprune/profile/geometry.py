"""Layers as linear maps: the rows (im2col patches) that a layer multiplies with its weight matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.graph.structure import Layer, PruningGraph


@dataclass(frozen=True)
class Geometry:
    """How a layer reads its input: ``rows @ weight matrix = output``, group by group.

    A Conv of g groups is g independent linear maps from d = C_in / g * prod(kernel) inputs, channel
    by channel, to C_out / g outputs. Gemm and MatMul are the case without kernel.
    """

    channel_axis: int
    groups: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()

    @property
    def taps(self) -> int:
        """Columns of a row for each input channel: the size of the kernel."""
        return math.prod(self.kernel)

    def positions(self, shape: Sequence[int]) -> int:
        """Rows that one sample gives, for an input of ``shape`` (batch first)."""
        if not self.kernel:
            return math.prod(shape[1:]) // shape[self.channel_axis]
        return math.prod(self._output_size(shape))

    def rows(self, source: Tensor, chosen: Tensor) -> Tensor:
        """Rows (n * |chosen|, groups, d) of ``source`` at the ``chosen`` positions of every sample."""
        if not self.kernel:
            picked = self._pick(source, chosen)
            return picked.reshape(-1, 1, picked.shape[-1])
        count, channels = source.shape[:2]
        padding = [amount for pair in reversed(self.pads) for amount in pair]
        padded = functional.pad(source, padding)
        index = self._base(source.shape, padded.shape, chosen)[:, None] + self._offsets(padded.shape)[None, :]
        patches = padded.reshape(count, channels, -1).index_select(2, index.reshape(-1).to(source.device))
        grouped = patches.reshape(count, self.groups, channels // self.groups, len(chosen), self.taps)
        return grouped.permute(0, 3, 1, 2, 4).reshape(count * len(chosen), self.groups, -1)

    def targets(self, values: Tensor, chosen: Tensor) -> Tensor:
        """Rows (n * |chosen|, groups, C_out / groups) of an output-shaped tensor, in the order of `rows`."""
        return self._pick(values, chosen).reshape(len(values) * len(chosen), self.groups, -1)

    def _pick(self, values: Tensor, chosen: Tensor) -> Tensor:
        """Values (n, |chosen|, C) at the chosen positions of every sample."""
        front = values.movedim(self.channel_axis, 1)
        flat = front.reshape(*front.shape[:2], -1)
        return flat.index_select(2, chosen.to(values.device)).transpose(1, 2)

    def _output_size(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            (size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation, pad in zip(
                shape[2:], self.kernel, self.strides, self.dilations, self.pads, strict=True
            )
        )

    def _base(self, shape: Sequence[int], padded: Sequence[int], chosen: Tensor) -> Tensor:
        """Flat index, in the padded map, of the first tap of each chosen output position."""
        base = torch.zeros_like(chosen)
        rest, step = chosen, 1
        for size, stride, width in zip(
            reversed(self._output_size(shape)), reversed(self.strides), reversed(padded[2:]), strict=True
        ):
            base = base + (rest % size) * stride * step
            rest, step = rest // size, step * width
        return base

    def _offsets(self, padded: Sequence[int]) -> Tensor:
        offsets = torch.zeros(1, dtype=torch.int64)
        for axis, (kernel, dilation) in enumerate(zip(self.kernel, self.dilations, strict=True)):
            step = math.prod(padded[3 + axis :]) * dilation
            offsets = (offsets[:, None] + torch.arange(kernel)[None, :] * step).reshape(-1)
        return offsets


def layer_geometry(graph: PruningGraph, layer: Layer) -> Geometry | None:
    """The geometry of a layer; None where it is not of the form rows @ matrix.

    That is so for ConvTranspose, for a Gemm that transposes its input, and where a shape is unknown.
    """
    node = graph.node(layer.name)
    shape = graph.shapes.get(layer.input)
    if shape is None or layer.output not in graph.shapes or layer.weight not in graph.shapes:
        return None
    if layer.op == "Conv":
        return _convolution(node, shape, graph.shapes[layer.weight], layer.groups)
    if layer.op == "ConvTranspose" or layer.channel_axis == 0:
        return None
    return Geometry(layer.channel_axis, 1)


def _convolution(node: onnx.NodeProto, shape: Sequence[int], weight: Sequence[int], groups: int) -> Geometry:
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    kernel = tuple(weight[2:])
    ones = (1,) * len(kernel)
    strides = tuple(attributes.get("strides", ones))
    dilations = tuple(attributes.get("dilations", ones))
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = tuple(
            _same(size, tap, stride, dilation, upper=mode == "SAME_UPPER")
            for size, tap, stride, dilation in zip(shape[2:], kernel, strides, dilations, strict=True)
        )
    elif mode == "VALID":
        pads = ((0, 0),) * len(kernel)
    else:
        flat = attributes.get("pads", (0,) * (2 * len(kernel)))
        pads = tuple(zip(flat[: len(kernel)], flat[len(kernel) :], strict=True))
    return Geometry(1, groups, kernel, strides, dilations, pads)


def _same(size: int, kernel: int, stride: int, dilation: int, *, upper: bool) -> tuple[int, int]:
    total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)


def choose_positions(positions: int, samples: int, rows: int, generator: torch.Generator) -> Tensor:
    """Positions (k,) to read of each sample, at random, so that ``samples`` give about ``rows`` rows."""
    wanted = min(positions, max(1, -(-rows // max(1, samples))))
    return torch.randperm(positions, generator=generator)[:wanted]
