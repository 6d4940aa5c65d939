"""What the join adds where a whole branch went: the constant that comes nearest to the original's join."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.plan import Plan, keep_all
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph, ResidualBranch
from onnxprune.progress import SilentProgress
from onnxprune.recover.closed_form import Recovery, recover
from onnxprune.recover.executor import Executor
from onnxprune.recover.problem import HELD_OUT
from onnxprune.recover.training.distill import residual_joins
from tests.graph.test_residual import nested
from tests.graph.test_residual import net as nested_net
from tests.model_builder import Builder
from tests.plain import Array, run, samples


def net(*, clipped: bool, norm: bool, blocks: int = 1) -> PruningGraph:
    """Residual blocks between two Convs; joins in front of a ReLU where ``clipped``."""
    b = Builder(seed=3)

    def conv(x: str, channels: int) -> str:
        y = b.conv(x, channels, 3, bias=not norm)
        return b.batch_norm(y) if norm else y

    x = b.relu(b.conv(b.input((1, 3, 6, 6), dynamic=True), 5, 3))
    for _ in range(blocks):
        x = b.like("Add", conv(b.relu(conv(x, 7)), 5), x)
        x = b.relu(x) if clipped else x
    return analyze_graph(b.model(b.conv(x, 2, 1)))


def recovered(graph: PruningGraph, plan: Plan, inputs: Array) -> tuple[onnx.ModelProto, Recovery]:
    pruned = rewrite(graph, plan)
    copy = pruned.SerializeToString(deterministic=True)
    result = recover(graph, plan, pruned, inputs, provider="cpu", threads=1, progress=SilentProgress())
    assert pruned.SerializeToString(deterministic=True) == copy
    onnx.checker.check_model(result.model, full_check=True)
    return pruned, result


def constant(model: onnx.ModelProto, branch: ResidualBranch) -> Array:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == branch.tensor))


def without(graph: PruningGraph, *branches: ResidualBranch) -> Plan:
    plan = keep_all(graph)
    for branch in branches:
        plan.keep[branch.units] = False
    return plan


@pytest.mark.parametrize("norm", (True, False))
def test_the_constant_is_the_mean_of_what_the_branch_gave(norm: bool) -> None:
    graph = net(clipped=False, norm=norm)
    (branch,) = graph.residual_branches
    inputs = samples(graph, 40)
    _, result = recovered(graph, without(graph, branch), inputs)
    learning = np.arange(40) % HELD_OUT != HELD_OUT - 1
    given = run(graph.model, {"x": inputs[learning]}, [branch.tensor])[branch.tensor]
    np.testing.assert_allclose(
        constant(result.model, branch), given.mean((0, 2, 3), keepdims=True), rtol=1e-5, atol=1e-6
    )
    (fit,) = [fit for fit in result.fits if fit.layer == branch.reader]
    held = run(graph.model, {"x": inputs[~learning]}, [branch.tensor])[branch.tensor]
    after = ((held - constant(result.model, branch)) ** 2).mean((0, 2, 3)).sum()
    assert fit.kept and fit.error_after == pytest.approx(after, rel=1e-5)
    assert fit.error_after < fit.error_before


def test_nothing_is_spent_on_what_the_activation_hides() -> None:
    graph = net(clipped=True, norm=True)
    (branch,) = graph.residual_branches
    inputs = samples(graph, 200)
    plan = without(graph, branch)
    pruned, result = recovered(graph, plan, inputs)
    held = inputs[np.arange(200) % HELD_OUT == HELD_OUT - 1]
    name = graph.node(branch.join).output[0]
    wanted = np.maximum(run(graph.model, {"x": held}, [name])[name], 0)
    shortcut = next(each for each in graph.node(branch.join).input if each != branch.tensor)
    added = run(graph.model, {"x": held}, [shortcut])[shortcut]

    def error(value: Array) -> float:
        return float(((wanted - np.maximum(added + value, 0)) ** 2).mean((0, 2, 3)).sum())

    given = run(graph.model, {"x": inputs}, [branch.tensor])[branch.tensor]
    found = error(constant(result.model, branch))
    assert found < error(given.mean((0, 2, 3), keepdims=True))
    assert found < error(constant(pruned, branch))
    (fit,) = [fit for fit in result.fits if fit.layer == branch.reader]
    assert fit.error_after == pytest.approx(found, rel=1e-5)


def test_what_follows_makes_up_for_removed_branches() -> None:
    """Of three blocks the middle one goes, and of the others half the inner channels."""
    graph = net(clipped=True, norm=True, blocks=3)
    first, middle, last = graph.residual_branches
    plan = without(graph, middle)
    for branch in (first, last):
        plan.keep[branch.entry[::2]] = False
    inputs = samples(graph, 200)
    pruned, result = recovered(graph, plan, inputs)
    other = samples(graph, 100, seed=1)
    name = graph.model.graph.output[0].name

    def error(model: onnx.ModelProto) -> float:
        one, two = (run(each, {"x": other}, [name])[name] for each in (graph.model, model))
        return float(((one - two) ** 2).sum())

    assert error(result.model) < 0.7 * error(pruned)
    gone = set(middle.nodes) - {middle.reader}
    assert not gone & {fit.layer for fit in result.fits}
    assert {middle.reader, last.reader} <= {fit.layer for fit in result.fits if fit.kept}


def test_too_few_samples_leave_the_constant_that_the_branch_would_give() -> None:
    graph = net(clipped=True, norm=False)
    (branch,) = graph.residual_branches
    pruned, result = recovered(graph, without(graph, branch), samples(graph, 4))
    np.testing.assert_array_equal(constant(result.model, branch), constant(pruned, branch))
    (fit,) = [fit for fit in result.fits if fit.layer == branch.reader]
    assert not fit.kept and "too few samples" in fit.reason


def test_what_is_left_runs_in_torch_and_has_the_joins_that_stay() -> None:
    """A join inside a branch that goes is none of those that fine-tuning compares."""
    graph = analyze_graph(nested_net(nested))
    inner, outer = sorted(graph.residual_branches, key=lambda branch: len(branch.units))
    names = [join.name for join in residual_joins(graph, keep_all(graph))]
    assert names == [graph.node(branch.join).output[0] for branch in (inner, outer)]
    plan = without(graph, outer)
    (left,) = residual_joins(graph, plan)
    pruned = rewrite(graph, plan)
    inputs = samples(graph, 1)
    wanted = run(pruned, {"x": inputs}, [left.name])[left.name]
    found = Executor(pruned, outputs=[left.name])(torch.from_numpy(inputs))[left.name]
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-5, atol=1e-5)
