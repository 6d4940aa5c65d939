"""Which tensor each layer is judged at, in the topologies that exporters write."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.joins import Clip, Target, Targets
from onnxprune.graph.structure import PruningGraph
from tests.model_builder import Builder
from tests.plain import samples, tap


def targets(graph: PruningGraph) -> list[Target]:
    found = Targets(graph)
    return [found.of(layer) for layer in graph.layers]


def check_affine(graph: PruningGraph) -> None:
    """Every target must be the affine map of its layer's output, plus the shortcut."""
    for layer, target in zip(graph.layers, targets(graph), strict=True):
        names = [layer.output, target.tensor, *([target.shortcut] if target.shortcut else [])]
        found = tap(graph, samples(graph, 2), list(dict.fromkeys(names)))
        axes = [-1 if axis == layer.channel_axis else 1 for axis in range(found[layer.output].ndim)]
        expected = found[layer.output] * target.affine.scale.reshape(axes) + target.affine.shift.reshape(axes)
        if target.shortcut:
            expected = expected + found[target.shortcut]
        assert np.allclose(expected, found[target.tensor], atol=1e-5)


def block(*, norm: bool, swap: bool = False) -> tuple[Builder, list[str], str]:
    """(builder, outputs of the Convs in graph order, output of the join) of a stem and a residual block."""
    b = Builder()
    stem = b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3)
    x = b.relu(b.batch_norm(stem) if norm else stem)
    inner = b.conv(x, 5, 3)
    last = b.conv(b.relu(b.batch_norm(inner) if norm else inner), 4, 3)
    y = b.batch_norm(last) if norm else last
    join = b.like("Add", y, x) if swap else b.like("Add", x, y)
    return b, [stem, inner, last, x], join


def test_a_block_without_norms() -> None:
    for swap in (False, True):
        b, (stem, inner, last, x), join = block(norm=False, swap=swap)
        graph = analyze_graph(b.model(b.relu(join)))
        assert [(t.tensor, t.shortcut) for t in targets(graph)] == [(stem, None), (inner, None), (join, x)]
        assert [layer.output for layer in graph.layers] == [stem, inner, last]
        check_affine(graph)


def test_a_block_with_norms() -> None:
    b, (_, _, _, x), join = block(norm=True)
    graph = analyze_graph(b.model(b.relu(join)))
    found = targets(graph)
    assert (found[2].tensor, found[2].shortcut) == (join, x)
    assert [len(target.affine.chain) for target in found] == [1, 1, 1]
    check_affine(graph)


def downsampling(*, projection_first: bool) -> tuple[onnx.ModelProto, str, str, str]:
    """(model, output of the projection, of the last Conv of the branch, of the join)."""
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3))
    if projection_first:
        side = b.batch_norm(b.conv(x, 6, 1, stride=2))
    branch = b.batch_norm(b.conv(b.relu(b.conv(x, 5, 3, stride=2)), 6, 3))
    if not projection_first:
        side = b.batch_norm(b.conv(x, 6, 1, stride=2))
    join = b.like("Add", branch, side)
    return b.model(b.relu(join)), side, branch, join


def test_only_the_last_layer_before_a_join_corrects_it() -> None:
    for projection_first in (False, True):
        model, side, branch, join = downsampling(projection_first=projection_first)
        graph = analyze_graph(model)
        ends = {target.tensor: target.shortcut for target in targets(graph)}
        corrected, left = (side, branch) if projection_first else (branch, side)
        assert ends[join] == corrected  # the other operand
        assert ends[corrected] is None and left not in ends
        check_affine(graph)


def test_a_preactivation_net_corrects_every_join() -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3)
    joins, shortcuts = [], []
    for _ in range(2):
        y = b.conv(b.relu(b.batch_norm(x)), 5, 3, bias=False)
        y = b.conv(b.relu(b.batch_norm(y)), 4, 3, bias=False)
        shortcuts.append(x)
        x = b.like("Add", x, y)
        joins.append(x)
    graph = analyze_graph(b.model(b.relu(b.batch_norm(x))))
    found = targets(graph)
    # The first Conv's output is read by the norm and the join: it is judged by itself.
    assert (found[0].tensor, found[0].affine.chain) == (graph.layers[0].output, ())
    assert [(found[index].tensor, found[index].shortcut) for index in (2, 4)] == list(
        zip(joins, shortcuts, strict=True)
    )
    check_affine(graph)


def test_three_branches_joined_by_two_additions() -> None:
    b = Builder()
    x = b.input((1, 3, 6, 6), dynamic=True)
    one, two, three = (b.conv(x, 4, k) for k in (1, 3, 3))
    first = b.like("Add", one, two)
    second = b.like("Add", first, three)
    graph = analyze_graph(b.model(b.relu(second)))
    found = targets(graph)
    assert [(target.tensor, target.shortcut) for target in found] == [
        (one, None),
        (first, one),
        (second, first),
    ]
    check_affine(graph)


