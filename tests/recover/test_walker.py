"""What a walker holds or streams at any cut, against onnxruntime with taps on the whole model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.graph.prepare import prepare
from onnxprune.graph.shapes import infer_concrete
from onnxprune.recover import walker as module
from onnxprune.recover.walker import Walker
from tests.model_builder import Builder
from tests.plain import Array, finished, run, samples
from tests.recover.nets import branches, folded, resnet


def start(model: onnx.ModelProto, x: Array, batch: int | None = None) -> Walker:
    return Walker(model, x, infer_concrete(model), batch=batch, provider="cpu", threads=1)


def expected(
    model: onnx.ModelProto, x: Array, names: list[str], batch: int | None = None
) -> dict[str, Array]:
    size = batch or len(x)
    parts = [run(model, {"x": x[first : first + size]}, names) for first in range(0, len(x), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def check_everywhere(model: onnx.ModelProto, count: int, batch: int | None = None) -> None:
    """At the cut before every node: its inputs and its output, computed at once and streamed."""
    x = samples(model, count)
    weights = {tensor.name for tensor in model.graph.initializer}
    walker = start(model, x, batch)
    for node in model.graph.node:
        walker.advance(node.name)
        names = [name for name in (*node.input, node.output[0]) if name and name not in weights]
        wanted = expected(model, x, names, batch)
        for name, value in walker.compute(names).items():
            assert np.allclose(value, wanted[name], atol=1e-5), (node.name, name)
        streamed: dict[str, list[Array]] = {name: [] for name in names}
        seen = []
        for part, values in walker.stream(names, batch or 3):
            seen.append((part.start, part.stop))
            for name in names:
                streamed[name].append(values[name].numpy())
        assert [first for first, _ in seen] == list(range(0, count, batch or 3)) and seen[-1][1] == count
        for name in names:
            assert np.allclose(np.concatenate(streamed[name]), wanted[name], atol=1e-5), (node.name, name)


@pytest.mark.parametrize("build", [resnet, lambda: folded(resnet()), branches])
def test_every_cut(build: Callable[[], onnx.ModelProto]) -> None:
    check_everywhere(prepare(build()), count=7)


@pytest.mark.parametrize("batch", [None, 1])
def test_some_samples_alone(batch: int | None) -> None:
    """At every cut: what is alive there and what comes after, for chosen samples and some of those."""
    model = prepare(resnet())
    x = samples(model, 7)
    walker, chosen = start(model, x, batch), np.array([1, 2, 4, 6])
    last = model.graph.node[-1].output[0]
    for node in model.graph.node:
        walker.advance(node.name)
        wanted = expected(model, x, [node.input[0], last], batch)
        for few, view in (
            (chosen, walker.only(chosen)),
            (chosen[[0, 3]], walker.only(chosen).only(np.array([0, 3]))),
        ):
            assert view.samples == len(few)
            streamed = [values for _, values in view.stream(list(wanted), batch or 3)]
            for name, value in view.compute(list(wanted)).items():
                assert np.allclose(value, wanted[name][few], atol=1e-5), (node.name, name)
                joined = np.concatenate([values[name].numpy() for values in streamed])
                assert np.allclose(joined, wanted[name][few], atol=1e-5), (node.name, name)
    assert walker.samples == len(x)


@pytest.mark.parametrize(("batch", "count"), ((1, 3), (4, 8)))
def test_a_fixed_batch(batch: int, count: int) -> None:
    check_everywhere(prepare(resnet(batch=batch)), count, batch)


def test_weights_changed_behind_the_cut_are_seen() -> None:
    model = prepare(resnet())
    x = samples(model, 4)
    walker = start(model, x)
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    output = model.graph.output[0].name
    for node in layers[1:]:
        walker.advance(node.name)
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
        value = onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(value[:, ::-1] * np.float32(1.5), weight.name))
    wanted = expected(model, x, [output])[output]
    assert np.allclose(walker.compute([output])[output], wanted, atol=1e-4)


def test_large_activations_are_kept_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HALF_ABOVE", 16)
    model = prepare(resnet())
    x = samples(model, 5)
    walker = start(model, x)
    node = model.graph.node[5]
    walker.advance(node.name)
    assert walker.compute([node.input[0]])[node.input[0]].dtype == np.float16
    output = model.graph.output[0].name
    wanted = expected(model, x, [output])[output]
    (found,) = [values[output].numpy() for _, values in walker.stream([output], 5)]
    assert found.dtype == np.float32
    assert np.allclose(found, wanted, atol=1e-2 * np.abs(wanted).max())
    assert not np.array_equal(found, wanted)


def test_values_that_half_precision_cannot_hold_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HALF_ABOVE", 16)
    b = Builder()
    x = b.like("Mul", b.input((1, 3), dynamic=True), b.constant(np.float32(1e6)))
    model = prepare(b.model(b.gemm(x, 2)))
    walker = start(model, samples(model, 4))
    walker.advance(model.graph.node[1].name)
    assert walker.compute([x])[x].dtype == np.float32


@pytest.mark.parametrize("large", [1e6, np.nan])
def test_one_batch_that_half_precision_cannot_hold_widens_all(
    large: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HALF_ABOVE", 16)
    monkeypatch.setattr(module, "_BATCH_BYTES", 1)
    b = Builder()
    x = b.like("Mul", b.input((1, 3), dynamic=True), b.constant(np.float32(2)))
    model = prepare(b.model(b.gemm(x, 2)))
    inputs = np.array([[1, 2, 3], [4, 5, large], [6, 7, 8]], np.float32)
    walker = start(model, inputs)
    walker.advance(model.graph.node[1].name)
    np.testing.assert_array_equal(walker.compute([x])[x], 2 * inputs)


def test_a_body_captures_tensors_from_before_the_cut() -> None:
    b = Builder()
    given = b.input((1, 3, 6, 6), dynamic=True)
    x = b.conv(given, 4, 3)
    y = b.relu(x)
    made = onnx.helper.make_tensor_value_info("made", onnx.TensorProto.FLOAT, None)
    nodes = [
        onnx.helper.make_node("Neg", [x], ["inner"]),
        onnx.helper.make_node("Relu", ["inner"], ["made"]),
    ]
    body = onnx.helper.make_graph(nodes, "body", [], [made])
    flag = b.node("Greater", [b.node("ReduceMax", [given], keepdims=0), b.constant(np.float32(0))])
    chosen = b.shaped(b.node("If", [flag], then_branch=body, else_branch=body), 1, 4, 6, 6)
    z = b.conv(b.concat(y, chosen), 3)
    model = prepare(b.model(z))
    data = samples(model, 5)
    wanted = expected(model, data, [z])[z]
    walker = start(model, data)
    for node in model.graph.node:
        walker.advance(node.name)
        assert np.allclose(walker.compute([z])[z], wanted, atol=1e-5)


def test_tensors_of_other_types_cross_the_cut() -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3)
    best = b.shaped(b.node("ArgMax", [x], axis=1, keepdims=1), 1, 1, 6, 6)
    positive = b.node("Greater", [x, b.constant(np.float32(0))])
    y = b.conv(x, 4, 3)
    y = b.shaped(b.node("Where", [positive, y, b.constant(np.float32(0))]), 1, 4, 6, 6)
    y = b.like("Add", y, b.shaped(b.node("Cast", [best], to=onnx.TensorProto.FLOAT), 1, 1, 6, 6))
    model = prepare(b.model(b.conv(y, 2)))
    data = samples(model, 4)
    output = model.graph.output[0].name
    wanted = expected(model, data, [output])[output]
    walker = start(model, data)
    for node in model.graph.node:
        walker.advance(node.name)
        assert np.allclose(walker.compute([output])[output], wanted, atol=1e-5)


def test_what_holds_the_batch_jointly_is_computed_anew() -> None:
    """A shape, a batch that was moved to another axis, and rows in another order than the samples'."""
    b = Builder(opset=17)
    x = b.input((1, 4, 6), dynamic=True)
    shape = b.node("Shape", [x])
    moved = b.shaped(b.node("Transpose", [b.matmul(x, 5)], perm=[1, 0, 2]), 4, 1, 5)
    mixed = b.shaped(b.node("Reshape", [moved, b.ints([-1, 5])]), 4, 5)
    scale = b.node("Cast", [b.node("Gather", [shape, b.constant(np.int64(0))])], to=onnx.TensorProto.FLOAT)
    y = b.shaped(b.node("Gemm", [mixed, b.weight(5, 5)]), 4, 5)
    counts = b.node(
        "Concat", [b.ints([4]), b.node("Slice", [shape, b.ints([0]), b.ints([1])]), b.ints([5])], axis=0
    )
    y = b.shaped(b.node("Reshape", [y, counts]), 4, 1, 5)
    y = b.shaped(b.node("Transpose", [y], perm=[1, 0, 2]), 1, 4, 5)
    ones = b.node("Div", [scale, scale])
    model = prepare(b.model(b.shaped(b.node("Mul", [b.matmul(y, 3), ones]), 1, 4, 3)))
    data = samples(model, 6)
    output = model.graph.output[0].name
    wanted = expected(model, data, [output])[output]
    for size in (1, 2, 4, 6):
        walker = start(model, data)
        for node in model.graph.node:
            walker.advance(node.name)
            found = np.concatenate([values[output].numpy() for _, values in walker.stream([output], size)])
            assert np.allclose(found, wanted, atol=1e-5), (size, node.name)


