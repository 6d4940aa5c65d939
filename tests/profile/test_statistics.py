"""Streamed statistics against plain loops over onnxruntime's tensors, all positions of all samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from onnxprune.evaluate.datasets import Dataset, load_dataset
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.joins import Targets
from onnxprune.graph.structure import FIXED, Layer, PruningGraph
from onnxprune.profile import statistics as module
from onnxprune.profile.geometry import layer_geometry
from onnxprune.profile.session import open_session
from onnxprune.profile.statistics import LayerStatistics, collect_statistics
from onnxprune.progress import SilentProgress
from tests.model_builder import Builder
from tests.plain import Array, finished, run, samples, tap

CLASSES = np.array([2, 0, 0, 2, 3, 2, 0, 3])  # class 1 has no samples


def concat_of_groups_and_the_input(b: Builder) -> str:
    x = b.input((1, 3, 4, 4), dynamic=True)
    both = b.concat(b.relu(b.conv(x, 4, 3)), x, b.relu(b.batch_norm(b.conv(x, 3, 1))))
    return b.conv(b.relu(b.batch_norm(b.conv(both, 5, 3, bias=False))), 2, 1)


def flattened_units_with_many_columns(b: Builder) -> str:
    x = b.relu(b.conv(b.input((1, 3, 4, 4), dynamic=True), 5, 3, stride=2))
    return b.gemm(b.relu(b.gemm(b.flatten(x), 6, trans=False)), 3)


def grouped(b: Builder) -> str:
    x = b.relu(b.conv(b.input((1, 3, 5, 5), dynamic=True), 6, 3))
    return b.conv(b.relu(b.conv(x, 4, 3, groups=2, stride=2)), 3, 1)


def residual(b: Builder) -> str:
    x = b.relu(b.conv(b.input((1, 3, 5, 5), dynamic=True), 4, 3))
    y = b.batch_norm(b.conv(b.relu(b.conv(x, 5, 3)), 4, 3, bias=False))
    return b.gemm(b.flatten(b.global_pool(b.relu(b.like("Add", x, y)))), 3)


def matmul_and_deconvolution(b: Builder) -> str:
    x = b.relu(b.conv(b.input((1, 3, 4, 4), dynamic=True), 5, 3))
    x = b.shaped(b.node("ConvTranspose", [x, b.weight(5, 4, 2, 2), b.weight(4)], strides=[2, 2]), 1, 4, 8, 8)
    x = b.transpose(b.reshape(b.relu(x), 0, 0, -1), 0, 2, 1)
    return b.matmul(b.relu(b.matmul(x, 5)), 2)


NETS: dict[str, Callable[[Builder], str]] = {
    "concat": concat_of_groups_and_the_input,
    "flatten": flattened_units_with_many_columns,
    "grouped": grouped,
    "residual": residual,
    "matmul and deconvolution": matmul_and_deconvolution,
}


def analysed(build: Callable[[Builder], str]) -> PruningGraph:
    b = Builder(seed=2)
    return analyze_graph(finished(b, build(b)))


def collect(graph: PruningGraph, inputs: Array, labels: npt.NDArray[np.int64]) -> dict[str, LayerStatistics]:
    return collect_statistics(
        graph, dataset(graph.model, inputs), labels, provider="cpu", threads=1, progress=SilentProgress()
    )


def dataset(model: onnx.ModelProto, inputs: Array) -> Dataset:
    return load_dataset((inputs, None), open_session(model).input)


def alone(graph: PruningGraph, layer: Layer) -> Callable[[Array], Array]:
    """The layer's node by itself, run by onnxruntime, without its constant."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    node = graph.node(layer.name)
    del model.graph.node[:], model.graph.input[:], model.graph.output[:]
    model.graph.node.append(node)
    model.graph.input.append(onnx.helper.make_tensor_value_info(layer.input, 1, None))

    def call(value: Array) -> Array:
        both = [
            run(model, {layer.input: given}, [layer.output])[layer.output] for given in (value, 0 * value)
        ]
        return both[0] - both[1]

    return call


def channels_first(value: Array, axis: int) -> Array:
    """(C, everything else)"""
    return np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)


def check(graph: PruningGraph, found: dict[str, LayerStatistics], inputs: Array) -> None:
    readers = [layer for layer in graph.layers if (layer.in_units != FIXED).any()]
    assert set(found) == {layer.name for layer in readers} and readers
    for layer in readers:
        entry = found[layer.name]
        target = Targets(graph).of(layer)
        values = tap(graph, inputs, list(dict.fromkeys((layer.input, layer.output, target.tensor))))
        assert np.array_equal(entry.units, np.unique(layer.in_units[layer.in_units != FIXED]))
        call, axis = alone(graph, layer), layer.channel_axis
        scale = np.broadcast_to(target.affine.scale, (values[layer.output].shape[axis],))
        for label in range(4):
            chosen = np.equal(CLASSES, label)
            source = values[layer.input][chosen]
            if not len(source):
                assert not entry.contributions[label].any() and not entry.responses[label].any()
                continue
            parts = []
            for unit in entry.units:
                mask = (layer.in_units == unit).reshape([-1 if a == axis else 1 for a in range(source.ndim)])
                parts.append((channels_first(call(np.where(mask, source, 0)), axis) * scale[:, None]).ravel())
            each = np.stack(parts)
            wanted = each @ each.T
            assert np.allclose(
                entry.contributions[label], wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max()
            )
            means = channels_first(values[layer.output][chosen], axis).mean(1) * scale
            assert np.allclose(entry.responses[label], means, rtol=1e-4, atol=1e-5)
        variance = channels_first(values[target.tensor].astype(np.float64), axis).var(1).sum()
        assert np.isclose(entry.energy, variance, rtol=1e-4)
        assert entry.depth == graph.layers.index(layer) / len(graph.layers)
        output = channels_first(values[layer.output].astype(np.float64), axis)
        assert entry.rows == output.shape[1]
        check_gram(entry, output * scale[:, None])
        assert np.isclose(entry.independent, independent(graph, layer, values[layer.input]), rtol=1e-3)


