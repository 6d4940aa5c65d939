from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph.fused import _REQUIRED
from onnxprune.graph.prepare import initializer_origin, prepare
from tests.model_builder import Builder


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def graph_of(
    nodes: list[onnx.NodeProto], initializers: dict[str, np.ndarray], *, ir: int = 8, opset: int = 17,
    shape: tuple[int | str, ...] = ("batch", 4), listed: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    tensors = [numpy_helper.from_array(value, name) for name, value in initializers.items()]
    if listed:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def shape_arithmetic() -> onnx.ModelProto:
    """Shape -> Gather -> Unsqueeze -> Concat([batch, -1]) -> Reshape, as exporters leave it."""
    b = Builder(opset=13)
    x = b.conv(b.input((1, 3, 4, 4), dynamic=True), 5, 3)
    size = b.node("Gather", [b.node("Shape", [x]), b.constant(np.int64(0))], axis=0)
    parts = [b.node("Unsqueeze", [size, b.ints([0])]), b.ints([-1])]
    flat = b.node("Reshape", [x, b.node("Concat", parts, axis=0)])
    return b.model(b.gemm(b.shaped(flat, 1, 80), 3))


def test_a_dynamic_batch_does_not_keep_shape_arithmetic() -> None:
    model = shape_arithmetic()
    prepared = prepare(model)
    assert [node.op_type for node in prepared.graph.node] == ["Conv", "Reshape", "Gemm"]
    target = next(t for t in prepared.graph.initializer if t.name == prepared.graph.node[1].input[1])
    assert numpy_helper.to_array(target).tolist() == [0, -1]
    x = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)
    assert np.array_equal(run(model, {"x": x})[0], run(prepared, {"x": x})[0])


def test_a_target_made_of_a_reshaped_size_may_take_zeros_literally() -> None:
    """Reshape(size, [-1]) -> Concat -> Reshape with allowzero, as the dynamo exporter leaves it."""
    b = Builder(opset=18)
    x = b.conv(b.input((1, 3, 4, 4), dynamic=True), 6, 3)
    size = b.node("Reshape", [b.node("Squeeze", [b.node("Shape", [x], start=0, end=1)]), b.ints([-1])])
    target = b.node("Concat", [size, b.ints([6]), b.ints([4]), b.ints([4])], axis=0)
    y = b.node("Reshape", [x, target], allowzero=1)
    model = b.model(b.conv(b.shaped(y, 1, 6, 4, 4), 3))
    prepared = prepare(model)
    assert [node.op_type for node in prepared.graph.node] == ["Conv", "Reshape", "Conv"]
    assert not prepared.graph.node[1].attribute
    data = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)
    assert np.array_equal(run(model, {"x": data})[0], run(prepared, {"x": data})[0])


def test_a_constant_cast_like_an_activation_is_a_constant() -> None:
    b = Builder(opset=17)
    x = b.conv(b.input((1, 3, 4, 4)), 5, 3)
    bias = b.node("Expand", [b.node("CastLike", [b.constant(np.float64(0.5)), x]), b.ints([4])])
    y = b.shaped(b.node("Conv", [x, b.weight(4, 5, 1, 1), bias]), 1, 4, 4, 4)
    assert [node.op_type for node in prepare(b.model(y)).graph.node] == ["Conv", "Conv"]


def test_the_input_model_is_not_changed_and_its_facts_stay() -> None:
    model = shape_arithmetic()
    helper.set_model_props(model, {"author": "somebody"})
    model.doc_string, model.producer_name = "about", "tool"
    model.graph.node[0].doc_string = "the first"
    before = model.SerializeToString()
    prepared = prepare(model)
    assert model.SerializeToString() == before
    assert prepared.metadata_props[0].value == "somebody"
    assert (prepared.doc_string, prepared.producer_name) == ("about", "tool")
    assert prepared.graph.node[0].doc_string == "the first"
    assert prepared.opset_import == model.opset_import and prepared.ir_version == max(4, model.ir_version)
    assert prepared.graph.input == model.graph.input and prepared.graph.output == model.graph.output


def test_constants_are_folded_to_the_values_that_the_runtime_computes() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    model = graph_of(
        [
            helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2))),
            helper.make_node("Constant", [], ["perm_of"], value_ints=[1, 0]),
            helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
            helper.make_node("Mul", ["wt", "two"], ["w2"]),
            helper.make_node("ConstantOfShape", ["perm_of"], ["unused"]),
            helper.make_node("MatMul", ["x", "w2"], ["y"]),
        ],
        {"w": weight},
    )
    prepared = prepare(model)
    assert [node.op_type for node in prepared.graph.node] == ["MatMul"]
    assert [t.name for t in prepared.graph.initializer] == ["w2"]
    assert np.array_equal(numpy_helper.to_array(prepared.graph.initializer[0]), weight.T * 2)


