"""Recovery on small nets: exact where it can be, never worse, and untouched where nothing was removed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.joins import Targets
from onnxprune.graph.plan import Plan, keep_all
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph
from onnxprune.graph.weights import Constants
from onnxprune.progress import SilentProgress
from onnxprune.recover.closed_form import Recovery, recover
from onnxprune.recover.problem import HELD_OUT
from tests.model_builder import Builder
from tests.plain import Array, finished, run, samples
from tests.recover.nets import branches, folded, resnet
from tests.strategies import random_plan

Build = Callable[[Builder], str]


def recovered(
    graph: PruningGraph, plan: Plan, inputs: Array, batch: int | None = None
) -> tuple[onnx.ModelProto, Recovery]:
    """(the pruned model, its recovery)"""
    pruned = rewrite(graph, plan)
    copy = pruned.SerializeToString(deterministic=True)
    result = recover(
        graph, plan, pruned, inputs, batch=batch, provider="cpu", threads=1, progress=SilentProgress()
    )
    assert pruned.SerializeToString(deterministic=True) == copy
    onnx.checker.check_model(result.model, full_check=True)
    return pruned, result


def error(
    model: onnx.ModelProto, other: onnx.ModelProto, inputs: Array, names: list[str] | None = None
) -> float:
    """Squared error relative to the variance of the first one's output (or of the tensors named)."""
    names = names or [value.name for value in model.graph.output]
    one, two = (run(entry, {"x": inputs}, names) for entry in (model, other))
    return max(float(((one[n] - two[n]) ** 2).sum() / ((one[n] - one[n].mean(0)) ** 2).sum()) for n in names)


def remove(graph: PruningGraph, layer: str, positions: list[int]) -> Plan:
    """The plan without some output channels of a layer."""
    plan = keep_all(graph)
    units = graph.layer(layer).out_units[positions]
    assert (units >= 0).all()
    plan.keep[units] = False
    return plan


def repeat_channels(model: onnx.ModelProto, node: onnx.NodeProto, axis: int, redundant: int) -> None:
    """Make the last ``redundant`` filters of a layer sums and differences of its others."""
    constants = Constants(model)
    for name, along in ((node.input[1], axis), (node.input[2] if len(node.input) > 2 else "", 0)):
        if name:
            value = np.moveaxis(constants.read(name).copy(), along, 0)
            random = np.random.default_rng(0).choice(
                [-1.0, -0.5, 0.5, 1.0], (redundant, len(value) - redundant)
            )
            value[-redundant:] = np.tensordot(random, value[:-redundant], 1)
            constants.write(name, np.moveaxis(value, 0, along))


def conv_conv(b: Builder) -> str:
    x = b.conv(b.input((1, 3, 6, 6), dynamic=True), 6, 3)
    return b.conv(x, 4, 3)


def conv_norm_conv(b: Builder) -> str:
    x = b.conv(b.input((1, 3, 6, 6), dynamic=True), 6, 3)
    return b.conv(b.batch_norm(x), 4, 1, stride=2, bias=False)  # padding would not be affine


def conv_flatten_gemm(b: Builder) -> str:
    x = b.conv(b.input((1, 3, 4, 4), dynamic=True), 6, 3)
    return b.gemm(b.flatten(b.pool("AveragePool", x)), 5)


def conv_flatten_matmul(b: Builder) -> str:
    x = b.conv(b.input((1, 3, 4, 4), dynamic=True), 6, 3)
    return b.like("Add", b.matmul(b.flatten(b.pool("AveragePool", x)), 5), b.weight(5))


def conv_deconvolution(b: Builder) -> str:
    x = b.conv(b.input((1, 3, 4, 4), dynamic=True), 6, 3)
    return str(b.node("ConvTranspose", [x, b.weight(6, 4, 3, 3), b.weight(4)], strides=[2, 2], pads=[1] * 4))


def conv_depthwise_conv(b: Builder) -> str:
    x = b.conv(b.input((1, 3, 6, 6), dynamic=True), 6, 1)
    # One filter for all channels keeps them dependent.
    weight = b.constant(np.tile(b.random.standard_normal((1, 1, 3, 3)), (6, 1, 1, 1)).astype(np.float32))
    x = b.shaped(b.node("Conv", [x, weight], group=6), 1, 6, 4, 4)
    return b.conv(x, 4, 3)


