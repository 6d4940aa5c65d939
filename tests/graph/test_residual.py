"""Residual branches that go as a whole: found where they can, exact where they do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.errors import PlanError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.check import verify
from onnxprune.graph.plan import Plan, keep_all, validate
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph, removed_branches
from onnxprune.profile.cost import CostModel, count
from tests.model_builder import Builder
from tests.quantized import rounded
from tests.recover.nets import folded, resnet

Block = Callable[[Builder, str], str]


def net(
    block: Block, *, opset: int = 17, dtype: type = np.float32, weights_are_inputs: bool = False
) -> onnx.ModelProto:
    """A Conv, a residual block around ``block``, another Conv on top."""
    b = Builder(opset=opset, dtype=dtype)
    x = b.relu(b.conv(b.input((1, 3, 6, 6)), 5, 3))
    y = b.relu(b.like("Add", block(b, x), x))
    return b.model(b.conv(y, 2, 1), inputs_for_weights=weights_are_inputs)


def basic(b: Builder, x: str) -> str:
    return b.conv(b.relu(b.conv(x, 7, 3)), 5, 3)


def bottleneck(b: Builder, x: str) -> str:
    y = b.relu(b.batch_norm(b.conv(x, 4, 1, bias=False)))
    y = b.relu(b.batch_norm(b.conv(y, 6, 3, bias=False)))
    return b.batch_norm(b.conv(y, 5, 1, bias=False))


def preactivation(b: Builder, x: str) -> str:
    return b.conv(b.relu(b.batch_norm(b.conv(b.relu(b.batch_norm(x)), 6, 3, bias=False))), 5, 3)


def inverted(b: Builder, x: str) -> str:
    """Expanded, depthwise, squeezed and excited, projected."""
    y = b.relu(b.conv(x, 8, 1))
    y = b.relu(b.conv(y, 8, 3, groups=8))
    scale = b.conv(b.relu(b.conv(b.global_pool(y), 3, 1)), 8, 1)
    y = b.shaped(b.node("Mul", [y, b.shaped(b.node("Sigmoid", [scale]), 1, 8, 1, 1)]), *b.shapes[y])
    return b.conv(y, 5, 1)


def depthwise_first(b: Builder, x: str) -> str:
    """Begins with a layer whose channels are the stream's, and stay."""
    return b.conv(b.relu(b.conv(b.conv(x, 5, 3, groups=5), 8, 1)), 5, 1)


def scaled(b: Builder, x: str) -> str:
    """What the branch gives is scaled and shifted before it joins."""
    y = b.conv(b.relu(b.conv(x, 7, 3)), 5, 3)
    y = b.like("Mul", y, b.weight(1, 5, 1, 1))
    return b.like("Add", y, b.weight(1, 5, 1, 1))


def nested(b: Builder, x: str) -> str:
    y = b.relu(b.conv(x, 6, 1))
    y = b.relu(b.like("Add", b.conv(b.relu(b.conv(y, 4, 3)), 6, 3), y))
    return b.conv(y, 5, 1)


def without(graph: PruningGraph, *readers: str) -> Plan:
    """The plan without the branches that end with ``readers``; without any when none is named."""
    plan = keep_all(graph)
    for branch in graph.residual_branches:
        if not readers or branch.reader in readers:
            plan.keep[branch.units] = False
    return plan


@pytest.mark.parametrize(
    "block", (basic, bottleneck, preactivation, inverted, depthwise_first, scaled, nested)
)
@pytest.mark.parametrize("opset", (8, 13, 21))
def test_a_branch_goes_as_a_whole(block: Block, opset: int) -> None:
    model = net(block, opset=opset)
    graph = analyze_graph(model)
    outer = graph.residual_branches[-1]
    plan = without(graph, outer.reader)
    assert removed_branches(graph.residual_branches, plan.keep) == (outer,)
    pruned = rewrite(graph, plan)
    assert verify(graph, plan, pruned) <= 1e-5
    assert [node.op_type for node in pruned.graph.node] == ["Conv", "Relu", "Add", "Relu", "Conv"]
    constant = next(tensor for tensor in pruned.graph.initializer if tensor.name == outer.tensor)
    assert list(constant.dims) == [1, 5, 1, 1]
    assert len(pruned.graph.initializer) == 5
    written, costs = count(pruned), CostModel.of(graph)
    assert (written.macs, written.params) == (costs.macs(plan.keep), costs.params(plan.keep))


@pytest.mark.parametrize("block", (basic, bottleneck, nested))
def test_the_stream_may_lose_channels_too(block: Block) -> None:
    graph = analyze_graph(net(block))
    plan = without(graph)
    plan.keep[graph.layers[0].out_units[[0, 3]]] = False
    pruned = rewrite(graph, plan)
    assert verify(graph, plan, pruned) <= 1e-5
    written, costs = count(pruned), CostModel.of(graph)
    assert (written.macs, written.params) == (costs.macs(plan.keep), costs.params(plan.keep))


