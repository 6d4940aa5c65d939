"""Cuts of a model against onnxruntime running the whole of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import extract as module
from onnxprune.graph.extract import extract
from tests.model_builder import Builder
from tests.plain import Array, run, samples
from tests.recover.nets import branches, resnet

OPSET = [helper.make_opsetid("", 17)]


def stated(name: str, value: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def model_of(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, Array] | None = None, **options: object
) -> onnx.ModelProto:
    """A model from x (2, 4) to y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, **{"opset_imports": OPSET, "ir_version": 8, **options})


X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)


def check(model: onnx.ModelProto, x: Array, sources: Sequence[str], wanted: Sequence[str]) -> onnx.ModelProto:
    """The cut from ``sources`` gives what the whole model gives; the model stays as it is."""
    before = model.SerializeToString(deterministic=True)
    values = run(model, {model.graph.input[0].name: x}, [*sources, *wanted])
    cut = extract(model, wanted, [stated(name, values[name]) for name in sources])
    assert model.SerializeToString(deterministic=True) == before
    feeds = {value.name: values[value.name] for value in cut.graph.input}
    for name, value in run(cut, feeds, wanted).items():
        assert np.array_equal(value, values[name]), name
    return cut


@pytest.mark.parametrize("build", [resnet, branches])
def test_every_node_alone_and_everything_up_to_it(build: object) -> None:
    model = build()
    x = samples(model, 2)
    weights = {tensor.name for tensor in model.graph.initializer}
    for position, node in enumerate(model.graph.node):
        sources = list(dict.fromkeys(name for name in node.input if name and name not in weights))
        cut = check(model, x, sources, [node.output[0]])
        assert list(cut.graph.node) == [node]
        assert {tensor.name for tensor in cut.graph.initializer} == weights & set(node.input)
        whole = extract(model, [node.output[0]])
        assert len(whole.graph.node) <= position + 1 and whole.graph.node[-1] == node
        assert np.array_equal(
            run(whole, {"x": x}, [node.output[0]])[node.output[0]],
            run(model, {"x": x}, [node.output[0]])[node.output[0]],
        )


def test_a_cut_holds_the_weights_of_the_moment() -> None:
    model = resnet()
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    extract(model, [node.output[0]])
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    changed = numpy_helper.to_array(tensor) * np.float32(3)
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    bias = np.arange(len(changed), dtype=np.float32)
    del node.input[2:]
    node.input.append("later")
    model.graph.initializer.append(numpy_helper.from_array(bias, "later"))
    check(model, samples(model, 2), ["x"], [node.output[0]])
    found = {tensor.name: tensor for tensor in extract(model, [node.output[0]]).graph.initializer}
    assert np.array_equal(numpy_helper.to_array(found[tensor.name]), changed)
    assert np.array_equal(numpy_helper.to_array(found["later"]), bias)