LINEAR: dict[str, Build] = {
    "conv, conv": conv_conv,
    "conv, norm, strided conv": conv_norm_conv,
    "conv, pool, flatten, gemm": conv_flatten_gemm,
    "conv, pool, flatten, matmul, add": conv_flatten_matmul,
    "conv, deconvolution": conv_deconvolution,
    "conv, depthwise, conv": conv_depthwise_conv,
}


@pytest.mark.parametrize("name", LINEAR)
def test_redundant_channels_of_a_linear_net_are_made_up_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.recover.fit.RIDGES", (1e-7, 1e-4))
    b = Builder(seed=3)
    model = finished(b, LINEAR[name](b))
    repeat_channels(model, model.graph.node[0], 0, 2)
    graph = analyze_graph(model)
    plan = remove(graph, graph.layers[0].name, [4, 5])
    pruned, result = recovered(graph, plan, samples(graph, 200))
    assert all(fit.kept for fit in result.fits) and result.fits[-1].layer == graph.layers[-1].name
    fresh = samples(graph, 20, seed=1)
    assert error(graph.model, pruned, fresh) > 0.05
    assert error(graph.model, result.model, fresh) ** 0.5 < 1e-4


def test_a_constant_channel_goes_into_the_bias() -> None:
    """A channel that always is the same is exactly made up for by a bias, in every kind of layer."""
    for last in (lambda b, x: b.conv(x, 4, 1), lambda b, x: b.conv(x, 4, 1, bias=False)):
        b = Builder()
        x = b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3)
        model = b.model(last(b, x))
        constants = Constants(model)
        weight = constants.read(model.graph.node[0].input[1]).copy()
        weight[2] = 0
        constants.write(model.graph.node[0].input[1], weight)
        graph = analyze_graph(model)
        plan = remove(graph, graph.layers[0].name, [2])
        _, result = recovered(graph, plan, samples(graph, 50))
        assert error(graph.model, result.model, samples(graph, 10, seed=1)) < 1e-9


@pytest.mark.parametrize("norm", (True, False))
@pytest.mark.parametrize("seed", (0, 1))
def test_joins_come_closer_to_the_original(norm: bool, seed: int) -> None:
    graph = analyze_graph(resnet(norm=norm))
    plan = random_plan(graph, seed, 0.3)
    pruned, result = recovered(graph, plan, samples(graph, 120))
    assert sum(fit.kept for fit in result.fits) >= 3
    for fit in result.fits:
        assert not fit.kept or fit.error_after < fit.error_before
    fresh = samples(graph, 60, seed=9)
    targets = Targets(graph)
    for layer in graph.layers:
        target = targets.of(layer)
        if target.shortcut is not None and plan.keep[layer.out_units].all():
            before = error(graph.model, pruned, fresh, [target.tensor])
            assert error(graph.model, result.model, fresh, [target.tensor]) <= before
    assert error(graph.model, result.model, fresh) < 0.8 * error(graph.model, pruned, fresh)


def test_the_reported_errors_are_those_at_the_join() -> None:
    """With one layer to fit, what recovery says before it is what the models show on held-out samples."""
    graph = analyze_graph(resnet())
    inner, last = graph.layers[1], graph.layers[2]
    plan = remove(graph, inner.name, [0, 3])
    inputs = samples(graph, 100)
    pruned, result = recovered(graph, plan, inputs)
    target = Targets(graph).of(last)
    assert target.shortcut is not None and result.fits[0].layer == last.name
    held = inputs[HELD_OUT - 1 :: HELD_OUT]
    one, two = (run(model, {"x": held}, [target.tensor])[target.tensor] for model in (graph.model, pruned))
    one, two = (np.maximum(value, 0) for value in (one, two))  # a Relu is all that reads the join
    assert np.isclose(((one - two) ** 2).mean((0, 2, 3)).sum(), result.fits[0].error_before, rtol=1e-4)


def test_norms_kept_and_folded_recover_alike() -> None:
    model = resnet(seed=5)
    outputs = []
    for entry in (model, folded(model)):
        graph = analyze_graph(entry)
        plan = keep_all(graph)
        for group in graph.groups:
            plan.keep[group.units[1::3]] = False
        _, result = recovered(graph, plan, samples(graph, 150))
        (name,) = [value.name for value in result.model.graph.output]
        outputs.append(run(result.model, {"x": samples(graph, 10, seed=5)}, [name])[name])
    assert np.abs(outputs[0] - outputs[1]).max() <= 1e-3 * np.abs(outputs[0]).max()


