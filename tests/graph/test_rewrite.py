"""Rewriting by hand-made nets: each op that states a size, each way in which weights are shared."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.errors import PlanError, RewriteError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.apply import apply
from onnxprune.graph.check import verify
from onnxprune.graph.plan import Plan, keep_all
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph
from tests.model_builder import Builder, float_bytes
from tests.strategies import random_plan

OPSETS = (7, 9, 11, 13, 18, 21)


def without(graph: PruningGraph, tensor: str, axis: int, *indices: int) -> Plan:
    """The plan that removes the units at ``indices`` of an axis."""
    units = graph.axes[tensor][axis]
    assert units is not None
    plan = keep_all(graph)
    for index in indices:
        assert units[index] >= 0, f"index {index} of {tensor} is fixed"
        plan.keep[units[index]] = False
    return plan


def check(model: onnx.ModelProto, seeds: int = 3, share: float = 0.5) -> PruningGraph:
    """Random plans on ``model`` must all be exact and smaller."""
    graph = analyze_graph(model)
    assert graph.unit_count, f"nothing can be pruned: {graph.skipped}"
    for seed in range(seeds):
        plan = random_plan(graph, seed, share)
        pruned = rewrite(graph, plan)
        assert verify(graph, plan, pruned) <= 1e-5
        if not plan.keep.all():
            assert float_bytes(pruned) < float_bytes(graph.model)
    return graph


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op)


def attribute(node: onnx.NodeProto, name: str) -> object:
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}.get(name)


def constant(model: onnx.ModelProto, name: str) -> list[int]:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    value: list[int] = numpy_helper.to_array(tensor).tolist()
    return value


def two_convs(**options: int) -> Builder:
    b = Builder(**options)
    x = b.input((1, 2, 4, 4))
    b.outputs = [b.gemm(b.flatten(b.relu(b.conv(b.relu(b.conv(x, 6, 3)), 5, 3))), 3)]
    return b


@pytest.mark.parametrize("opset", OPSETS)
def test_removed_channels_leave_weights_of_both_sides(opset: int) -> None:
    b = two_convs(opset=opset)
    model = b.model(*b.outputs)
    graph = analyze_graph(model)
    first, second = graph.layers[0], graph.layers[1]
    plan = without(graph, first.output, 1, 1, 4)
    pruned = rewrite(graph, plan)
    old = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.model.graph.initializer}
    new = {tensor.name: numpy_helper.to_array(tensor) for tensor in pruned.graph.initializer}
    stay = [0, 2, 3, 5]
    np.testing.assert_array_equal(new[first.weight], old[first.weight][stay])
    np.testing.assert_array_equal(new[first.bias or ""], old[first.bias or ""][stay])
    np.testing.assert_array_equal(new[second.weight], old[second.weight][:, stay])
    assert verify(graph, plan, pruned) <= 1e-5


def test_flatten_removes_all_positions_of_a_channel() -> None:
    b = two_convs()
    graph = analyze_graph(b.model(*b.outputs))
    plan = without(graph, graph.layers[1].output, 1, 2)
    pruned = rewrite(graph, plan)
    weight = next(t for t in pruned.graph.initializer if t.name == graph.layers[2].weight)
    assert list(weight.dims) == [3, 4 * 16]
    assert verify(graph, plan, pruned) <= 1e-5


def test_what_the_model_says_about_itself_stays() -> None:
    b = two_convs(opset=15)
    model = b.model(*b.outputs)
    model.producer_name, model.model_version, model.doc_string = "tool", 7, "a net"
    model.graph.doc_string = "its graph"
    model.metadata_props.add(key="labels", value="a,b,c")
    model.graph.node[0].doc_string = "first"
    model.graph.initializer[0].doc_string = "a weight"
    graph = analyze_graph(model)
    pruned = rewrite(graph, without(graph, graph.layers[0].output, 1, 0))
    assert (pruned.producer_name, pruned.model_version, pruned.doc_string) == ("tool", 7, "a net")
    assert pruned.graph.doc_string == "its graph" and pruned.graph.name == model.graph.name
    assert pruned.metadata_props == model.metadata_props and pruned.ir_version == model.ir_version
    assert pruned.graph.node[0].doc_string == "first"
    assert [n.name for n in pruned.graph.node] == [n.name for n in model.graph.node]
    assert (
        next(t for t in pruned.graph.initializer if t.name == model.graph.initializer[0].name).doc_string
        == "a weight"
    )
    assert pruned.graph.input == model.graph.input and pruned.graph.output == model.graph.output


def test_stated_inner_shapes_follow() -> None:
    b = two_convs()
    graph = analyze_graph(b.model(*b.outputs))
    output = graph.layers[0].output
    stated = onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["n", 6, 4, 4])
    graph.model.graph.value_info.append(stated)
    pruned = rewrite(graph, without(graph, output, 1, 0, 1))
    dims = pruned.graph.value_info[0].type.tensor_type.shape.dim
    assert (dims[0].dim_param, [d.dim_value for d in dims[1:]]) == ("n", [4, 4, 4])


@pytest.mark.parametrize("opset", (10, 13))
def test_resnet_option_a_shortcut(opset: int) -> None:
    b = Builder(opset=opset)
    x = b.relu(b.batch_norm(b.conv(b.input((1, 3, 8, 8)), 4, 3)))
    y = b.batch_norm(b.conv(b.relu(b.batch_norm(b.conv(x, 8, 3, stride=2))), 8, 3))
    shortcut = b.pad(b.slice(b.slice(x, 2, 0, 8, 2), 3, 0, 8, 2), [0, 2, 0, 0, 0, 2, 0, 0])
    x = b.relu(b.like("Add", y, shortcut))
    graph = check(b.model(b.gemm(b.flatten(b.global_pool(x)), 3)))
    # Padded channels 0, 1, 6, 7 of the sum belong to the second Conv alone; 2 to 5 to both.
    total = next(n.output[0] for n in graph.model.graph.node if n.op_type == "Add")
    pruned = rewrite(graph, without(graph, total, 1, 0, 6, 7, 3))
    pad = node(pruned, "Pad")
    pads = attribute(pad, "pads") if opset < 11 else constant(pruned, pad.input[1])
    assert pads == [0, 1, 0, 0, 0, 0, 0, 0]


def test_bias_shared_by_two_convs_of_which_one_is_pruned() -> None:
    b = Builder()
    x = b.input((1, 3, 4, 4))
    bias = b.weight(6)
    left, right = b.conv(x, 6, 3, bias_name=bias), b.conv(x, 6, 1, bias_name=bias)
    graph = check(b.model(b.conv(b.concat(left, right), 4, 1)))
    plan = without(graph, left, 1, 0, 1)
    pruned = rewrite(graph, plan)
    sizes = [len(constant(pruned, n.input[2])) for n in pruned.graph.node if n.op_type == "Conv"]
    assert sizes == [4, 6, 4]
    assert verify(graph, plan, pruned) <= 1e-5


def test_weight_shared_by_two_convs() -> None:
    b = Builder()
    x = b.conv(b.input((1, 2, 4, 4)), 4, 1)
    weight = b.weight(4, 4, 3, 3)
    y = b.conv(b.relu(b.conv(x, 4, 3, weight=weight)), 4, 3, weight=weight)
    check(b.model(b.conv(y, 3, 1)))


def test_concatenated_branches() -> None:
    b = Builder()
    x = b.conv(b.input((1, 2, 4, 4)), 5, 3)
    joined = b.concat(b.conv(x, 3, 1), x, b.conv(b.relu(x), 4, 3))
    graph = check(b.model(b.conv(b.relu(b.batch_norm(joined)), 3, 1)), seeds=5)
    assert graph.unit_count == 12


@pytest.mark.parametrize("axis", (1, 2))
def test_constants_joined_to_what_has_no_channels_are_no_channels(axis: int) -> None:
    """As a class token in front of normalised ones: layers behind it are pruned all the same."""
    b = Builder()
    token = b.constant(np.ones((1, 1, 8) if axis == 1 else (1, 4, 1), np.float32))
    x = b.node("Concat", [token, b.input((1, 4, 8))], axis=axis)
    joined = b.shaped(x, *((1, 5, 8) if axis == 1 else (1, 4, 9)))
    hidden = b.relu(b.matmul(joined, 16))
    graph = check(b.model(b.matmul(hidden, 3)))
    assert graph.unit_count == 16


@pytest.mark.parametrize("infer", (True, False))
def test_channel_shuffle(infer: bool) -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 4, 4)), 6, 1)
    y = b.transpose(b.reshape(x, 1, 2, 3, 4, 4), 0, 2, 1, 3, 4)
    y = b.reshape(y, 1, -1 if infer else 6, 4, 4)
    check(b.model(b.conv(y, 3, 3)), seeds=5)


@pytest.mark.parametrize("multiplier", (1, 2))
def test_depthwise_group_count(multiplier: int) -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 4, 4)), 5, 1)
    graph = check(b.model(b.conv(b.conv(x, 5 * multiplier, 3, groups=5), 3, 1)))
    pruned = rewrite(graph, without(graph, x, 1, 3))
    depthwise = pruned.graph.node[1]
    assert attribute(depthwise, "group") == 4
    weight = next(t for t in pruned.graph.initializer if t.name == depthwise.input[1])
    assert list(weight.dims) == [4 * multiplier, 1, 3, 3]


def test_grouped_conv() -> None:
    b = Builder()
    x = b.conv(b.input((1, 3, 4, 4)), 8, 1)
    check(b.model(b.conv(b.relu(b.conv(b.relu(x), 6, 3, groups=2)), 3, 1)), seeds=5, share=0.3)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("stated", (True, False))
def test_split_sizes(opset: int, stated: bool) -> None:
    b = Builder(opset=opset)
    x = b.conv(b.input((1, 2, 4, 4)), 6, 1)
    left, right = b.split(x, [2, 4] if stated else [3, 3], stated=stated)
    graph = check(b.model(b.concat(b.conv(left, 2, 3), b.conv(right, 3, 1))), seeds=5)
    pruned = rewrite(graph, without(graph, x, 1, 0, 4, 5))
    split = node(pruned, "Split")
    if opset >= 18 and not stated:  # from opset 18 on, sizes 2 and 1 are what an unstated 3 gives
        assert len(split.input) == 1 and attribute(split, "num_outputs") == 2
        split = node(rewrite(graph, without(graph, x, 1, 0)), "Split")  # but 2 and 3 are not
        assert constant(rewrite(graph, without(graph, x, 1, 0)), split.input[1]) == [2, 3]
        assert attribute(split, "num_outputs") is None
        return
    sizes = attribute(split, "split") if opset < 13 else constant(pruned, split.input[1])
    assert sizes == ([1, 2] if stated else [2, 1])


@pytest.mark.parametrize(
    ("start", "end", "step", "gone", "expected"),
    [
        (1, 5, 1, (0, 2), (0, 3, 1)),
        (-3, 2**31, 1, (7,), (5, 7, 1)),
        (0, 8, 2, (1, 3, 5, 7), (0, 4, 1)),
        (7, -(2**31), -1, (0, 3), (5, -7, -1)),
        (6, 1, -2, (3, 5), (4, 1, -1)),
    ],
)
def test_slice_bounds(
    start: int, end: int, step: int, gone: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    b = Builder()
    x = b.conv(b.input((1, 2, 3, 3)), 8, 1)
    y = b.conv(b.concat(b.slice(x, 1, start, end, step), b.relu(x)), 3, 1)
    graph = check(b.model(y))
    plan = without(graph, x, 1, *gone)
    pruned = rewrite(graph, plan)
    kept = [i for i in range(8) if i not in gone]
    selected = [i for i in list(range(8))[start:end:step] if i not in gone]
    piece = node(pruned, "Slice")
    bounds = [constant(pruned, name)[0] for name in (*piece.input[1:3], *piece.input[4:])]
    assert [kept[i] for i in range(len(kept))[slice(*bounds)]] == selected
    assert range(len(kept))[slice(*bounds)] == range(len(kept))[slice(*expected)]
    assert not any(n.op_type == "Gather" for n in pruned.graph.node)
    assert verify(graph, plan, pruned) <= 1e-5


def test_slice_that_no_bounds_can_express_becomes_slice_and_gather() -> None:
    b = Builder()
    x = b.conv(b.input((1, 2, 3, 3)), 8, 1)
    y = b.conv(b.concat(b.slice(x, 1, 0, 8, 2), b.relu(x)), 3, 1)
    graph = analyze_graph(b.model(y))
    plan = without(graph, x, 1, 1)  # 0 2 4 6 of the old are now 0 1 3 5
    pruned = rewrite(graph, plan)
    assert constant(pruned, node(pruned, "Gather").input[1]) == [0, 1, 3, 5]
    assert verify(graph, plan, pruned) <= 1e-5


def test_negative_gather_indices() -> None:
    b = Builder()
    x = b.conv(b.input((1, 2, 3, 3)), 5, 1)
    y = b.shaped(b.node("Gather", [x, b.ints([-1, 0, 3, 0])], axis=-3), 1, 4, 3, 3)
    graph = check(b.model(b.conv(b.relu(y), 3, 1)))
    pruned = rewrite(graph, without(graph, x, 1, 1, 3))
    assert constant(pruned, node(pruned, "Gather").input[1]) == [2, 0, 0]


@pytest.mark.parametrize("opset", (9, 13, 18))
def test_negative_pads_crop_channels(opset: int) -> None:
    b = Builder(opset=opset)
    x = b.conv(b.input((1, 2, 3, 3)), 6, 1)
    y = b.pad(x, [0, -2, 0, 0, 0, -1, 1, 0])
    check(b.model(b.conv(b.concat(y, y), 3, 1)), seeds=5, share=0.3)


def test_resize_to_constant_sizes() -> None:
    b = Builder(opset=13)
    x = b.conv(b.input((1, 2, 3, 3)), 6, 1)
    y = b.shaped(b.node("Resize", [x, "", "", b.ints([1, 6, 6, 6])], mode="nearest"), 1, 6, 6, 6)
    graph = check(b.model(b.conv(y, 3, 1)))
    pruned = rewrite(graph, without(graph, x, 1, 1, 3))
    assert constant(pruned, node(pruned, "Resize").input[3]) == [1, 4, 6, 6]


def test_expand_states_channels() -> None:
    b = Builder(opset=13)
    x = b.conv(b.input((1, 2, 3, 3)), 6, 1)
    pooled = b.global_pool(x)
    y = b.shaped(b.node("Expand", [pooled, b.ints([6, 3, 3])]), 1, 6, 3, 3)
    check(b.model(b.conv(b.like("Mul", x, y), 3, 1)))


def test_dynamic_batch_keeps_its_name() -> None:
    b = Builder(opset=13)
    x = b.conv(b.input((1, 2, 3, 3), dynamic=True), 6, 1)
    size = b.node("Gather", [b.node("Shape", [x]), b.ints([0])], axis=0)
    target = b.node("Concat", [size, b.ints([6 * 9])], axis=0)
    flat = b.shaped(b.node("Reshape", [x, target]), 1, 54)
    model = b.model(b.gemm(flat, 3))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    graph = check(model)
    pruned = rewrite(graph, without(graph, x, 1, 1, 2))
    assert pruned.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    import onnxruntime as ort

    session = ort.InferenceSession(pruned.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((5, 2, 3, 3), np.float32)})[0].shape == (5, 3)


def test_a_computed_target_keeps_its_constant_pieces_in_step() -> None:
    """Without folding: the pieces of a Concat that state a pruned size are rewritten in place."""
    b = Builder(opset=13)
    x = b.conv(b.input((1, 2, 3, 3), dynamic=True), 6, 1)
    graph = analyze_graph(b.model(b.gemm(b.reshape(x, 1, 54), 3)))
    reshape = node(graph.model, "Reshape")
    extra = onnx.GraphProto()
    extra.node.add(op_type="Shape", input=[x], output=["sizes"], name="sizes")
    extra.node.add(op_type="Gather", input=["sizes", "zero"], output=["batch_size"], name="batch_size")
    extra.node.add(op_type="Concat", input=["batch_size", "rest"], output=["target"], name="target")
    extra.node[-1].attribute.append(onnx.helper.make_attribute("axis", 0))
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:]
    for item in graph.model.graph.node:
        if item.name == reshape.name:
            model.graph.node.extend(extra.node)
            item = onnx.NodeProto.FromString(item.SerializeToString())
            item.input[1] = "target"
        model.graph.node.append(item)
    for name, value in (("zero", [0]), ("rest", [54])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    more = {"zero": (1,), "rest": (1,), "batch_size": (1,), "target": (2,), "sizes": (4,)}
    changed = dataclasses.replace(graph, model=model, shapes={**graph.shapes, **more})
    plan = without(graph, x, 1, 0, 1)
    pruned = rewrite(changed, plan)
    assert constant(pruned, "rest") == [36]
    assert verify(changed, plan, pruned) <= 1e-5


def test_half_precision_weights() -> None:
    b = Builder(opset=13, dtype=np.float16)
    x = b.relu(b.conv(b.input((1, 2, 4, 4)), 6, 3))
    graph = analyze_graph(b.model(b.conv(x, 3, 1)))
    plan = without(graph, x, 1, 0, 3)
    pruned = rewrite(graph, plan)
    assert {tensor.data_type for tensor in pruned.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert verify(graph, plan, pruned) <= 1e-2


def test_weights_in_typed_fields() -> None:
    b = two_convs()
    model = b.model(*b.outputs)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).ravel().tolist()
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values)
    check(model)


def test_weights_that_are_inputs_too_restate_their_shape() -> None:
    b = two_convs(opset=13)
    model = b.model(*b.outputs, inputs_for_weights=True)
    graph = analyze_graph(model)
    plan = random_plan(graph, 1, 0.5)
    pruned = rewrite(graph, plan)
    sizes = {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}
    for value in pruned.graph.input:
        if value.name in sizes:
            assert [d.dim_value for d in value.type.tensor_type.shape.dim] == sizes[value.name]
    assert verify(graph, plan, pruned) <= 1e-5


def test_a_bad_plan_builds_nothing() -> None:
    b = two_convs()
    graph = analyze_graph(b.model(*b.outputs))
    before = graph.model.SerializeToString(deterministic=True)
    with pytest.raises(PlanError, match="removes all"):
        rewrite(graph, Plan(np.zeros(graph.unit_count, np.bool_)))
    with pytest.raises(PlanError, match="units"):
        rewrite(graph, Plan(np.ones(graph.unit_count + 1, np.bool_)))
    assert graph.model.SerializeToString(deterministic=True) == before


def test_labels_that_do_not_fit_the_graph_are_caught() -> None:
    """A wrong analysis must end in an error of ours, never in a wrong file."""
    b = two_convs()
    graph = analyze_graph(b.model(*b.outputs))
    axes = dict(graph.axes)
    axes[graph.layers[1].weight] = (None,) * 4
    with pytest.raises(RewriteError):
        rewrite(dataclasses.replace(graph, axes=axes), without(graph, graph.layers[0].output, 1, 0))


def test_apply_takes_the_text_of_a_plan() -> None:
    b = two_convs()
    model = b.model(*b.outputs)
    graph = analyze_graph(model)
    plan = without(graph, graph.layers[0].output, 1, 0, 2)
    assert apply(plan.to_json(graph), model) == rewrite(graph, plan) == apply(plan, model)


def test_composition_of_plans() -> None:
    b = two_convs()
    model = b.model(*b.outputs)
    graph = analyze_graph(model)
    for seed in range(5):
        both = random_plan(graph, seed, 0.5)
        first = Plan(both.keep | (np.random.default_rng(seed).random(graph.unit_count) < 0.5))
        once = rewrite(graph, first)
        again = analyze_graph(once)
        rest = keep_all(again)
        for layer, smaller in zip(graph.layers, again.layers, strict=True):
            units = layer.out_units[layer.out_units >= 0]
            left = smaller.out_units[smaller.out_units >= 0]
            rest.keep[left] = both.keep[units[first.keep[units]]]
        assert rewrite(again, rest) == rewrite(graph, both)
