"""Moving the layers in front of a refitted one: who they are, how far they go, and that it helps."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnxprune.errors import ModelError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.joins import Targets
from onnxprune.graph.plan import keep_all
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph
from onnxprune.graph.weights import Constants
from onnxprune.pipeline import compress
from onnxprune.progress import SilentProgress
from onnxprune.recover import closed_form
from onnxprune.recover.affected import affected_layers, find_branches
from onnxprune.recover.closed_form import recover
from onnxprune.recover.executor import executor
from onnxprune.recover.problem import LayerWeights
from onnxprune.recover.producers import RIDGE, STEPS, line_search
from onnxprune.report.compression import _fit_warnings
from tests.model_builder import Builder
from tests.plain import Array, finished, run, samples
from tests.recover.nets import resnet


def found(graph: PruningGraph) -> dict[str, list[str]]:
    """Producers by reader, when every other unit of every group goes."""
    plan = keep_all(graph)
    for group in graph.groups:
        plan.keep[group.units[::2]] = False
    branches = find_branches(graph, plan, affected_layers(graph, plan), Targets(graph))
    for start, branch in branches.items():
        assert start == branch.producers[0].name
    return {entry.reader.name: [layer.name for layer in entry.producers] for entry in branches.values()}


def test_a_branch_is_moved_as_a_whole_towards_its_join() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 6, 6), dynamic=True), 6, 3))
    y = b.relu(b.conv(x, 5, 1))
    y = b.relu(b.conv(y, 5, 3, groups=5))  # depthwise: passes on what it reads
    y = b.relu(b.conv(y, 4, 3))
    x = b.relu(b.like("Add", b.conv(y, 6, 1), b.conv(x, 6, 1)))
    graph = analyze_graph(finished(b, b.conv(x, 3, 1)))
    names = [layer.name for layer in graph.layers]
    # The projection is the last to feed the join, so the other end is judged at its own output; one layer
    # alone reads the stream, so both ends serve it.
    assert found(graph) == {names[3]: names[1:3], names[4]: [names[3]], names[6]: names[4:6]}


def test_a_bottleneck_with_an_identity_shortcut_and_a_chain() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 6, 6), dynamic=True), 6, 3))
    y = b.relu(b.conv(b.relu(b.conv(x, 5, 1)), 4, 3))
    x = b.relu(b.like("Add", b.conv(y, 6, 1), x))
    x = b.relu(b.conv(x, 5, 1))
    graph = analyze_graph(finished(b, b.conv(x, 3, 1)))
    _stem, one, two, three, behind, last = (layer.name for layer in graph.layers)
    assert found(graph) == {three: [one, two], last: [behind]}


@pytest.mark.parametrize("bottom", (0.002, 0.025, 0.0625, 0.17, 2.5))
def test_the_line_search_finds_the_bottom_of_a_parabola(bottom: float) -> None:
    length, error = line_search(lambda step: (step - bottom) ** 2 + 1.0, bottom**2 + 1.0)
    assert np.isclose(length, bottom, rtol=1e-6) and np.isclose(error, 1.0)


def test_the_line_search_stays_where_nothing_improves_and_within_its_bounds() -> None:
    looked: list[float] = []

    def worse(step: float) -> float:
        looked.append(step)
        return 1.0 + step

    assert line_search(worse, 1.0) == (0.0, 1.0)
    assert line_search(lambda _: float("nan"), 1.0) == (0.0, 1.0)
    assert min(looked) == STEPS[0]
    assert line_search(lambda step: -step, 0.0)[0] == STEPS[1]


def error(graph: PruningGraph, model: onnx.ModelProto, inputs: Array) -> float:
    (name,) = [value.name for value in model.graph.output]
    one, two = (run(entry, {"x": inputs}, [name])[name] for entry in (graph.model, model))
    return float(((one - two) ** 2).sum() / ((one - one.mean(0)) ** 2).sum())


@pytest.mark.parametrize("norm", (True, False))
def test_moved_producers_bring_new_data_closer(norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def left(seed: int) -> float:
        graph = analyze_graph(resnet(norm=norm, seed=seed))
        plan = keep_all(graph)
        plan.keep[graph.layers[1].out_units[::2]] = False
        result = recover(
            graph, plan, rewrite(graph, plan), samples(graph, 200), provider="cpu", threads=1,
            progress=SilentProgress(),
        )  # fmt: skip
        return error(graph, result.model, samples(graph, 100, seed=9))

    moved = [left(seed) for seed in range(4)]
    monkeypatch.setattr(closed_form, "can_judge", lambda _: False)
    fitted = [left(seed) for seed in range(4)]
    assert sum(moved) < 0.95 * sum(fitted)


def test_no_ridge_of_a_movement_is_as_weak_as_fits_may_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[LayerWeights] = []

    def refuse(producer: LayerWeights, *_: object) -> bool:
        moved.append(producer)
        return False

    monkeypatch.setattr(closed_form, "move", refuse)
    graph = analyze_graph(resnet())
    plan = keep_all(graph)
    for group in graph.groups:
        plan.keep[group.units[::3]] = False
    result = recover(
        graph, plan, rewrite(graph, plan), samples(graph, 200), provider="cpu", threads=1,
        progress=SilentProgress(),
    )  # fmt: skip
    strengths = [entry.solver.strength for entry in moved if entry.solver is not None]
    assert strengths and min(strengths) >= RIDGE
    assert min(fit.ridge for fit in result.fits) < RIDGE


def test_an_op_without_gradients_leaves_producers_and_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = analyze_graph(resnet())
    plan = keep_all(graph)
    for group in graph.groups:
        plan.keep[group.units[::2]] = False
    inputs = samples(graph, 60)
    options: dict[str, Any] = {"provider": "cpu", "threads": 1, "progress": SilentProgress()}
    moved = recover(graph, plan, rewrite(graph, plan), inputs, **options)
    assert not any(fit.unmoved for fit in moved.fits)
    monkeypatch.setattr(executor, "find_op", lambda domain, op, opset: None)
    alone = recover(graph, plan, rewrite(graph, plan), inputs, **options)
    (reason, *_) = [fit.unmoved for fit in alone.fits if fit.unmoved]
    assert reason.startswith("there are no gradients through ")
    assert moved.model.SerializeToString() != alone.model.SerializeToString()
    (warning,) = [text for text in _fit_warnings(alone.fits) if "moved" in text]
    assert warning.startswith("no layers were moved in front of ") and warning.endswith(reason)


@pytest.mark.parametrize(
    "error",
    (
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ),
)
@pytest.mark.parametrize("backwards", (False, True))
def test_too_little_memory_is_an_error_and_no_reason_to_go_without(
    error: RuntimeError, backwards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **options: object) -> None:
        raise error

    if backwards:
        monkeypatch.setattr("torch.autograd.grad", full)
    else:
        monkeypatch.setattr(executor, "find_op", lambda domain, op, opset: full)
    model = resnet()
    with pytest.raises(ModelError, match="too little memory for this model"):
        compress(model, data=samples(analyze_graph(model), 60), macs=0.5, method="l1", threads=1)


def test_what_cannot_be_run_backwards_leaves_the_producer_as_it_is() -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 6, 6), dynamic=True), 6, 3)
    for kind in (onnx.TensorProto.INT32, onnx.TensorProto.FLOAT):
        x = b.shaped(b.node("Cast", [x], to=kind), 1, 6, 6, 6)
    graph = analyze_graph(finished(b, b.conv(x, 3, 1)))
    plan = keep_all(graph)
    plan.keep[graph.layers[0].out_units[::2]] = False
    pruned = rewrite(graph, plan)
    result = recover(
        graph, plan, pruned, samples(graph, 60), provider="cpu", threads=1, progress=SilentProgress()
    )
    before, after = Constants(pruned), Constants(result.model)
    weight = graph.layers[0].weight
    assert before.read(weight).tobytes() == after.read(weight).tobytes()
