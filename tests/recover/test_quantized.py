"""Recovery of quantized layers: refitted on the levels that their scales give, or left with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.joins import Targets
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.weights import Constants, read_matrix, rounded_matrix, write_matrix
from onnxprune.progress import SilentProgress
from onnxprune.recover.closed_form import recover
from tests.model_builder import Builder
from tests.plain import Array, run, samples
from tests.quantized import conv, quantize, stored
from tests.recover.nets import folded, resnet
from tests.strategies import random_plan


def error(model: onnx.ModelProto, other: onnx.ModelProto, inputs: Array) -> float:
    name = model.graph.output[0].name
    one, two = (run(entry, {"x": inputs}, [name])[name] for entry in (model, other))
    return float(((one - two) ** 2).sum() / ((one - one.mean(0)) ** 2).sum())


@pytest.mark.parametrize("per_channel", [False, True])
def test_levels_are_refitted_and_scales_stay(per_channel: bool, tmp_path: Path) -> None:
    plain = folded(resnet())
    inputs = samples(plain, 160)
    model = quantize(plain, inputs[:16], tmp_path, per_channel=per_channel)
    graph = analyze_graph(model)
    plan = random_plan(graph, 3, 0.4)
    pruned = rewrite(graph, plan)
    recovery = recover(graph, plan, pruned, inputs, provider="cpu", threads=1, progress=SilentProgress())
    assert any(fit.kept for fit in recovery.fits)
    others = samples(plain, 64, seed=9)
    assert error(model, recovery.model, others) < 0.7 * error(model, pruned, others)
    before = {t.name: t for t in pruned.graph.initializer}
    after = {t.name: t for t in recovery.model.graph.initializer}
    assert before.keys() == after.keys() and recovery.model.graph.node == pruned.graph.node
    for name, tensor in before.items():
        assert tensor.data_type == after[name].data_type and tensor.dims == after[name].dims
        if tensor.data_type == onnx.TensorProto.FLOAT:
            assert np.array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(after[name]))


@pytest.mark.parametrize(("zero", "joined"), [(3, True), (-128, False)])
def test_a_join_is_seen_through_quantizers_that_leave_room_below_zero(zero: int, joined: bool) -> None:
    """One that cuts at zero is a ReLU, and what it hides can't be told from the join."""
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 6, 6)), 4, 3))
    y = b.conv(x, 4, 3)
    for op in ("QuantizeLinear", "DequantizeLinear"):
        y = b.node(op, [y, b.constant(np.float32(0.05)), b.constant(np.int8(zero))])
    join = b.like("Add", x, y)
    graph = analyze_graph(b.model(b.conv(join, 3)))
    target = Targets(graph).of(graph.layers[1])
    assert (target.tensor, target.shortcut) == ((join, x) if joined else (graph.layers[1].output, None))


def test_levels_that_several_nodes_read_are_no_target() -> None:
    """Between a QuantizeLinear and its DequantizeLinears a tensor holds levels, which are no outputs."""
    b = Builder()
    x = b.conv(b.input((1, 3, 6, 6)), 4, 3)
    levels = b.node("QuantizeLinear", [x, b.constant(np.float32(0.02)), b.constant(np.int8(3))])
    values = []
    for _ in range(2):
        again = [levels, b.constant(np.float32(0.02)), b.constant(np.int8(3))]
        values.append(b.shaped(b.node("DequantizeLinear", again), *b.shapes[x]))
    graph = analyze_graph(b.model(b.conv(b.like("Add", b.relu(values[0]), values[1]), 3)))
    target = Targets(graph).of(graph.layers[0])
    assert (target.tensor, target.affine.chain, target.clip.clips) == (graph.layers[0].output, (), False)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_what_is_written_is_read_on_the_nearest_levels(axis: int | None, kind: type) -> None:
    b = Builder()
    model = b.model(conv(b, conv(b, b.input((1, 3, 6, 6)), 6, 3, axis=axis, kind=kind), 4, axis=axis))
    graph = analyze_graph(model)
    constants = Constants(graph.model)
    for layer in graph.layers:
        old = read_matrix(constants, layer)
        assert np.array_equal(rounded_matrix(constants, layer, old), old)
        wanted = old + np.random.default_rng(0).uniform(-0.1, 0.1, old.shape)
        near = rounded_matrix(constants, layer, wanted)
        assert np.abs(near - wanted).max() <= 2.0**-4 / 2
        write_matrix(constants, layer, wanted)
        assert np.array_equal(read_matrix(constants, layer), near)


def test_weights_that_the_model_quantizes_itself_are_written_as_floats() -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 6, 6)), 6, 3)
    scale, zero = b.constant(np.float32(0.125)), b.constant(np.int8(0))
    levels = b.node("QuantizeLinear", [b.weight(4, 6, 1, 1), scale, zero])
    weight = b.node("DequantizeLinear", [levels, scale, zero])
    graph = analyze_graph(b.model(b.conv(x, 4, weight=weight)))
    constants, layer = Constants(graph.model), graph.layers[1]
    assert constants.quantized(layer.weight) and constants.writable(layer.weight)
    wanted = read_matrix(constants, layer) + 0.3
    near = rounded_matrix(constants, layer, wanted)
    write_matrix(constants, layer, wanted)
    assert np.array_equal(read_matrix(constants, layer), near)
    assert np.abs(near - wanted).max() <= 0.0625 + 1e-6


def test_levels_below_a_byte_are_left_alone() -> None:
    b = Builder(opset=21)
    x = b.relu(b.conv(b.input((1, 3, 6, 6), dynamic=True), 6, 3))
    name = stored(b, (4, 6, 1, 1), axis=0)
    levels = b.nodes[-1].input
    b.constants[levels[0]] = b.constants[levels[0]].astype(onnx.helper.tensor_dtype_to_np_dtype(22))
    b.constants[levels[2]] = b.constants[levels[2]].astype(onnx.helper.tensor_dtype_to_np_dtype(22))
    model = b.model(b.conv(x, 4, weight=name))
    graph = analyze_graph(model)
    plan = random_plan(graph, 0, 0.5)
    pruned = rewrite(graph, plan)
    recovery = recover(
        graph, plan, pruned, samples(graph, 20), provider="cpu", threads=1, progress=SilentProgress()
    )
    assert recovery.fits[0].reason == "its weights are packed below a byte"
    assert recovery.model.graph.initializer == pruned.graph.initializer
