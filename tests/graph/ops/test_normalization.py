from __future__ import annotations

import numpy as np
import pytest

from tests.graph.oracle import exact, finish, reasons, start, units_at
from tests.model_builder import Builder


def test_batch_normalization_ties_all_four_parameters() -> None:
    b, x = start(5)
    y = b.batch_norm(x)
    graph = exact(finish(b, y))
    units = units_at(graph, x)
    assert all(np.array_equal(units_at(graph, name, 0), units) for name in b.nodes[-2].input[1:])


def test_batch_normalization_of_features_and_after_flatten() -> None:
    b, x = start(4, size=3)
    graph = exact(b.model(b.gemm(b.batch_norm(b.gemm(b.batch_norm(b.flatten(x)), 5)), 3)))
    assert [len(group.units) for group in graph.groups] == [4, 5]


def test_batch_normalization_in_training_mode_pins() -> None:
    b, x = start(4)
    y = b.batch_norm(x)
    b.nodes[-1].attribute.add(name="training_mode", type=2).i = 1
    b.nodes[-1].output.extend(["mean", "var"])
    graph = exact(finish(b, y), plans=1)
    assert graph.unit_count == 0 and "it is in training mode" in reasons(graph)


def test_instance_normalization() -> None:
    b, x = start(4)
    y = b.like("InstanceNormalization", x, b.weight(4), b.weight(4), epsilon=0.1)
    assert exact(finish(b, y)).unit_count == 4


def test_a_group_normalization_by_reshapes_goes_group_by_group() -> None:
    b, x = start(6)
    grouped = b.reshape(x, 0, 3, -1)
    normed = b.like("InstanceNormalization", grouped, b.weight(3), b.weight(3), epsilon=0.1)
    y = b.like("Mul", b.reshape(normed, *b.shapes[x]), b.weight(6, 1, 1))
    graph = exact(finish(b, y))
    assert graph.unit_count == 3
    assert np.array_equal(units_at(graph, x), np.repeat(units_at(graph, grouped), 2))


def test_layer_normalization_over_channels_pins_and_over_positions_passes() -> None:
    b = Builder(opset=17)
    x = b.matmul(b.input((1, 4, 5)), 6)
    y = b.like("LayerNormalization", x, b.weight(6), b.weight(6))
    graph = exact(b.model(b.matmul(y, 3)))
    assert graph.unit_count == 0 and "it normalises over channels" in reasons(graph)

    b = Builder(opset=17)
    x = b.transpose(b.matmul(b.input((1, 4, 5)), 6), 0, 2, 1)
    y = b.transpose(b.like("LayerNormalization", x, b.weight(4), b.weight(4)), 0, 2, 1)
    assert exact(b.model(b.matmul(y, 3))).unit_count == 6


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_softmax(op: str, opset: int, axis: int) -> None:
    b, x = start(4, opset=opset)
    graph = exact(finish(b, b.like(op, x, axis=axis)))
    assert graph.unit_count == (0 if axis == 1 else 4)


def test_lp_and_mean_variance_normalization() -> None:
    b, x = start(4)
    y = b.like("LpNormalization", b.like("MeanVarianceNormalization", x, axes=[2, 3]), axis=3)
    assert exact(finish(b, y)).unit_count == 4
    b, x = start(4)
    graph = exact(finish(b, b.like("MeanVarianceNormalization", x, axes=[1, 2, 3])))
    assert graph.unit_count == 0


def test_group_normalization_goes_group_by_group() -> None:
    b, x = start(6, opset=21)
    y = b.like("GroupNormalization", x, b.weight(6), b.weight(6), num_groups=3)
    graph = exact(finish(b, y))
    assert graph.unit_count == 3
    assert np.array_equal(units_at(graph, y), np.repeat(np.arange(3), 2))


def test_a_group_normalization_over_all_channels_pins() -> None:
    b, x = start(6, opset=21)
    graph = exact(finish(b, b.like("GroupNormalization", x, b.weight(6), b.weight(6), num_groups=1)))
    assert graph.unit_count == 0 and "it normalises over channels" in reasons(graph)


def test_a_class_token_does_not_hide_a_normalization_over_channels() -> None:
    b, x = start(6, opset=17, size=2)
    tokens = b.transpose(b.reshape(x, 1, 6, 4), 0, 2, 1)
    joined = b.concat(b.shaped(b.weight(1, 1, 6), 1, 1, 6), tokens)
    normed = b.like("LayerNormalization", joined, b.weight(6), b.weight(6))
    hidden = b.matmul(normed, 8)
    graph = exact(b.model(b.matmul(b.relu(hidden), 3)))
    assert [len(group.units) for group in graph.groups] == [8]
    assert units_at(graph, x).max() == -1