def test_layers_before_the_first_that_loses_channels_stay_bit_identical() -> None:
    graph = analyze_graph(resnet())
    plan = remove(graph, graph.layers[3].name, [1, 2, 5])
    pruned, result = recovered(graph, plan, samples(graph, 60))
    names = [fit.layer for fit in result.fits]
    assert names == [graph.layers[4].name, graph.layers[6].name]  # what reads it, and the classifier
    untouched = {name for layer in graph.layers[:3] for name in graph.node(layer.name).input}
    before, after = Constants(pruned), Constants(result.model)
    compared = [name for name in untouched if name in before]
    assert len(compared) == 3
    for name in compared:
        assert before.read(name).tobytes() == after.read(name).tobytes()


def test_a_depthwise_layer_that_only_loses_channels_is_left_alone() -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 6, 6), dynamic=True), 6, 1)
    graph = analyze_graph(b.model(b.conv(b.relu(b.conv(b.relu(x), 6, 3, groups=6)), 4)))
    _, result = recovered(graph, remove(graph, graph.layers[0].name, [1, 2]), samples(graph, 60))
    assert [fit.layer for fit in result.fits] == [graph.layers[2].name]


def test_what_follows_a_product_of_pruned_activations_is_fitted() -> None:
    """Removing query and key channels changes the scores: the layers behind them read something else."""
    b = Builder()
    x = b.input((1, 5, 6), dynamic=True)
    scores = b.shaped(b.node("MatMul", [b.matmul(x, 8), b.transpose(b.matmul(x, 8), 0, 2, 1)]), 1, 5, 5)
    mixed = b.shaped(b.node("MatMul", [b.like("Softmax", scores, axis=-1), x]), 1, 5, 6)
    graph = analyze_graph(b.model(b.like("Add", b.matmul(mixed, 4), b.weight(4))))
    plan = keep_all(graph)
    plan.keep[graph.groups[0].units[:5]] = False
    pruned, result = recovered(graph, plan, samples(graph, 100))
    assert [fit.layer for fit in result.fits] == [graph.layers[-1].name]
    fresh = samples(graph, 30, seed=1)
    assert error(graph.model, result.model, fresh) <= error(graph.model, pruned, fresh)


@pytest.mark.parametrize("seed", (0, 1, 2))
@pytest.mark.parametrize("build", (branches, lambda: folded(resnet())))
def test_recovery_does_not_hurt(build: Callable[[], onnx.ModelProto], seed: int) -> None:
    graph = analyze_graph(build())
    plan = random_plan(graph, seed, 0.4)
    pruned, result = recovered(graph, plan, samples(graph, 100))
    fresh = samples(graph, 50, seed=7)
    assert error(graph.model, result.model, fresh) <= error(graph.model, pruned, fresh)


def test_noise_to_fit_is_refused() -> None:
    """Ten samples against many columns: fits that the held-out samples don't bear out are dropped."""
    b = Builder()
    x = b.relu(b.gemm(b.input((1, 40), dynamic=True), 60))
    graph = analyze_graph(b.model(b.gemm(x, 4)))
    plan = remove(graph, graph.layers[0].name, [0])
    for seed in range(4):
        pruned, result = recovered(graph, plan, samples(graph, 10, seed=seed))
        (fit,) = result.fits
        assert fit.kept == (fit.error_after < fit.error_before)
        if not fit.kept:
            assert "held-out" in fit.reason
            assert result.model.SerializeToString(deterministic=True) == pruned.SerializeToString(
                deterministic=True
            )


def test_too_few_samples_to_hold_any_out() -> None:
    graph = analyze_graph(resnet())
    plan = random_plan(graph, 0, 0.3)
    _, result = recovered(graph, plan, samples(graph, HELD_OUT - 1))
    assert {fit.reason for fit in result.fits} == {"too few samples to hold any out"}


