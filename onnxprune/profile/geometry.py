"""Layers as linear maps: the rows (im2col patches) that a layer multiplies with its weight matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.graph.equation import parse_equation
from onnxprune.graph.structure import Layer, PruningGraph
from onnxprune.graph.weights import has_addend


@dataclass(frozen=True)
class Geometry:
    """How a layer reads its input: ``rows @ weight matrix = output``, group by group.

    A Conv of g groups is g independent linear maps from d = C_in / g * prod(kernel) inputs, channel
    by channel, to C_out / g outputs. Gemm and MatMul are the case without kernel. A ConvTranspose is a
    Conv without strides over its input widened by zeros: neighbours come to lie ``widen`` apart.
    ``same`` is an ``auto_pad`` whose pads follow from the input's size, which may be another at every run.
    """

    channel_axis: int
    groups: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    widen: tuple[int, ...] = ()
    same: Literal["", "SAME_UPPER", "SAME_LOWER"] = ""

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
        padding = [amount for pair in reversed(self._padding(source.shape)) for amount in pair]
        padded = functional.pad(self._widened(source), padding)
        index = self._base(source.shape, padded.shape, chosen)[:, None] + self._offsets(padded.shape)[None, :]
        patches = _at(padded.reshape(count, channels, -1), index.reshape(-1))
        grouped = patches.reshape(count, self.groups, channels // self.groups, len(chosen), self.taps)
        return grouped.permute(0, 3, 1, 2, 4).reshape(count * len(chosen), self.groups, -1)

    def targets(self, values: Tensor, chosen: Tensor, channels: Tensor | None = None) -> Tensor:
        """Rows (n * |chosen|, groups, C_out / groups) of an output-shaped tensor, in the order of `rows`.

        Only those ``channels`` of it count, where they are given.
        """
        picked = self._pick(values, chosen, channels)
        return picked.reshape(len(values) * len(chosen), self.groups, -1)

    def _pick(self, values: Tensor, chosen: Tensor, channels: Tensor | None = None) -> Tensor:
        """Values (n, |chosen|, C) at the chosen positions of every sample, of the ``channels`` given."""
        front = values.movedim(self.channel_axis, 1)
        flat = _at(front.reshape(*front.shape[:2], -1), chosen)
        if channels is not None and len(channels) < flat.shape[1]:
            flat = flat.index_select(1, channels.to(values.device))
        return flat.transpose(1, 2)

    def _output_size(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            (size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation, pad in zip(
                self._widened_size(shape),
                self.kernel,
                self.strides,
                self.dilations,
                self._padding(shape),
                strict=True,
            )
        )

    def _padding(self, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Zeros before and after each axis of an input of ``shape``."""
        if not self.same:
            return self.pads
        return tuple(
            _same(size, tap, stride, dilation, upper=self.same == "SAME_UPPER")
            for size, tap, stride, dilation in zip(
                shape[2:], self.kernel, self.strides, self.dilations, strict=True
            )
        )

    def _widened_size(self, shape: Sequence[int]) -> tuple[int, ...]:
        steps = self.widen or (1,) * len(self.kernel)
        return tuple((size - 1) * step + 1 for size, step in zip(shape[2:], steps, strict=True))

    def _widened(self, source: Tensor) -> Tensor:
        if all(step == 1 for step in self.widen):
            return source
        wide = source.new_zeros(*source.shape[:2], *self._widened_size(source.shape))
        wide[(slice(None), slice(None), *(slice(None, None, step) for step in self.widen))] = source
        return wide

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


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Elements (n, C, k) of (n, C, p) at ``index`` (k,); index_select takes several times as long here."""
    return values.gather(2, index.to(values.device).expand(*values.shape[:2], -1))


def layer_geometry(graph: PruningGraph, layer: Layer) -> Geometry | None:
    """The geometry of a layer; None where its output is not rows @ matrix + a constant for each channel.

    That is so for a Gemm that transposes its input, multiplies by zero or adds a computed tensor, for
    a ConvTranspose whose pads follow from a stated output, for an Einsum that is no MatMul, for an
    Attention with its projection, and where a shape is unknown.
    """
    node = graph.node(layer.name)
    if any(name not in graph.shapes for name in (layer.input, layer.output, layer.weight)):
        return None
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    if has_addend(node):
        if layer.bias is None or layer.bias not in graph.shapes:
            return None
        if math.prod(graph.shapes[layer.bias][:-1]) != 1:
            return None
    if layer.op == "Conv":
        return _convolution(attributes, graph.shapes[layer.weight], layer.groups)
    if layer.op == "ConvTranspose":
        return _transposed(attributes, graph.shapes[layer.weight], layer.groups)
    if layer.op not in ("Einsum", "FusedMatMul", "Gemm", "MatMul"):
        return None
    if layer.op == "Einsum" and not _is_matmul(graph, layer, attributes["equation"].decode()):
        return None
    if layer.channel_axis == 0 or attributes.get("alpha", 1.0) == 0.0:
        return None
    return Geometry(layer.channel_axis, 1)


def _is_matmul(graph: PruningGraph, layer: Layer, text: str) -> bool:
    """Whether an Einsum replaces the letter of one axis, by a weight that is one matrix."""
    node = graph.node(layer.name)
    equation = parse_equation(text, [len(graph.shapes[name]) for name in node.input])
    if equation is None or len(graph.shapes[layer.weight]) != 2:
        return False
    position = list(node.input).index(layer.weight)
    weight, data = equation.operands[position], equation.operands[1 - position]
    read, made = weight[layer.weight_in_axis], weight[layer.weight_out_axis]
    return read != made and equation.result == data.replace(read, made)


def _convolution(attributes: Mapping[str, Any], weight: Sequence[int], groups: int) -> Geometry:
    kernel = tuple(weight[2:])
    ones = (1,) * len(kernel)
    strides = tuple(attributes.get("strides", ones))
    dilations = tuple(attributes.get("dilations", ones))
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if mode == "SAME_UPPER" or mode == "SAME_LOWER":
        return Geometry(1, groups, kernel, strides, dilations, same=mode)
    return Geometry(1, groups, kernel, strides, dilations, _stated_pads(attributes, mode, len(kernel)))


def _transposed(attributes: Mapping[str, Any], weight: Sequence[int], groups: int) -> Geometry | None:
    """A ConvTranspose as a Conv: what it pads is taken off a full border of d (k - 1)."""
    kernel = tuple(weight[2:])
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if mode.startswith("SAME") or attributes.get("output_shape"):
        return None
    dilations = tuple(attributes.get("dilations", ones))
    pads = tuple(
        (dilation * (tap - 1) - before, dilation * (tap - 1) - after + extra)
        for tap, dilation, (before, after), extra in zip(
            kernel,
            dilations,
            _stated_pads(attributes, mode, len(kernel)),
            attributes.get("output_padding") or zeros,
            strict=True,
        )
    )
    return Geometry(1, groups, kernel, ones, dilations, pads, tuple(attributes.get("strides", ones)))


def _stated_pads(attributes: Mapping[str, Any], mode: str, axes: int) -> tuple[tuple[int, int], ...]:
    """Pads (before, after) of each axis; a mode of VALID has none."""
    flat = (0,) * (2 * axes) if mode == "VALID" else attributes.get("pads", (0,) * (2 * axes))
    return tuple(zip(flat[:axes], flat[axes:], strict=True))


def _same(size: int, kernel: int, stride: int, dilation: int, *, upper: bool) -> tuple[int, int]:
    total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)


def choose_positions(positions: int, samples: int, rows: int, generator: torch.Generator) -> Tensor:
    """Positions (k,) to read of each sample, at random, so that ``samples`` give about ``rows`` rows."""
    wanted = min(positions, max(1, -(-rows // max(1, samples))))
    return torch.randperm(positions, generator=generator)[:wanted]