def body(nodes: Sequence[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", [], [onnx.ValueInfoProto(name=output)])


@pytest.mark.parametrize("sources", [["x"], ["early"], ["early", "flag"]])
def test_bodies_capture_tensors_and_weights_at_any_depth(sources: list[str]) -> None:
    inner = body([helper.make_node("Mul", ["early", "scale"], ["deep"])], "deep")
    empty = body([helper.make_node("Identity", ["early"], ["same"])], "same")
    outer = body([helper.make_node("If", ["yes"], ["made"], then_branch=inner, else_branch=empty)], "made")
    other = body([helper.make_node("Identity", ["scale"], ["plain"])], "plain")
    model = model_of(
        [
            helper.make_node("Neg", ["x"], ["early"]),
            helper.make_node("Identity", ["yes"], ["flag"]),
            helper.make_node("If", ["flag"], ["y"], then_branch=outer, else_branch=other),
        ],
        {"yes": np.array(True), "scale": np.float32([1, 2, 3, 4]), "unread": np.float32([1])},
    )
    cut = check(model, X, sources, ["y"])
    assert [value.name for value in cut.graph.input] == sources
    assert [tensor.name for tensor in cut.graph.initializer] == ["yes", "scale"]
    (choice,) = [node for node in cut.graph.node if node.op_type == "If"]
    assert choice == model.graph.node[2]


def test_a_loop_that_captures() -> None:
    step = helper.make_graph(
        [
            helper.make_node("Add", ["sum", "early"], ["more"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [2, 4]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, [2, 4]),
        ],
    )
    model = model_of(
        [
            helper.make_node("Neg", ["x"], ["early"]),
            helper.make_node("Abs", ["x"], ["first"]),
            helper.make_node("Loop", ["times", "", "first"], ["y"], body=step),
        ],
        {"times": np.array(3, dtype=np.int64)},
    )
    assert [node.op_type for node in check(model, X, ["x"], ["y"]).graph.node] == ["Neg", "Abs", "Loop"]
    assert [node.op_type for node in check(model, X, ["first", "early"], ["y"]).graph.node] == ["Loop"]


def test_what_is_fed_and_wanted_is_no_output() -> None:
    model = model_of([helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["a"], ["y"])])
    cut = extract(model, ["a", "y", "y"], [stated("a", X)])
    assert [value.name for value in cut.graph.input] == ["a"]
    assert [value.name for value in cut.graph.output] == ["y"]
    assert [value.name for value in extract(model, ["x", "a"]).graph.output] == ["a"]


def test_weights_may_be_wanted() -> None:
    model = model_of([helper.make_node("Mul", ["x", "w"], ["y"])], {"w": X[0]})
    assert np.array_equal(run(extract(model, ["w", "y"]), {"x": X}, ["w"])["w"], X[0])
    assert not extract(model, ["w"]).graph.node


def test_the_models_own_inputs_stay_and_other_sources_only_where_read() -> None:
    model = model_of([helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["y"])])
    model.graph.input.append(helper.make_tensor_value_info("idle", TensorProto.FLOAT, [1]))
    assert [value.name for value in extract(model, ["a"]).graph.input] == ["x", "idle"]
    cut = extract(model, ["a"], [stated("idle", X), stated("x", X)])
    assert [value.name for value in cut.graph.input] == ["x"]


def test_a_node_of_which_one_output_is_fed_and_the_other_wanted() -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1),
        helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    model = model_of(nodes, {})
    cut = check(model, X, ["x", "a"], ["y"])
    assert list(cut.graph.node[0].output) == ["a_", "b"]


@pytest.mark.parametrize("inputs", [None, [stated("x", X)]])
def test_unknown_tensors(inputs: list[onnx.ValueInfoProto] | None) -> None:
    model = model_of([helper.make_node("Neg", ["x"], ["y"])])
    with pytest.raises(ModelError, match="no tensor named 'Y'") as caught:
        extract(model, ["y", "Y"], inputs)
    assert caught.value.hint


def test_versions_functions_and_domains_stay() -> None:
    function = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], OPSET
    )
    imports = [*OPSET, helper.make_opsetid("own", 3), helper.make_opsetid("unused", 2)]
    model = model_of(
        [helper.make_node("Twice", ["x"], ["a"], domain="own"), helper.make_node("Abs", ["a"], ["y"])],
        functions=[function],
        opset_imports=imports,
        ir_version=9,
    )
    cut = check(model, X, ["x"], ["a"])
    assert cut.ir_version == 9
    assert list(cut.opset_import) == imports
    assert list(cut.functions) == [function]


def test_models_of_ir_3_state_weights_as_inputs() -> None:
    imports = [helper.make_opsetid("", 8)]
    model = model_of(
        [helper.make_node("Mul", ["x", "w"], ["y"])], {"w": X}, ir_version=3, opset_imports=imports
    )
    model.graph.input.append(stated("w", X))
    model.graph.output[0].CopyFrom(stated("y", X))
    cut = check(model, X, ["x"], ["y"])
    assert cut.ir_version == 4
    onnx.checker.check_model(extract(model, ["y"]))
    assert [value.name for value in extract(model, ["y"]).graph.input] == ["x"]