def independent(graph: PruningGraph, layer: Layer, source: Array) -> float:
    """Samples times the variance of a row over that of a sample's mean row, both summed over columns."""
    geometry = layer_geometry(graph, layer)
    assert geometry is not None
    given = torch.from_numpy(source)
    chosen = torch.arange(geometry.positions(given.shape))
    rows = geometry.rows(given, chosen).double().flatten(1).numpy()
    means = np.stack([part.mean(0) for part in np.split(rows, len(CLASSES))])
    total, between = rows.var(0).sum(), means.var(0).sum()
    return float(np.clip(len(CLASSES) * total / between, len(CLASSES), len(rows)))


def check_gram(entry: LayerStatistics, output: Array) -> None:
    """gram and matrix alone give the second moments of the layer's output, and the number of rows."""
    gram, matrix = entry.gram.double().numpy(), entry.matrix.double().numpy()
    assert np.allclose(gram, gram.transpose(0, 2, 1)) and np.allclose(gram[:, -1, -1], entry.rows)
    for group in range(len(gram)):
        part = output[group * matrix.shape[2] : (group + 1) * matrix.shape[2]]
        wanted = part @ part.T
        moments = matrix[group].T @ gram[group] @ matrix[group]
        assert np.allclose(moments, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
        assert np.allclose(matrix[group].T @ gram[group][:, -1], part.sum(1), rtol=1e-3, atol=1e-3)
    assert entry.columns.shape == (len(gram), gram.shape[1] - 1)


@pytest.mark.parametrize("name", NETS)
def test_all_positions_of_all_samples(name: str) -> None:
    graph = analysed(NETS[name])
    inputs = samples(graph, len(CLASSES))
    check(graph, collect(graph, inputs, CLASSES), inputs)


@pytest.mark.parametrize("name", NETS)
def test_bounded_sets_and_small_batches_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = analysed(NETS[name])
    inputs = samples(graph, len(CLASSES))
    whole = collect(graph, inputs, CLASSES)
    monkeypatch.setattr(module, "_GRAM_BYTES", 1)
    monkeypatch.setattr(module, "_TAP_BYTES", 1)
    parts = collect(graph, inputs, CLASSES)
    assert whole.keys() == parts.keys()
    for name, entry in whole.items():
        other = parts[name]
        assert (entry.rows, entry.layer.name) == (other.rows, other.layer.name)
        for one, two in (
            (entry.gram.numpy(), other.gram.numpy()),
            (entry.contributions, other.contributions),
            (entry.responses, other.responses),
            (np.array(entry.energy), np.array(other.energy)),
        ):
            assert np.allclose(one, two, rtol=1e-4, atol=1e-5 * np.abs(one).max())


def test_a_model_that_insists_on_a_batch() -> None:
    b = Builder(seed=2)
    x = b.relu(b.conv(b.input((4, 3, 4, 4)), 5, 3))
    graph = analyze_graph(b.model(b.conv(x, 2, 3)))
    free = Builder(seed=2)
    y = free.relu(free.conv(free.input((1, 3, 4, 4), dynamic=True), 5, 3))
    same = analyze_graph(free.model(free.conv(y, 2, 3)))
    inputs = samples(graph, len(CLASSES))
    one, two = (next(iter(collect(entry, inputs, CLASSES).values())) for entry in (graph, same))
    assert one.rows == two.rows
    assert np.allclose(one.contributions, two.contributions, rtol=1e-4, atol=1e-4)
    assert np.allclose(one.responses, two.responses, atol=1e-5)
    assert np.isclose(one.energy, two.energy)


def test_a_subset_of_positions_estimates_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = analysed(residual)
    labels = np.arange(200) % 2
    inputs = samples(graph, len(labels))
    whole = collect(graph, inputs, labels)
    monkeypatch.setattr(module, "ROWS", 2000)
    part, again = (collect(graph, inputs, labels) for _ in range(2))
    for name, entry in whole.items():
        few = part[name]
        assert few.rows == min(entry.rows, 2000)
        one, two = (item.contributions / item.rows for item in (entry, few))
        assert np.linalg.norm(one - two) < 0.3 * np.linalg.norm(one)
        assert np.array_equal(few.contributions, again[name].contributions)


def test_depthwise_layers_and_what_reads_nothing_prunable_are_left_out() -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 4, 4), dynamic=True), 6, 1)
    y = b.conv(b.relu(b.conv(b.relu(x), 6, 3, groups=6)), 2, 1)
    graph = analyze_graph(b.model(y))
    assert list(collect(graph, samples(graph, 8), CLASSES)) == [graph.layers[-1].name]
