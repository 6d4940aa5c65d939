"""Reductions over channels: what goes counts as zeros, with a constant behind where these would show."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxprune.errors import VerificationError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.check import verify
from onnxprune.graph.plan import Plan
from onnxprune.graph.reduced import BEHIND, SUMS
from onnxprune.graph.rewrite import rewrite
from onnxprune.profile.cost import CostModel, count
from tests.graph.oracle import exact, finish, reasons, start, units_at
from tests.model_builder import Builder


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def shares(model: onnx.ModelProto) -> list[float]:
    return [float(numpy_helper.to_array(t)) for t in model.graph.initializer if t.name.endswith("_zeros")]


@pytest.mark.parametrize("opset", [12, 18])
@pytest.mark.parametrize("op", [*SUMS, *BEHIND])
@pytest.mark.parametrize("sign", ["Softplus", "Neg"])
def test_whatever_goes_counts_as_zero(op: str, sign: str, opset: int) -> None:
    """Values of one sign only, so that the zeros of what goes are the greatest or the least ones."""
    b, x = start(6, opset=opset)
    x = b.like("Softplus", x)
    y = b.reduce(op, x if sign == "Softplus" or op == "ReduceLogSum" else b.like("Neg", x), 1)
    graph = exact(finish(b, b.like("Mul", x, y)), plans=4)
    assert graph.unit_count == 6


def test_what_a_mean_lacks_is_one_constant_that_costs_nothing() -> None:
    b, x = start(6)
    model = finish(b, b.like("Mul", x, b.reduce("ReduceMean", x, 1)))
    graph, plan = analyze_graph(model), Plan(np.arange(6) < 2)
    pruned = rewrite(graph, plan)
    assert kinds(pruned) - kinds(graph.model) == {"Mul": 1}
    assert shares(pruned) == pytest.approx([2 / 6])
    cost, counted = CostModel.of(graph), count(pruned)
    assert (cost.macs(plan.keep), cost.params(plan.keep)) == (counted.macs, counted.params)
    again, second = analyze_graph(pruned), Plan(np.array([True, False]))
    smallest = rewrite(again, second)
    assert verify(again, second, smallest) <= 1e-5
    assert verify(graph, Plan(np.arange(6) < 1), smallest) <= 1e-5


@pytest.mark.parametrize("op", BEHIND)
def test_the_oracle_sees_that_the_constant_is_missing(op: str) -> None:
    b, x = start(6)
    x = b.like("Softplus" if op == "ReduceMin" else "Neg", b.like("Softplus", x))
    graph, plan = analyze_graph(finish(b, b.like("Mul", x, b.reduce(op, x, 1)))), Plan(np.arange(6) < 3)
    pruned = rewrite(graph, plan)
    assert verify(graph, plan, pruned) <= 1e-5
    behind = next(node for node in pruned.graph.node if node.input[1:] and node.input[1].endswith("_zeros"))
    behind.op_type = "Identity"
    del behind.input[1]
    with pytest.raises(VerificationError):
        verify(graph, plan, pruned)


@pytest.mark.parametrize("axes", [(1, 2, 3), (0, 1, 2, 3), (-3, 3)])
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceL2", "ReduceMax"])
def test_channels_and_positions_at_once(op: str, axes: tuple[int, ...]) -> None:
    b, x = start(6)
    graph = exact(finish(b, b.like("Mul", x, b.reduce(op, x, *axes))), plans=4)
    assert graph.unit_count == 6


def test_a_channel_at_several_places_of_the_axis() -> None:
    b, x = start(6, size=3)
    flat = b.flatten(b.concat(x, b.relu(x), b.conv(x, 2, 3)))
    y = b.gemm(b.like("Mul", flat, b.reduce("ReduceMean", flat, 1)), 3)
    graph = exact(b.model(y), plans=4)
    assert graph.unit_count == 8
    assert len(units_at(graph, flat)) == 14 * 9
    pruned = rewrite(graph, Plan(np.arange(8) > 0))
    assert shares(pruned) == pytest.approx([12 / 14])


def test_over_other_axes_whole_units_pass() -> None:
    b, x = start(6)
    y = b.reduce("ReduceMean", b.reshape(x, 1, 3, 2, 6, 6), 2, keep=0)
    graph = exact(finish(b, y), plans=4)
    assert graph.unit_count == 3 and shares(rewrite(graph, Plan(np.arange(3) > 0))) == []


@pytest.mark.parametrize("op", ["ReduceLogSumExp", "ReduceProd"])
def test_where_zeros_would_show_channels_stay(op: str) -> None:
    for axes in ((1,), (0, 1, 2, 3)):
        b, x = start(4)
        graph = exact(b.model(b.conv(b.like("Sub", x, b.reduce(op, x, *axes)), 3)))
        assert graph.unit_count == 0 and "it reduces over channels" in reasons(graph)


@pytest.mark.parametrize("axis", [1, 3])
def test_a_layer_normalization_in_its_parts(axis: int) -> None:
    """Over the last axis it stays whole, as the op does: runtimes make that op of it."""
    b, x = start(6)
    x = x if axis == 1 else b.transpose(x, 0, 2, 3, 1)
    centred = b.like("Sub", x, b.reduce("ReduceMean", x, axis))
    variance = b.reduce("ReduceMean", b.like("Mul", centred, centred), axis)
    y = b.like("Div", centred, b.like("Sqrt", b.like("Add", variance, b.constant(np.float32(1e-3)))))
    graph = exact(finish(b, y if axis == 1 else b.transpose(y, 0, 3, 1, 2)), plans=4)
    assert graph.unit_count == (6 if axis == 1 else 0)
    assert ("it normalises over channels" in reasons(graph)) == (axis == 3)


def test_integers_have_no_share() -> None:
    b, x = start(4)
    mean = b.reduce("ReduceMean", b.like("Cast", x, to=TensorProto.INT32), 1)
    graph = exact(finish(b, b.like("Add", x, b.like("Cast", mean, to=TensorProto.FLOAT))))
    assert graph.unit_count == 0 and "it reduces over channels" in reasons(graph)


def test_opset_7_knows_no_maximum_with_a_constant() -> None:
    for op, units in (("ReduceMax", 0), ("ReduceMean", 4)):
        b, x = start(4, opset=7)
        assert exact(finish(b, b.like("Add", x, b.reduce(op, x, 1)))).unit_count == units


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_constant_has_the_type_of_what_it_meets(dtype: type) -> None:
    b = Builder(dtype=dtype)
    x = b.matmul(b.input((1, 5, 4)), 6)
    y = b.like("Mul", b.like("Add", x, b.reduce("ReduceMean", x, 2)), b.reduce("ReduceMax", x, 2))
    graph = exact(b.model(b.matmul(y, 3)), plans=4)
    assert graph.unit_count == 6


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [1, -1])
def test_division_by_a_norm(axis: int, p: int) -> None:
    b, x = start(6)
    x = x if axis == 1 else b.transpose(x, 0, 2, 3, 1)
    y = b.like("LpNormalization", x, axis=axis, p=p)
    assert exact(finish(b, y if axis == 1 else b.transpose(y, 0, 3, 1, 2)), plans=4).unit_count == 6


def responding(*, opset: int = 17) -> onnx.ModelProto:
    """A residual block of ConvNeXt V2: two dense layers with a normalised response in between."""
    b = Builder(opset=opset)
    x = b.transpose(b.conv(b.input((1, 3, 6, 6)), 4, 3), 0, 2, 3, 1)
    y = b.like("Gelu" if opset >= 20 else "Elu", b.like("Add", b.matmul(x, 8), b.weight(8)))
    norms = b.reduce("ReduceL2", y, 1, 2)
    mean = b.node("Add", [b.reduce("ReduceMean", norms, 3), b.constant(np.float32(1e-6))])
    scaled = b.like("Mul", b.like("Mul", y, b.like("Div", norms, mean)), b.weight(8))
    y = b.like("Add", b.matmul(b.like("Add", y, b.like("Add", scaled, b.weight(8))), 4), b.weight(4))
    return b.model(b.matmul(b.like("Add", x, y), 3))


@pytest.mark.parametrize("opset", [13, 18, 20])
def test_the_hidden_layer_of_a_normalised_response(opset: int) -> None:
    graph = exact(responding(opset=opset), plans=6)
    assert sorted(len(group.units) for group in graph.groups) == [4, 8]
    hidden = max(graph.groups, key=lambda group: len(group.units)).units
    (branch,) = graph.residual_branches
    assert np.array_equal(branch.entry, hidden)
    whole = Plan(~np.isin(np.arange(graph.unit_count), branch.units))
    assert verify(graph, whole, rewrite(graph, whole)) <= 1e-5