def test_random_numbers_and_quantisation_are_not_folded() -> None:
    model = graph_of(
        [
            helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
            helper.make_node("RandomUniformLike", ["s4"], ["r"], seed=1.0),
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Add", ["m", "r"], ["y"]),
        ],
        {
            "q": np.ones((4, 4), np.int8),
            "s": np.float32(0.5),
            "s4": np.ones(4, np.float32),
        },
    )
    ops = [node.op_type for node in prepare(model).graph.node]
    assert ops == ["DequantizeLinear", "RandomUniformLike", "MatMul", "Add"]


def test_a_constant_graph_output_stays_computed() -> None:
    model = graph_of([helper.make_node("Neg", ["c"], ["y"])], {"c": np.ones(4, np.float32)})
    assert [node.op_type for node in prepare(model).graph.node] == ["Neg"]


def test_a_small_file_cannot_ask_for_a_huge_constant() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["total"], keepdims=0),
        helper.make_node("Add", ["x", "total"], ["y"]),
    ]
    model = graph_of(nodes, {"size": np.array([1 << 20, 1 << 20], np.int64)})
    assert "ConstantOfShape" in [node.op_type for node in prepare(model).graph.node]


def test_nodes_get_unique_names_and_keep_those_they_have() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="act"),
        helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"], name="act_1"),
    ]
    names = [node.name for node in prepare(graph_of(nodes, {})).graph.node]
    assert names[0] == "act" and names[3] == "act_1"
    assert len(set(names)) == 4 and all(names)


def test_each_initializer_is_read_once_and_knows_its_origin() -> None:
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"]),
        helper.make_node("Mul", ["a", "c"], ["b"]),
        helper.make_node("Add", ["c", "b"], ["y"]),
    ]
    model = graph_of(nodes, {"c": np.arange(4, dtype=np.float32)})
    prepared = prepare(model)
    reads = [name for node in prepared.graph.node for name in node.input]
    names = [t.name for t in prepared.graph.initializer]
    assert len(names) == 3 and all(reads.count(name) == 1 for name in names)
    assert {initializer_origin(name, names) for name in names} == {"c"}
    assert initializer_origin("c::1", ["c::1"]) == "c::1"
    x = np.ones((2, 4), np.float32)
    assert np.array_equal(run(model, {"x": x})[0], run(prepared, {"x": x})[0])


def test_ir_3_weights_become_constants() -> None:
    nodes = [helper.make_node("Add", ["x", "c"], ["y"])]
    prepared = prepare(graph_of(nodes, {"c": np.ones(4, np.float32)}, ir=3, opset=8, listed=True))
    assert prepared.ir_version == 4
    assert [value.name for value in prepared.graph.input] == ["x"]


def test_inputs_with_defaults_stay_inputs_and_are_not_folded_into_others() -> None:
    nodes = [helper.make_node("Neg", ["c"], ["d"]), helper.make_node("Add", ["x", "d"], ["y"])]
    prepared = prepare(graph_of(nodes, {"c": np.ones(4, np.float32)}, listed=True))
    assert [value.name for value in prepared.graph.input] == ["x", "c"]
    assert [node.op_type for node in prepared.graph.node] == ["Neg", "Add"]


def test_what_a_body_captures_keeps_its_name() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["inner"])],
        "body", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["flag"], to=TensorProto.BOOL),
        helper.make_node("If", ["flag"], ["b"], then_branch=body, else_branch=body),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    model = graph_of(nodes, {"c": np.ones(4, np.float32)})
    prepared = prepare(model)
    assert {t.name for t in prepared.graph.initializer} == {"c", "c::1"}
    assert prepared.graph.node[0].input[1] == "c::1"
    x = np.ones((2, 4), np.float32)
    assert np.array_equal(run(model, {"x": x})[0], run(prepared, {"x": x})[0])


def test_malformed_graphs_are_refused() -> None:
    late = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])]
    with pytest.raises(ModelError, match="before anything computes it"):
        prepare(graph_of(late, {}))
    twice = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])]
    with pytest.raises(ModelError, match="computed twice"):
        prepare(graph_of(twice, {}))
    with pytest.raises(ModelError, match="no nodes"):
        prepare(graph_of([], {}))