@pytest.mark.parametrize(("batch", "count"), ((1, 40), (4, 43), (4, 3)))
def test_a_fixed_batch(batch: int, count: int) -> None:
    graph = analyze_graph(resnet(batch=batch))
    free = analyze_graph(resnet())
    plan = random_plan(graph, 3, 0.3)
    inputs = samples(graph, count)
    _, result = recovered(graph, plan, inputs, batch)
    if count < batch:  # the samples were repeated to fill one batch
        assert len(result.fits) > 0
        return
    _, same = recovered(free, plan, inputs[: count // batch * batch])
    for one, two in zip(result.fits, same.fits, strict=True):
        assert one.layer == two.layer and np.isclose(one.error_before, two.error_before, rtol=1e-3)


def test_a_batch_of_one_baked_into_a_model_that_declares_any() -> None:
    models = []
    for target in ((1, -1), (0, -1)):
        b = Builder()
        x = b.relu(b.conv(b.input((1, 3, 4, 4), dynamic=True), 6, 3))
        models.append(b.model(b.gemm(b.relu(b.gemm(b.reshape(x, *target), 8)), 3)))
    fits = []
    for model in models:
        graph = analyze_graph(model)
        plan = remove(graph, graph.layers[0].name, [1, 2])
        fits.append(recovered(graph, plan, samples(graph, 40))[1].fits)
    for one, two in zip(*fits, strict=True):
        assert one.kept == two.kept and np.isclose(one.error_after, two.error_after, rtol=1e-3)
    assert fits[0][0].kept


def test_a_layer_that_cannot_be_fitted_says_why() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 4, 4), dynamic=True), 6, 3))
    y = str(b.node("ConvTranspose", [x, b.weight(6, 2, 3, 3)], strides=[2, 2], output_shape=[8, 8]))
    graph = analyze_graph(finished(b, y))
    pruned, result = recovered(graph, remove(graph, graph.layers[0].name, [0]), samples(graph, 20))
    (fit,) = result.fits
    assert not fit.kept and "ConvTranspose" in fit.reason
    assert result.model.SerializeToString(deterministic=True) == pruned.SerializeToString(deterministic=True)


def test_grouped_convs_are_fitted_group_by_group() -> None:
    b = Builder(seed=5)
    x = b.conv(b.input((1, 3, 6, 6), dynamic=True), 8, 3)
    model = b.model(b.conv(x, 4, 3, groups=2))
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    bias = numpy_helper.to_array(model.graph.initializer[1]).copy()
    for part in (weight, bias):  # the last channel of each group repeats the group's first
        part[3], part[7] = part[0], -part[4]
    Constants(model).write(model.graph.initializer[0].name, weight)
    Constants(model).write(model.graph.initializer[1].name, bias)
    graph = analyze_graph(model)
    _, result = recovered(graph, remove(graph, graph.layers[0].name, [3, 7]), samples(graph, 100))
    assert error(graph.model, result.model, samples(graph, 10, seed=2)) ** 0.5 < 1e-3


def test_several_rows_for_each_sample() -> None:
    b = Builder()
    x = b.reshape(b.input((1, 4, 6), dynamic=True), -1, 6)
    hidden = b.shaped(b.node("Gemm", [x, b.weight(6, 10), b.weight(10)]), 4, 10)
    last = b.shaped(b.node("Gemm", [b.relu(hidden), b.weight(10, 3), b.weight(3)]), 4, 3)
    graph = analyze_graph(finished(b, b.reshape(last, -1, 4, 3)))
    plan = remove(graph, graph.layers[0].name, [0, 1, 2])
    pruned, result = recovered(graph, plan, samples(graph, 60))
    assert result.fits[0].kept
    fresh = samples(graph, 30, seed=1)
    assert error(graph.model, result.model, fresh) < error(graph.model, pruned, fresh)


def test_the_same_seed_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.recover.problem.ROWS", (64, 256))
    graph = analyze_graph(resnet())
    plan = random_plan(graph, 0, 0.4)
    first, second = (recovered(graph, plan, samples(graph, 40))[1].model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_half_precision_weights_stay_so() -> None:
    b = Builder(dtype=np.float16)
    x = b.relu(b.conv(b.input((1, 3, 6, 6), dynamic=True), 6, 3))
    graph = analyze_graph(b.model(b.conv(x, 4, 3, bias=False)))
    plan = remove(graph, graph.layers[0].name, [0, 1])
    inputs = samples(graph, 60).astype(np.float16)
    _, result = recovered(graph, plan, inputs)
    assert result.fits[0].kept
    kinds = {tensor.data_type for tensor in result.model.graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16}
    run(result.model, {"x": inputs[:2]}, [result.model.graph.output[0].name])