def test_a_sum_of_three_is_no_join() -> None:
    b = Builder()
    x = b.input((1, 3, 6, 6), dynamic=True)
    parts = [b.conv(x, 4, k) for k in (1, 3, 3)]
    graph = analyze_graph(b.model(b.like("Sum", *parts)))
    assert [target.tensor for target in targets(graph)] == parts


def test_a_sum_of_two_is_one() -> None:
    b = Builder()
    x = b.input((1, 3, 6, 6), dynamic=True)
    one, two = b.conv(x, 4, 1), b.conv(x, 4, 3)
    join = b.like("Sum", one, two)
    graph = analyze_graph(b.model(join))
    assert targets(graph)[1].shortcut == one
    check_affine(graph)


def test_an_output_that_is_read_elsewhere_is_judged_by_itself() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3))
    y = b.conv(x, 4, 3)
    join = b.like("Add", x, y)
    graph = analyze_graph(b.model(b.conv(b.concat(join, b.relu(y)), 3)))
    assert targets(graph)[1].tensor == y


def test_an_output_of_the_graph_is_judged_by_itself() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3))
    y = b.conv(x, 4, 3)
    join = b.like("Add", x, y)
    graph = analyze_graph(b.model(join, y))
    assert targets(graph)[1].tensor == y


def test_an_output_that_a_body_captures_is_judged_by_itself() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3))
    y = b.conv(x, 4, 3)
    join = b.like("Add", x, y)
    made = onnx.helper.make_tensor_value_info("body_out", onnx.TensorProto.FLOAT, None)
    body = onnx.helper.make_graph([onnx.helper.make_node("Relu", [y], ["body_out"])], "body", [], [made])
    flag = b.node("Greater", [b.node("ReduceMax", [x], keepdims=0), b.constant(np.float32(0))])
    chosen = b.shaped(b.node("If", [flag], then_branch=body, else_branch=body), 1, 4, 6, 6)
    graph = analyze_graph(b.model(b.relu(join), chosen))
    assert targets(graph)[1].tensor == y


def test_a_broadcast_operand_is_no_shortcut() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3))
    y = b.conv(x, 4, 3)
    graph = analyze_graph(b.model(b.relu(b.like("Add", y, b.global_pool(x)))))
    assert targets(graph)[1].tensor == y


def test_an_operand_that_follows_from_the_layer_is_no_shortcut() -> None:
    b = Builder()
    y = b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3)
    z = b.batch_norm(y)
    graph = analyze_graph(b.model(b.relu(b.like("Add", z, b.like("Sigmoid", z)))))
    assert targets(graph)[0].tensor == z


@pytest.mark.parametrize(
    ("op", "attributes", "expected"),
    (
        ("Relu", {}, Clip(lower=0.0)),
        ("HardSwish", {}, Clip(lower=-3.0)),
        ("HardSigmoid", {"alpha": 0.25, "beta": 0.5}, Clip(-2.0, 2.0)),
        ("Sigmoid", {}, Clip()),
        ("Neg", {}, Clip()),
    ),
)
def test_an_activation_shows_values_within_its_clip_alone(
    op: str, attributes: dict[str, float], expected: Clip
) -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3)
    y = b.shaped(b.node(op, [x], **attributes), *b.shapes[x])
    graph = analyze_graph(b.model(b.conv(y, 2, 1)))
    first, last = targets(graph)
    assert first.clip == expected and not last.clip.clips
    (inside,) = tap(graph, samples(graph, 2), [first.tensor]).values()
    beyond = np.clip(inside, expected.lower, expected.upper)
    assert (beyond != inside).any() == expected.clips


def test_bounds_of_a_clip_are_its_inputs() -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3)
    low, high = (b.constant(np.array(value, np.float32)) for value in (-0.5, 1.5))
    y = b.shaped(b.node("Clip", [x, low, high]), *b.shapes[x])
    assert targets(analyze_graph(b.model(b.conv(y, 2, 1))))[0].clip == Clip(-0.5, 1.5)
    y = b.shaped(b.node("Clip", [x, "", high]), *b.shapes[x])
    assert targets(analyze_graph(b.model(b.conv(y, 2, 1))))[0].clip == Clip(upper=1.5)


def test_several_readers_see_the_widest_interval() -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 6, 6), dynamic=True), 4, 3)
    high = b.constant(np.array(6.0, np.float32))
    low = b.constant(np.array(-1.0, np.float32))
    y = b.like("Add", b.relu(x), b.shaped(b.node("Clip", [x, low, high]), *b.shapes[x]))
    assert targets(analyze_graph(b.model(b.conv(y, 2, 1))))[0].clip == Clip(lower=-1.0)
    y = b.like("Add", b.relu(x), x)
    assert not targets(analyze_graph(b.model(b.conv(y, 2, 1))))[0].clip.clips


def test_a_join_is_clipped_by_what_follows_it() -> None:
    b, _, join = block(norm=True)
    found = targets(analyze_graph(b.model(b.conv(b.relu(join), 2, 1))))
    assert [target.clip for target in found] == [Clip(lower=0.0)] * 3 + [Clip()]
