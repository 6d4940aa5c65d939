"""LRN: each channel is divided by a sum over its neighbours, and some of these go."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.check import verify
from onnxprune.graph.plan import Plan
from onnxprune.graph.rewrite import rewrite
from onnxprune.profile.cost import CostModel, count
from tests.graph.oracle import exact, finish, start, units_at


def responsive(channels: int = 9, *, size: int = 5, opset: int = 13) -> onnx.ModelProto:
    """Conv, Relu and an LRN strong enough that a wrong neighbour shows."""
    b, x = start(channels, opset=opset)
    return finish(b, b.like("LRN", b.relu(x), size=size, alpha=3.0, beta=0.6, bias=0.5))


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 18])
@pytest.mark.parametrize("size", [1, 3, 5, 11])
def test_whatever_goes_the_others_keep_their_neighbours(size: int, opset: int) -> None:
    graph = exact(responsive(size=size, opset=opset), plans=6)
    assert graph.unit_count == 9


def test_channels_between_others_leave_zeros_behind_and_cost_nothing() -> None:
    graph = analyze_graph(responsive())
    plan = Plan(np.isin(np.arange(9), [0, 1, 3, 8]))
    pruned = rewrite(graph, plan)
    assert kinds(pruned) == {"Conv": 2, "Relu": 1, "LRN": 1, "Pad": 1, "Gather": 2}
    spacing = next(tensor for tensor in pruned.graph.initializer if "spacing" in tensor.name)
    assert onnx.numpy_helper.to_array(spacing).tolist() == [0, 1, 4, 2, 4, 4, 3]
    counted = count(pruned)
    cost = CostModel.of(graph)
    assert (counted.macs, counted.params) == (cost.macs(plan.keep), cost.params(plan.keep))


@pytest.mark.parametrize("gone", [[0, 1], [8], [0, 7, 8]])
def test_the_node_stays_where_only_the_ends_go(gone: list[int]) -> None:
    graph = analyze_graph(responsive())
    plan = Plan(~np.isin(np.arange(9), gone))
    pruned = rewrite(graph, plan)
    assert kinds(pruned) == kinds(graph.model)
    assert verify(graph, plan, pruned) <= 1e-5


def test_a_pruned_model_can_be_pruned_again() -> None:
    graph = analyze_graph(responsive())
    first = Plan(np.isin(np.arange(9), [0, 2, 3, 5, 8]))
    again = analyze_graph(rewrite(graph, first))
    assert again.unit_count == 5
    second = Plan(np.isin(np.arange(5), [0, 1, 4]))
    pruned = rewrite(again, second)
    assert verify(again, second, pruned) <= 1e-5
    both = Plan(np.isin(np.arange(9), [0, 2, 8]))
    assert verify(graph, both, pruned) <= 1e-5


def test_channels_of_joined_branches_and_of_another_axis() -> None:
    b, x = start(5)
    y = b.like("LRN", b.concat(x, b.conv("x", 4, 3)), size=3, alpha=2.0)
    assert exact(finish(b, y), plans=5).unit_count == 9
    b, x = start(4, size=5)
    y = b.like("LRN", b.transpose(x, 0, 2, 1, 3), size=3, alpha=2.0)
    graph = exact(finish(b, b.transpose(y, 0, 2, 1, 3)))
    assert np.array_equal(units_at(graph, x), units_at(graph, y, 2)) and graph.unit_count == 4