def test_an_inner_branch_alone() -> None:
    graph = analyze_graph(net(nested))
    inner, outer = sorted(graph.residual_branches, key=lambda branch: len(branch.units))
    assert set(inner.units) < set(outer.units) and inner.nodes < outer.nodes
    plan = without(graph, inner.reader)
    pruned = rewrite(graph, plan)
    assert verify(graph, plan, pruned) <= 1e-5
    written, costs = count(pruned), CostModel.of(graph)
    assert (written.macs, written.params) == (costs.macs(plan.keep), costs.params(plan.keep))
    # Whatever is removed inside one that goes is one removal.
    assert removed_branches(graph.residual_branches, without(graph).keep) == (outer,)


@pytest.mark.parametrize("norm", (True, False))
def test_networks_without_any_branch(norm: bool) -> None:
    model = resnet(norm=norm)
    for graph in (analyze_graph(model), analyze_graph(folded(model))):
        plan = without(graph)
        pruned = rewrite(graph, plan)
        assert verify(graph, plan, pruned) <= 1e-5
        # What is left can be analysed and pruned again.
        again = analyze_graph(pruned)
        half = keep_all(again)
        for group in again.groups:
            half.keep[group.units[::2]] = False
        assert verify(again, half, rewrite(again, half)) <= 1e-5


def test_weights_that_are_inputs_go_as_inputs() -> None:
    graph = analyze_graph(net(bottleneck, opset=9, weights_are_inputs=True))
    plan = without(graph)
    pruned = rewrite(graph, plan)
    assert verify(graph, plan, pruned) <= 1e-5
    assert {value.name for value in pruned.graph.input} <= {value.name for value in graph.model.graph.input}
    read = {name for node in pruned.graph.node for name in node.input}
    assert {value.name for value in pruned.graph.input} <= read


def test_half_precision_stays_half() -> None:
    graph = analyze_graph(net(basic, dtype=np.float16))
    plan = without(graph)
    pruned = rewrite(graph, plan)
    assert verify(graph, plan, pruned) <= 2e-2
    constant = next(t for t in pruned.graph.initializer if t.name == graph.residual_branches[0].tensor)
    assert numpy_helper.to_array(constant).dtype == np.float16


def no_place(b: Builder, x: str) -> str:
    return b.conv(b.relu(b.conv(x, 7, 3)), 5, 3, bias=False)


def quantized(b: Builder, x: str) -> str:
    return rounded(b, basic(b, x))


def straight(b: Builder, x: str) -> str:
    """The branch is one Conv: what it reads is the stream itself."""
    return b.conv(x, 5, 3)


@pytest.mark.parametrize("block", (no_place, quantized, straight))
def test_branches_that_have_to_stay(block: Block) -> None:
    assert analyze_graph(net(block)).residual_branches == ()


def test_a_branch_whose_inside_is_read_elsewhere_stays() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 6, 6)), 5, 3))
    inside = b.relu(b.conv(x, 7, 3))
    y = b.relu(b.like("Add", b.conv(inside, 5, 3), x))
    graph = analyze_graph(b.model(b.conv(y, 2, 1), b.conv(inside, 2, 1)))
    assert graph.residual_branches == ()


def test_a_second_input_of_the_model_stays() -> None:
    b = Builder()
    x, z = b.input((1, 3, 6, 6)), b.input((1, 3, 6, 6), "z")
    shortcut = b.relu(b.conv(x, 5, 3))
    y = b.relu(b.like("Add", b.conv(b.relu(b.conv(z, 7, 3)), 5, 3), shortcut))
    graph = analyze_graph(b.model(b.conv(y, 2, 1)))
    (branch,) = graph.residual_branches
    pruned = rewrite(graph, without(graph))
    assert [value.name for value in pruned.graph.input] == ["x", "z"]
    assert "z" not in branch.tensors


def test_plans_that_leave_half_a_branch() -> None:
    graph = analyze_graph(net(bottleneck))
    (branch,) = graph.residual_branches
    plan = keep_all(graph)
    plan.keep[branch.entry] = False
    first = next(group for group in graph.groups if set(group.units) == set(branch.units) - set(branch.entry))
    with pytest.raises(PlanError, match="keeps channels of") as caught:
        validate(graph, plan)
    assert repr(first.name) in str(caught.value) and caught.value.hint
    # The other way round, the middle layer would have nothing to read.
    plan = keep_all(graph)
    plan.keep[first.units] = False
    with pytest.raises(PlanError, match="removes all 4 channels of the group"):
        validate(graph, plan)


def test_a_plan_file_can_remove_a_branch() -> None:
    graph = analyze_graph(net(bottleneck))
    plan = without(graph)
    again = Plan.from_json(graph, plan.to_json(graph))
    np.testing.assert_array_equal(again.keep, plan.keep)