def test_what_graphsurgeon_loses_is_kept() -> None:
    """Sparse, empty and type attributes, and weights that are sparse; and it would print on most of them."""
    values = numpy_helper.from_array(np.float32([5, 6]), "sparse")
    indices = numpy_helper.from_array(np.array([1, 3], dtype=np.int64), "where")
    sparse = helper.make_sparse_tensor(values, indices, [4])
    nodes = [
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
        helper.make_node("Add", ["x", "s"], ["t"]),
        helper.make_node("Add", ["t", "sparse"], ["u"]),
        helper.make_node("Constant", [], ["none"]),
        helper.make_node("ReduceSum", ["u", "none"], ["y"], noop_with_empty_axes=1),
    ]
    nodes[3].attribute.append(onnx.AttributeProto(name="value_ints", type=onnx.AttributeProto.INTS))
    model = model_of(nodes)
    model.graph.sparse_initializer.append(sparse)
    cut = check(model, X, ["x"], ["y"])
    assert list(cut.graph.node) == nodes
    assert list(cut.graph.sparse_initializer) == [sparse]


def test_optional_and_sequence_types() -> None:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 4]))
    then = body([helper.make_node("Optional", ["x"], ["some"])], "some")
    other = body([helper.make_node("Optional", [], ["none"], type=kind.optional_type.elem_type)], "none")
    for graph in (then, other):
        graph.output[0].type.CopyFrom(kind)
    nodes = [
        helper.make_node("If", ["yes"], ["maybe"], then_branch=then, else_branch=other),
        helper.make_node("OptionalGetElement", ["maybe"], ["a"]),
        helper.make_node("SequenceConstruct", ["a", "x"], ["both"]),
        helper.make_node("ConcatFromSequence", ["both"], ["y"], axis=0),
    ]
    model = model_of(nodes, {"yes": np.array(True)})
    model.graph.value_info.append(helper.make_value_info("maybe", kind))
    cut = check(model, X, ["x"], ["a", "y"])
    assert list(cut.graph.node) == nodes


def test_external_data_is_never_opened() -> None:
    model = model_of([helper.make_node("Mul", ["x", "w"], ["y"])], {"w": X})
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/no/such/file")
    assert extract(model, ["y"]).graph.initializer[0] == tensor


def test_what_graphsurgeon_raises_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UnboundLocalError("cannot access local variable 'onnx_tensor'")

    monkeypatch.setattr(module.gs, "export_onnx", fail)
    with pytest.raises(ModelError, match="can't be cut: UnboundLocalError") as caught:
        extract(model_of([helper.make_node("Neg", ["x"], ["y"])]), ["y"])
    assert caught.value.hint


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["a"], name="n"), helper.make_node("Abs", ["a"], ["y"], name="n")]
    model = model_of(nodes)
    del model.opset_import[:]
    assert not extract(model, ["y"]).opset_import
    assert capfd.readouterr() == ("", "")


def test_cuts_run_where_the_builder_states_shapes() -> None:
    """Shapes that the whole model states don't bind a cut that is fed another batch."""
    b = Builder()
    y = b.relu(b.conv(b.input((1, 3, 6, 6)), 4, 3))
    model = b.model(b.relu(y))
    conv = model.graph.node[0].output[0]
    model.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 4, 6, 6]))
    cut = extract(model, [y], [helper.make_tensor_value_info(conv, TensorProto.FLOAT, [None, 4, 6, 6])])
    assert not cut.graph.output[0].HasField("type")
    assert extract(model, [y]).graph.output[0] == model.graph.value_info[-1]
    value = np.ones((5, 4, 6, 6), np.float32)
    session = ort.InferenceSession(cut.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run([y], {conv: value})[0].shape == value.shape
