from __future__ import annotations

import numpy as np
import pytest

from tests.graph.oracle import exact, finish, reasons, start, units_at
from tests.model_builder import Builder


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_depthwise_passes_its_inputs_channels(multiplier: int) -> None:
    b, x = start(6)
    y = b.conv(x, 6 * multiplier, 3, groups=6)
    graph = exact(finish(b, b.batch_norm(y)))
    assert graph.unit_count == 6
    assert np.array_equal(units_at(graph, y), np.repeat(units_at(graph, x), multiplier))
    assert graph.groups[0].producers == (graph.layers[0].name,)
    assert graph.groups[0].consumers == (graph.layers[2].name,)
    assert graph.layers[1].name in graph.groups[0].nodes and graph.layers[1].groups == 6


@pytest.mark.parametrize("out", [2, 4, 6])
def test_grouped_channels_go_at_the_same_place_of_every_group(out: int) -> None:
    b, x = start(6)
    y = b.conv(x, out, 3, groups=2)
    graph = exact(finish(b, y))
    before, after = units_at(graph, x), units_at(graph, y)
    assert np.array_equal(before[:3], before[3:]) and len(set(before)) == 3
    assert np.array_equal(after[: out // 2], after[out // 2 :])
    assert graph.unit_count == 3 + (out // 2 if out > 2 else 0)


def test_a_fixed_channel_pins_its_partners_of_other_groups() -> None:
    b, x = start(4)
    joined = b.concat("x", b.conv(x, 5))
    graph = exact(finish(b, b.conv(joined, 4, groups=2)))
    units = units_at(graph, joined)
    assert (units[:3] == -1).all() and (units[4:7] == -1).all() and units[3] == units[7] >= 0
    assert "the same channel of another group stays" in reasons(graph)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("each", [1, 3])
def test_transposed(groups: int, each: int) -> None:
    b, x = start(6, size=4)
    n, c, h, w = b.shapes[x]
    inputs = [x, b.weight(c, each, 2, 2), b.weight(groups * each)]
    y = b.node("ConvTranspose", inputs, strides=[2, 2], kernel_shape=[2, 2], group=groups)
    graph = exact(finish(b, b.relu(b.shaped(y, n, groups * each, 2 * h, 2 * w))))
    # one output channel alone can't go; in groups, position p of every group goes at once
    own = each if each > 1 else 0
    assert graph.unit_count == {1: 6 + own, 2: 3 + own, 6: 6}[groups]
    layer = graph.layers[1]
    assert (layer.weight_in_axis, layer.weight_out_axis, layer.channel_axis) == (0, 1, 1)


@pytest.mark.parametrize("rank", [3, 5])
def test_other_ranks(rank: int) -> None:
    b = Builder()
    spatial = (4,) * (rank - 2)
    x = b.input((1, 3, *spatial))
    y = b.shaped(b.node("Conv", [x, b.weight(5, 3, *([1] * (rank - 2)))]), 1, 5, *spatial)
    graph = exact(b.model(b.shaped(b.node("Conv", [y, b.weight(2, 5, *([1] * (rank - 2)))]), 1, 2, *spatial)))
    assert graph.unit_count == 5


def test_a_computed_weight_pins() -> None:
    b, x = start(4)
    kernel = b.reshape(b.conv(x, 4), 4, 4, 3, 3)
    y = b.shaped(b.node("Conv", [x, kernel]), 1, 4, 4, 4)
    graph = exact(finish(b, y))
    assert "its weight is computed" in reasons(graph)
    assert units_at(graph, x).max() == -1


def test_a_computed_bias_pins_its_channels() -> None:
    b, x = start(4)
    bias = b.reshape(b.global_pool(x), 4)
    y = b.shaped(b.node("Conv", [b.relu(x), b.weight(4, 4, 1, 1), bias]), *b.shapes[x])
    graph = exact(finish(b, y))
    assert units_at(graph, y).max() == -1 and units_at(graph, x).max() == -1


def test_channels_on_a_spatial_axis_pin() -> None:
    b, x = start(6)
    turned = b.transpose(x, 0, 2, 1, 3)
    graph = exact(finish(b, b.conv(turned, 4)))
    assert units_at(graph, x).max() == -1
    assert "its input's channels are not on axis 1" in reasons(graph)


def test_a_dense_layer_reshaped_to_maps_goes_map_by_map() -> None:
    b = Builder()
    x = b.gemm(b.input((1, 5)), 4 * 3 * 3)
    maps = b.reshape(x, 1, 4, 3, 3)
    graph = exact(finish(b, b.conv(maps, 4, 3)))
    assert len(graph.groups[0].units) == 4
    assert np.array_equal(units_at(graph, x), np.repeat(units_at(graph, maps), 9))