def test_a_half_precision_number_is_left_to_the_runtime_and_a_tensor_is_not() -> None:
    nodes = [
        helper.make_node("Cast", ["s"], ["scale"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["w"], ["weight"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "scale"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "weight"], ["y"]),
    ]
    third = np.array(1 / 3, np.float32)
    model = graph_of(nodes, {"s": third, "w": np.full(4, third)})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    prepared = prepare(model)
    assert [node.output[0] for node in prepared.graph.node] == ["scale", "half", "scaled", "y"]
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    assert np.array_equal(run(model, {"x": x})[0], run(prepared, {"x": x})[0])


def test_in_place_the_model_becomes_the_prepared_one() -> None:
    model = shape_arithmetic()
    expected = prepare(model)
    assert prepare(model, in_place=True) is model
    assert model == expected


def test_a_stored_constant_with_stored_scales_is_transposed() -> None:
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("DequantizeLinear", ["s8", "ss"], ["s"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["y"]),
    ]
    values = {
        "q": random.integers(-9, 9, (3, 4)).astype(np.int8),
        "s8": np.array([1, 2, 3], np.int8),
        "ss": np.float32(0.5),
    }
    model = graph_of(nodes, values)
    prepared = prepare(model)
    assert [node.op_type for node in prepared.graph.node] == [*["DequantizeLinear"] * 2, "MatMul"]
    x = random.standard_normal((2, 4)).astype(np.float32)
    assert np.array_equal(run(model, {"x": x})[0], run(prepared, {"x": x})[0])


@pytest.mark.parametrize(("op", "needed"), sorted(_REQUIRED.items()))
def test_fused_ops_are_refused_without_an_input(op: str, needed: tuple[int, ...]) -> None:
    for lacking in needed:
        names = ["x" if place != lacking else "" for place in range(needed[-1] + 1)]
        node = helper.make_node(op, names, ["y"], domain="com.microsoft", name="n")
        with pytest.raises(ModelError, match=f"'n' lacks input {lacking}"):
            prepare(graph_of([node], {}))
    node = helper.make_node(op, ["x"] * (needed[-1] + 1), [], domain="com.microsoft", name="n")
    with pytest.raises(ModelError, match="'n' lacks its output"):
        prepare(graph_of([node], {}))


def test_outputs_without_a_name_at_the_end_are_left_out() -> None:
    parts = {name: np.ones(4, np.float32) for name in ("s", "b", "m", "v")}
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "", "", "", ""])
    prepared = prepare(graph_of([node], parts, opset=8))
    assert list(prepared.graph.node[0].output) == ["y"]


def spread(first: str, *, opset: int = 17, output: bool = False) -> onnx.ModelProto:
    """Two small constants spread over (4, 3), one of them against the input, both against each other."""
    nodes = [
        helper.make_node("Expand", ["a", "shape"], ["wide"]),
        helper.make_node("Tile", ["b", "counts"], ["tall"]),
        helper.make_node(first, ["x", "wide"], ["p"]),
        helper.make_node("Add", ["wide", "tall"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    values = {
        "a": np.array([[0.0, 1.0, 2.0]], np.float32), "shape": np.array([4, 3]),
        "b": np.array([[0.5, -0.5, 0.0]], np.float32), "counts": np.array([4, 1]),
    }  # fmt: skip
    model = graph_of(nodes, values, opset=opset, shape=(4, 3))
    if output:
        model.graph.output.append(helper.make_tensor_value_info("q", TensorProto.FLOAT, None))
    return model


@pytest.mark.parametrize("first", ["Add", "Div", "Max"])
@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("opset", [7, 17])
def test_what_is_spread_gives_the_same_values_and_shapes(first: str, output: bool, opset: int) -> None:
    model = spread(first, opset=max(opset, 8) if first != "Max" else opset, output=output)
    if opset == 7 and first == "Max":  # Expand is of opset 8
        model.graph.node[0].op_type = "Tile"
        model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array([4, 1]), "shape"))
    feed = {"x": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
    for one, two in zip(run(model, feed), run(prepare(model), feed), strict=True):
        assert one.shape == two.shape and np.array_equal(one, two)


def test_a_uniform_weight_of_a_constant_node_keeps_its_size() -> None:
    """As a bias of equal values it is a place for recovery to put others in."""
    value = numpy_helper.from_array(np.ones((1, 4), np.float32))
    nodes = [helper.make_node("Constant", [], ["c"], value=value), helper.make_node("Mul", ["x", "c"], ["y"])]
    prepared = prepare(graph_of(nodes, {}))
    assert [tuple(tensor.dims) for tensor in prepared.graph.initializer] == [(1, 4)]