def test_several_rows_for_each_sample() -> None:
    b = Builder()
    x = b.reshape(b.input((1, 4, 6), dynamic=True), -1, 6)
    hidden = b.shaped(b.node("Gemm", [x, b.weight(6, 5)]), 4, 5)
    last = b.shaped(b.node("Gemm", [b.relu(hidden), b.weight(5, 3)]), 4, 3)
    model = prepare(finished(b, b.reshape(last, -1, 4, 3)))
    check_everywhere(model, count=5)


def test_advancing_backwards_changes_nothing() -> None:
    model = prepare(resnet())
    walker = start(model, samples(model, 2))
    walker.advance(model.graph.node[6].name)
    before = walker.compute([model.graph.node[6].input[0]])
    walker.advance(model.graph.node[2].name)
    assert walker.compute(list(before)).keys() == before.keys()


def test_batches_are_bounded_by_their_bytes() -> None:
    model = prepare(resnet())
    walker = start(model, samples(model, 2))
    assert walker.batch_size(["x"]) == 256
    big = Walker(model, samples(model, 2), {"x": (1, 3, 8, 8), "y": (1, 1 << 23)}, provider="cpu")
    assert big.batch_size(["y"]) == 3
    assert start(prepare(resnet(batch=4)), samples(model, 4), 4).batch_size(["x"]) == 4
