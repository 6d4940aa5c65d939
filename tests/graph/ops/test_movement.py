from __future__ import annotations

import numpy as np
import pytest

from tests.graph.oracle import exact, finish, reasons, start, units_at
from tests.model_builder import Builder


@pytest.mark.parametrize("groups", [2, 3])
def test_channel_shuffle(groups: int) -> None:
    b, x = start(6)
    n, c, h, w = b.shapes[x]
    y = b.transpose(b.reshape(x, n, groups, c // groups, h, w), 0, 2, 1, 3, 4)
    y = b.reshape(y, n, c, h, w)
    graph = exact(finish(b, y))
    # Coupled to whatever leaves the most units: max(groups, c // groups) of them.
    assert graph.unit_count == 3
    shuffled = units_at(graph, x).reshape(groups, -1).T.ravel()
    assert np.array_equal(units_at(graph, y), shuffled)


def test_flatten_keeps_whole_channels() -> None:
    b, x = start(4, size=3)
    flat = b.flatten(x)
    graph = exact(b.model(b.gemm(flat, 3)))
    assert np.array_equal(units_at(graph, flat), np.repeat(units_at(graph, x), 9))


def test_channels_last_round_trip() -> None:
    b, x = start(4)
    last = b.transpose(x, 0, 2, 3, 1)
    dense = b.relu(b.matmul(last, 5))
    graph = exact(finish(b, b.transpose(dense, 0, 3, 1, 2)))
    assert [len(group.units) for group in graph.groups] == [4, 5]
    assert np.array_equal(units_at(graph, last, 3), units_at(graph, x))
    assert graph.layers[1].channel_axis == 3


@pytest.mark.parametrize("opset", [8, 11, 17])
@pytest.mark.parametrize("sizes", [(3, 3), (1, 5)])
def test_split_and_concat(opset: int, sizes: tuple[int, int]) -> None:
    b, x = start(6, opset=opset)
    left, right = b.split(x, sizes)
    y = b.concat(right, b.conv(left, 2), left)
    graph = exact(finish(b, y))
    # A part of one channel must keep it.
    kept = [unit for unit, size in zip(range(2), sizes, strict=True) if size == 1]
    assert graph.unit_count == 8 - len(kept)


@pytest.mark.parametrize("opset", [9, 10, 17])
def test_slices_of_channels(opset: int) -> None:
    b, x = start(6, opset=opset)
    head, tail = b.slice(x, 1, 0, 4), b.slice(x, 1, 2, 6)
    graph = exact(finish(b, b.like("Add", b.relu(head), tail)))
    units = units_at(graph, x)
    # Channel k meets channel k + 2.
    assert np.array_equal(units[:4], units[2:]) and graph.unit_count == 2


def test_strided_and_reversed_slices() -> None:
    b, x = start(6)
    back = b.shaped(
        b.node("Slice", [x, b.ints([5]), b.ints([-100]), b.ints([1]), b.ints([-1])]), *b.shapes[x]
    )
    graph = exact(finish(b, b.concat(back, b.slice(x, 1, 1, 6, 2))))
    assert np.array_equal(units_at(graph, back), units_at(graph, x)[::-1])


@pytest.mark.parametrize("opset", [10, 12, 18])
def test_padding_along_channels_binds_nothing(opset: int) -> None:
    b, x = start(4, opset=opset)
    padded = b.pad(x, [0, 2, 0, 0, 0, 1, 0, 0])
    other = b.conv("x", 7, 3)
    graph = exact(finish(b, b.like("Add", padded, other)))
    assert graph.unit_count == 7
    assert np.array_equal(units_at(graph, padded)[2:6], units_at(graph, x))
    assert np.array_equal(units_at(graph, padded), units_at(graph, other))


def test_padding_alone_is_never_removed() -> None:
    b, x = start(4)
    padded = b.pad(x, [0, 1, 1, 0, 0, 1, 0, 1])
    graph = exact(finish(b, padded))
    assert units_at(graph, padded)[[0, 5]].tolist() == [-1, -1] and graph.unit_count == 4


def test_reflected_channels_pin() -> None:
    b, x = start(4)
    graph = exact(finish(b, b.pad(x, [0, 1, 0, 0, 0, 1, 0, 0], "reflect")))
    assert graph.unit_count == 0 and "it pads channels in mode 'reflect'" in reasons(graph)


def test_constants_in_a_concat_go_along_but_not_alone() -> None:
    b, x = start(4, size=3)
    filler = b.constant(b.random.standard_normal((1, 2, 3, 3)).astype(np.float32))
    wide = b.concat(x, b.shaped(filler, 1, 2, 3, 3))
    other = b.conv("x", 6, 3)
    graph = exact(finish(b, b.like("Add", wide, other)))
    assert graph.unit_count == 6
    assert np.array_equal(units_at(graph, filler), units_at(graph, other)[4:])
    b, x = start(4, size=3)
    filler = b.constant(b.random.standard_normal((1, 2, 3, 3)).astype(np.float32))
    assert exact(finish(b, b.concat(b.shaped(filler, 1, 2, 3, 3), x))).unit_count == 4


def test_gather_picks_permutes_and_repeats() -> None:
    b, x = start(5)
    picked = b.shaped(b.node("Gather", [x, b.ints([4, 0, 0, -3])], axis=1), 1, 4, *b.shapes[x][2:])
    graph = exact(finish(b, picked))
    assert np.array_equal(units_at(graph, picked), units_at(graph, x)[[4, 0, 0, 2]])


def test_gather_of_one_channel_drops_the_axis() -> None:
    b, x = start(4)
    one = b.shaped(b.node("Gather", [x, b.constant(np.int64(2))], axis=1), 1, *b.shapes[x][2:])
    graph = exact(b.model(b.conv(x, 2), b.matmul(one, 2)))
    assert graph.unit_count == 3 and units_at(graph, x)[2] == -1


def test_an_embedding_and_a_computed_slice_pass() -> None:
    b = Builder()
    x = b.matmul(b.input((1, 4, 5)), 6)
    first = b.shaped(b.node("Gather", [x, b.constant(np.int64(0))], axis=1), 1, 6)
    graph = exact(b.model(b.gemm(first, 3)))
    assert graph.unit_count == 6


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_takes_whole_blocks(mode: str) -> None:
    b, x = start(12, size=3)
    y = b.shaped(b.node("DepthToSpace", [x], blocksize=2, mode=mode), 1, 3, 6, 6)
    graph = exact(finish(b, y))
    assert graph.unit_count == 3
    order = units_at(graph, x).reshape((4, 3) if mode == "DCR" else (3, 4))
    assert np.array_equal(units_at(graph, y), order[0] if mode == "DCR" else order[:, 0])


def test_depth_to_space_of_one_channel_pins() -> None:
    b, x = start(4, size=3)
    y = b.shaped(b.node("DepthToSpace", [x], blocksize=2), 1, 1, 6, 6)
    assert exact(finish(b, y)).unit_count == 0


def test_space_to_depth() -> None:
    b, x = start(3, size=4)
    y = b.shaped(b.node("SpaceToDepth", [x], blocksize=2), 1, 12, 2, 2)
    graph = exact(finish(b, y))
    assert graph.unit_count == 3
    assert np.array_equal(units_at(graph, y), np.tile(units_at(graph, x), 4))


def test_expand_and_tile() -> None:
    b, x = start(4)
    pooled = b.global_pool(x)
    wide = b.shaped(b.node("Expand", [pooled, b.ints([1, 4, 6, 6])]), 1, 4, 6, 6)
    tiled = b.shaped(b.node("Tile", [x, b.ints([1, 2, 1, 1])]), 1, 8, 6, 6)
    graph = exact(finish(b, b.concat(b.like("Add", x, wide), tiled)))
    assert graph.unit_count == 4
    assert np.array_equal(units_at(graph, tiled), np.tile(units_at(graph, x), 2))


def test_copies_of_what_has_no_channels_go_with_those_that_they_meet() -> None:
    """A vector divided by its length, as PyTorch writes it."""
    b, x = start(6)
    flat = b.shaped(b.node("Flatten", [b.global_pool(x)]), 1, 6)
    length = b.like("Max", b.reduce("ReduceL2", flat, 1), b.constant(np.float32(1e-3)))
    wide = b.shaped(b.node("Expand", [length, b.ints([1, 6])]), 1, 6)
    graph = exact(b.model(b.matmul(b.like("Div", flat, wide), 3)), plans=4)
    assert graph.unit_count == 6 and np.array_equal(units_at(graph, wide), units_at(graph, flat))


def test_a_constant_that_widens_what_has_no_channels_goes_with_those_that_both_meet() -> None:
    """A normalisation as Keras writes it: one factor of scale and deviation, one term of shift and mean."""
    b, x = start(6)
    mean = b.reduce("ReduceMean", x, 1)
    square = b.reduce("ReduceMean", b.like("Mul", x, x), 1)
    inverse = b.like("Reciprocal", b.like("Sqrt", b.like("Add", square, b.constant(np.float32(0.1)))))
    factor = b.shaped(b.node("Mul", [inverse, b.weight(1, 6, 1, 1)]), 1, 6, 6, 6)
    less = b.like("Mul", factor, mean)
    term = b.like("Sub", less, b.weight(1, 6, 1, 1))
    graph = exact(finish(b, b.like("Sub", b.like("Mul", x, factor), term)), plans=4)
    assert graph.unit_count == 6 and np.array_equal(units_at(graph, term), units_at(graph, x))


@pytest.mark.parametrize("shape", [(1, 1, 6, 6), (1, 4, 6, 6)])
def test_copies_that_channels_do_not_lie_along(shape: tuple[int, ...]) -> None:
    """A mask of positions leaves the channels that it is spread over free; one of their own size is data."""
    b, x = start(4)
    mask = b.reduce("ReduceMean", b.input((1, 1, 6, 6), "mask"), 2)
    wide = b.shaped(b.node("Expand", [mask, b.ints(list(shape))]), *shape)
    graph = exact(finish(b, b.like("Add", x, wide)))
    assert graph.unit_count == (4 if shape[1] == 1 else 0)


def test_squeeze_and_unsqueeze() -> None:
    b, x = start(4, size=3)
    squeezed = b.shaped(b.node("Squeeze", [b.global_pool(x), b.ints([2, 3])]), 1, 4)
    back = b.shaped(b.node("Unsqueeze", [squeezed, b.ints([2, 3])]), 1, 4, 1, 1)
    assert exact(finish(b, b.like("Mul", x, back))).unit_count == 4


def test_reading_the_channel_count_pins_and_other_sizes_do_not() -> None:
    for axis, units in ((1, 0), (2, 4)):
        b = Builder()
        x = b.conv(b.input((1, 3, 4, 4), dynamic=True), 4, 3)
        del b.inputs[0].type.tensor_type.shape.dim[1:]
        for name in ("c", "h", "w"):
            b.inputs[0].type.tensor_type.shape.dim.add().dim_param = name
        if axis == 1:
            x = b.concat(x, b.conv("x", 2, 3))
        size = b.node("Gather", [b.node("Shape", [x]), b.constant(np.int64(axis))])
        scale = b.node("Cast", [size], to=1)
        y = b.like("Mul", x, scale)
        graph = exact_at(b, y, (1, 3, 4, 4))
        assert graph == (6 if axis == 1 else units)


def exact_at(b: Builder, y: str, shape: tuple[int, ...]) -> int:
    """Units of a model whose input has dynamic axes, looked at with one shape."""
    from onnxprune.graph.analysis import analyze_graph

    graph = analyze_graph(finish(b, y), input_shapes={"x": shape})
    return graph.unit_count


def test_an_empty_result_keeps_its_channels() -> None:
    """Channels that reach a tensor without elements still count in its shape."""
    b, x = start(6)
    empty = b.slice(x, 2, 3, 3)
    joined = b.concat(empty, empty)
    flat = b.node("Reshape", [joined, b.ints([1, 0])], allowzero=1)
    graph = exact(b.model(b.conv(x, 3), b.shaped(flat, 1, 0)))
    assert units_at(graph, x).max() == -1 and "its output is empty" in reasons(graph)


@pytest.mark.parametrize("op", ["Expand", "Tile"])
def test_a_small_constant_that_is_spread_over_a_map_stays_small(op: str) -> None:
    """Folded into a stored map it once made the smaller file the larger one."""
    b, x = start(8, size=32)
    counts = [1, 8, 32, 32] if op == "Expand" else [1, 1, 32, 32]
    x = b.like("Add", x, b.node(op, [b.weight(1, 8, 1, 1), b.constant(np.array(counts))]))
    graph = exact(finish(b, b.relu(x)))
    assert (units_at(graph, x) >= 0).all()
    assert max(int(np.prod(tensor.dims)) for tensor in graph.model.graph.initializer) < 8 * 32 * 32
