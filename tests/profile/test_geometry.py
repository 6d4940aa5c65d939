"""Rows times matrix must be what onnxruntime computes, for every form of layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.structure import Layer, PruningGraph
from onnxprune.graph.weights import Constants, read_bias, read_matrix, write_matrix
from onnxprune.profile.geometry import choose_positions, layer_geometry
from tests.model_builder import Builder
from tests.plain import Array, finished, samples, tap


def check(graph: PruningGraph, layer: Layer, count: int = 2, inputs: Array | None = None) -> None:
    """All rows of the layer, or some, give its output; writing the matrix that was read changes nothing."""
    geometry = layer_geometry(graph, layer)
    assert geometry is not None
    given = samples(graph, count) if inputs is None else inputs
    found = tap(graph, given, [layer.input, layer.output])
    source, output = torch.from_numpy(found[layer.input]), torch.from_numpy(found[layer.output])
    constants = Constants(graph.model)
    matrix = torch.from_numpy(read_matrix(constants, layer))
    bias = read_bias(constants, layer, output.shape[layer.channel_axis])
    positions = geometry.positions(source.shape)
    assert positions * output.shape[layer.channel_axis] * len(output) == output.numel()
    everything = torch.arange(positions)
    for chosen in (everything, torch.randperm(positions)[: max(1, positions // 2)]):
        rows = geometry.rows(source, chosen)
        assert rows.shape == (len(source) * len(chosen), layer.groups, matrix.shape[1])
        result = torch.einsum("rgd,gdo->rgo", rows.double(), matrix)
        result += torch.from_numpy(bias).reshape(layer.groups, -1)
        assert torch.allclose(result.float(), geometry.targets(output, chosen), rtol=1e-5, atol=1e-5)
    before = constants.read(layer.weight)
    write_matrix(constants, layer, matrix.numpy())
    assert np.allclose(constants.read(layer.weight), before, rtol=1e-6, atol=0)


def one_layer(build: Callable[[Builder], str]) -> tuple[PruningGraph, Layer]:
    b = Builder()
    graph = analyze_graph(finished(b, build(b)))
    return graph, graph.layers[0]


def convolution(
    op: str, channels: int, size: tuple[int, ...], weight: tuple[int, ...], **attributes: Any
) -> Callable[[Builder], str]:
    def build(b: Builder) -> str:
        x = b.input((1, channels, *size), dynamic=True)
        outputs = weight[0] if op == "Conv" else weight[1] * attributes.get("group", 1)
        return str(b.node(op, [x, b.weight(*weight), b.weight(outputs)], **attributes))

    return build


CONVOLUTIONS = {
    "1d": convolution("Conv", 3, (9,), (4, 3, 3), pads=[1, 1], strides=[2]),
    "2d plain": convolution("Conv", 3, (5, 6), (4, 3, 3, 3)),
    "2d asymmetric pads": convolution("Conv", 3, (5, 6), (4, 3, 3, 2), pads=[2, 0, 1, 3], strides=[2, 1]),
    "2d dilated": convolution("Conv", 2, (9, 8), (4, 2, 3, 2), dilations=[2, 3], pads=[1, 2, 0, 1]),
    "2d stride and dilation": convolution("Conv", 2, (11, 8), (3, 2, 3, 3), dilations=[2, 1], strides=[3, 2]),
    "3d": convolution("Conv", 2, (4, 5, 6), (3, 2, 2, 3, 1), pads=[1, 0, 2, 0, 1, 0], strides=[1, 2, 2]),
    "grouped": convolution("Conv", 6, (5, 5), (4, 3, 3, 3), group=2, pads=[1] * 4),
    "depthwise": convolution("Conv", 4, (5, 5), (4, 1, 3, 3), group=4, strides=[2, 2]),
    "depthwise, multiplied": convolution("Conv", 3, (5, 5), (6, 1, 3, 3), group=3, pads=[1] * 4),
    "valid": convolution("Conv", 3, (5, 6), (4, 3, 3, 3), auto_pad="VALID", strides=[2, 2]),
    "stated kernel": convolution("Conv", 3, (5, 6), (4, 3, 1, 1), kernel_shape=[1, 1]),
    "transposed": convolution("ConvTranspose", 4, (3, 4), (4, 5, 2, 2), strides=[2, 2]),
    "transposed, padded": convolution(
        "ConvTranspose", 4, (4, 5), (4, 3, 3, 3), strides=[2, 3], pads=[1, 0, 2, 1], output_padding=[1, 2]
    ),
    "transposed, dilated": convolution("ConvTranspose", 2, (4, 3), (2, 3, 3, 2), dilations=[2, 3]),
    "transposed, cut": convolution("ConvTranspose", 2, (5, 5), (2, 3, 1, 2), pads=[1, 1, 1, 1]),
    "transposed, grouped": convolution("ConvTranspose", 6, (3, 3), (6, 2, 3, 3), group=3, strides=[2, 2]),
    "transposed, 1d": convolution("ConvTranspose", 3, (6,), (3, 2, 4), strides=[3], pads=[1, 2]),
    "transposed, valid": convolution("ConvTranspose", 3, (3, 3), (3, 2, 3, 3), auto_pad="VALID"),
}


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_convolution(form: str) -> None:
    check(*one_layer(CONVOLUTIONS[form]))


@pytest.mark.parametrize("mode", ("SAME_UPPER", "SAME_LOWER"))
@pytest.mark.parametrize("size", (5, 6, 7, 8))
@pytest.mark.parametrize("stride", (1, 2, 3))
def test_same_padding(mode: str, size: int, stride: int) -> None:
    check(*one_layer(convolution("Conv", 2, (size, size), (3, 2, 4, 3), auto_pad=mode, strides=[stride] * 2)))


@pytest.mark.parametrize("size", (6, 7, 8, 9))
def test_same_padding_follows_the_size_of_each_input(size: int) -> None:
    """It once was that of the size which analysis had guessed, and recovery was fitted to shifted patches."""
    b = Builder()
    build = convolution("Conv", 2, (8, 8), (3, 2, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
    model = finished(b, build(b))
    for value in (*model.graph.input, *model.graph.output):
        for axis in (2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    graph = analyze_graph(model)
    given = np.random.default_rng(size).standard_normal((2, 2, size, size)).astype(np.float32)
    check(graph, graph.layers[0], inputs=given)


def test_same_padding_with_a_stride_above_the_kernel() -> None:
    build = convolution("Conv", 2, (7, 7), (3, 2, 1, 2), auto_pad="SAME_UPPER", strides=[2, 3])
    check(*one_layer(build))


@pytest.mark.parametrize("trans", (0, 1))
@pytest.mark.parametrize("bias", ((), (1,), (4,), (1, 4), None))
def test_gemm(trans: int, bias: tuple[int, ...] | None) -> None:
    def build(b: Builder) -> str:
        weight = b.weight(4, 5) if trans else b.weight(5, 4)
        more = [] if bias is None else [b.constant(b.random.standard_normal(bias).astype(np.float32))]
        inputs = [b.input((1, 5), dynamic=True), weight, *more]
        return str(b.node("Gemm", inputs, transB=trans, alpha=0.5, beta=-2.0))

    check(*one_layer(build), count=3)


@pytest.mark.parametrize("shape", ((1, 5), (1, 3, 5), (1, 2, 3, 5)))
def test_matmul_with_the_weight_on_the_right(shape: tuple[int, ...]) -> None:
    check(*one_layer(lambda b: b.matmul(b.input(shape, dynamic=True), 4)), count=3)


@pytest.mark.parametrize("shape", ((1, 5, 3), (1, 2, 5, 3)))
def test_matmul_with_the_weight_on_the_left(shape: tuple[int, ...]) -> None:
    def build(b: Builder) -> str:
        return str(b.node("MatMul", [b.weight(4, 5), b.input(shape, dynamic=True)]))

    check(*one_layer(build), count=3)


def test_matmul_with_a_weight_of_more_axes() -> None:
    def build(b: Builder) -> str:
        return str(b.node("MatMul", [b.input((1, 2, 3, 5), dynamic=True), b.weight(1, 1, 5, 4)]))

    check(*one_layer(build))


def test_rows_of_a_flattened_batch() -> None:
    def build(b: Builder) -> str:
        x = b.reshape(b.input((1, 3, 5), dynamic=True), -1, 5)
        return str(b.node("Gemm", [x, b.weight(5, 4), b.weight(4)]))

    check(*one_layer(build))


def _gemm_that_transposes_its_input(b: Builder) -> str:
    return str(b.node("Gemm", [b.input((5, 2)), b.weight(5, 4)], transA=1))


def _gemm_with_a_bias_for_each_row(b: Builder) -> str:
    return str(b.node("Gemm", [b.input((2, 5)), b.weight(5, 4), b.weight(2, 4)]))


def _gemm_with_a_computed_bias(b: Builder) -> str:
    x = b.input((1, 4))
    return str(b.node("Gemm", [x, b.weight(4, 4), b.like("Relu", x)]))


def _gemm_times_zero(b: Builder) -> str:
    return str(b.node("Gemm", [b.input((1, 4)), b.weight(4, 4), b.weight(4)], alpha=0.0))


def _deconvolution_to_a_stated_shape(b: Builder) -> str:
    x, weight = b.input((1, 3, 4, 4)), b.weight(3, 2, 3, 3)
    return str(b.node("ConvTranspose", [x, weight], strides=[2, 2], output_shape=[8, 8]))


def _deconvolution_of_the_same_size(b: Builder) -> str:
    x, weight = b.input((1, 3, 4, 4)), b.weight(3, 2, 3, 3)
    return str(b.node("ConvTranspose", [x, weight], strides=[2, 2], auto_pad="SAME_UPPER"))


@pytest.mark.parametrize(
    "build",
    [
        _gemm_that_transposes_its_input,
        _gemm_with_a_bias_for_each_row,
        _gemm_with_a_computed_bias,
        _gemm_times_zero,
        _deconvolution_to_a_stated_shape,
        _deconvolution_of_the_same_size,
    ],
)
def test_what_is_no_product_of_rows(build: Callable[[Builder], str]) -> None:
    assert layer_geometry(*one_layer(build)) is None


def test_positions_are_distinct_and_as_many_as_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    for positions, number, rows, expected in (
        (10, 4, 12, 3),
        (10, 4, 13, 4),
        (10, 4, 400, 10),
        (10, 400, 4, 1),
    ):
        chosen = choose_positions(positions, number, rows, generator)
        assert len(chosen) == len(torch.unique(chosen)) == expected
        assert int(chosen.min()) >= 0 and int(chosen.max()) < positions
