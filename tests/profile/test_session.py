from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import DataError, ModelError, OnnxPruneError, UsageError
from onnxprune.graph.extract import extract
from onnxprune.profile import providers, session
from onnxprune.profile.session import open_session
from onnxprune.profile.taps import detach_weights
from tests.evaluate.models import classifier, plain_scores

INPUTS = np.random.default_rng(3).standard_normal((7, 3, 8, 8)).astype(np.float32)


def one_line(error: OnnxPruneError) -> str:
    assert "\n" not in str(error) and "\n" not in error.hint
    assert error.hint
    return str(error)


def test_runs_as_onnxruntime_does_from_every_kind_of_model(tmp_path: Path) -> None:
    model = classifier()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    expected = plain_scores(model, INPUTS, batch=7)
    for form in (model, model.SerializeToString(), path, str(path)):
        opened = open_session(form, provider="cpu", threads=1)
        assert opened.provider == "cpu"
        assert np.array_equal(opened.run({"input": INPUTS})["scores"], expected)


def test_specs() -> None:
    opened = open_session(classifier(dtype=TensorProto.UINT8, layout="nhwc"), provider="cpu")
    assert opened.input.name == "input"
    assert opened.input.dtype == np.uint8
    assert opened.input.shape == (None, 8, 8, 3)
    assert opened.batch is None
    assert opened.outputs[0].shape == (None, 10)
    assert open_session(classifier(batch=4), provider="cpu").batch == 4


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 5), count=st.integers(1, 11))
def test_fixed_batches_are_filled_and_stripped(batch: int, count: int) -> None:
    inputs = np.random.default_rng(count).standard_normal((count, 3, 8, 8)).astype(np.float32)
    expected = plain_scores(classifier(), inputs, batch=1)
    opened = open_session(classifier(batch=batch), provider="cpu", threads=1)
    scores = opened.run_batched(inputs)["scores"]
    assert scores.shape == (count, 10)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [[1, -1], [1, 6]])
def test_a_batch_of_one_baked_into_a_free_batch_model(shape: list[int]) -> None:
    """Exporters trace `x.reshape(1, -1)`: larger batches fail, or are folded into the features."""
    model = classifier()
    node = next(node for node in model.graph.node if node.op_type == "Flatten")
    node.CopyFrom(helper.make_node("Reshape", ["pool", "baked"], ["flat"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape, dtype=np.int64), "baked"))
    if shape[1] == -1:
        del model.graph.node[-1]
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("flat", TensorProto.FLOAT, None))
    opened = open_session(model, provider="cpu", threads=1)
    (scores,) = opened.run_batched(INPUTS).values()
    single = np.concatenate(
        [opened.run({"input": INPUTS[i : i + 1]})[opened.output_names[0]] for i in range(7)]
    )
    assert scores.shape[0] == 7
    assert np.array_equal(scores, single)
    assert opened.batch == 1


def test_taps_give_internal_tensors_and_leave_the_model_alone() -> None:
    model = classifier()
    before = model.SerializeToString()
    opened = open_session(model, provider="cpu", threads=1, outputs=["relu", "input", "conv", "w"])
    outputs = opened.run({"input": INPUTS})
    assert list(outputs) == ["relu", "input", "conv", "w"]
    assert np.array_equal(outputs["relu"], np.maximum(outputs["conv"], 0))
    assert np.array_equal(outputs["input"], INPUTS)
    assert np.array_equal(outputs["w"], numpy_helper.to_array(model.graph.initializer[0]))
    assert outputs["conv"].shape == (7, 6, 6, 6)
    assert model.SerializeToString() == before


def test_a_tapped_model_computes_no_more_than_the_taps_need() -> None:
    cut = extract(classifier(), ["relu"])
    assert [node.op_type for node in cut.graph.node] == ["Conv", "Relu"]
    assert [tensor.name for tensor in cut.graph.initializer] == ["w"]


def test_taps_keep_what_subgraphs_read() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "offset"], ["inside"])],
        "inner",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["early"], ["outside"])],
        "other",
        [],
        [helper.make_tensor_value_info("outside", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Neg", ["x"], ["early"]),
            helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=other),
            helper.make_node("Abs", ["y"], ["z"]),
        ],
        "outer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(np.array(True), "flag"),
            numpy_helper.from_array(np.float32([1, 2]), "offset"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    x = np.float32([[1, 2], [3, 4]])
    outputs = open_session(model, provider="cpu", outputs=["y"]).run({"x": x})
    assert np.array_equal(outputs["y"], x + np.float32([1, 2]))
    assert [node.op_type for node in extract(model, ["y"]).graph.node] == ["Neg", "If"]


def test_weights_beyond_the_protobuf_limit_go_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(classes=600)
    expected = plain_scores(model, INPUTS, batch=7)
    skeleton, weights = detach_weights(model)
    assert list(weights) == ["g"]  # the others are small
    assert skeleton.ByteSize() < model.ByteSize() / 2
    monkeypatch.setattr(session, "_DETACH_ABOVE", 0)
    opened = open_session(model, provider="cpu", threads=1)
    assert np.array_equal(opened.run({"input": INPUTS})["scores"], expected)


def test_external_data_is_read_from_the_folder_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier(classes=600)
    expected = plain_scores(model, INPUTS, batch=7)
    onnx.save_model(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    opened = open_session(tmp_path / "m.onnx", provider="cpu", threads=1)
    assert np.array_equal(opened.run({"input": INPUTS})["scores"], expected)


def test_run_torch_equals_run_batched() -> None:
    import torch

    opened = open_session(classifier(batch=2), provider="cpu", threads=1, outputs=["conv", "scores", "input"])
    arrays, tensors = opened.run_batched(INPUTS), opened.run_torch(INPUTS)
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        assert isinstance(tensor, torch.Tensor)
        assert np.array_equal(tensor.numpy(), arrays[name])


def test_initializers_that_are_inputs_too_are_not_data_inputs() -> None:
    model = classifier()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 3, 3, 3]))
    assert open_session(model, provider="cpu").input.name == "input"
    tapped = open_session(model, provider="cpu", outputs=["conv"])
    assert [spec.name for spec in tapped.inputs] == ["input"]


def test_several_inputs_are_refused_by_name() -> None:
    model = classifier()
    model.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1]))
    opened = open_session(model, provider="cpu")
    with pytest.raises(ModelError) as caught:
        opened.run_batched(INPUTS)
    assert "2 inputs (input, extra)" in one_line(caught.value)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "no array for the model's input 'input'"),
        ({"input": INPUTS[:, :2]}, "wants N x 3 x 8 x 8, the data has 7 x 2 x 8 x 8"),
        ({"input": INPUTS[0]}, "wants N x 3 x 8 x 8, the data has 3 x 8 x 8"),
        ({"input": INPUTS.astype(np.float64)}, "wants float32, not float64"),
    ],
)
def test_inputs_that_do_not_fit(inputs: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(DataError) as caught:
        open_session(classifier(), provider="cpu").run(inputs)
    assert says in one_line(caught.value)


def test_no_samples() -> None:
    with pytest.raises(DataError):
        open_session(classifier(), provider="cpu").run_batched(INPUTS[:0])


def broken() -> onnx.ModelProto:
    model = classifier()
    model.graph.node[0].op_type = "NoSuchOp"
    return model


def from_the_future() -> onnx.ModelProto:
    model = classifier()
    model.ir_version = 99
    return model


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: b"not a protobuf", "exporter"),
        (lambda: b"", "check_model"),
        (broken, "check_model"),
        (from_the_future, "supports"),
    ],
)
def test_models_that_onnxruntime_refuses(make: object, hint: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError) as caught:
        open_session(make(), provider="cpu")
    one_line(caught.value)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 3
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_missing_or_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_session(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello, this is not a model at all")
    with pytest.raises(ModelError) as caught:
        open_session(tmp_path / "text.onnx")
    assert "text.onnx" in one_line(caught.value)


def test_unknown_taps_and_failing_runs() -> None:
    with pytest.raises(ModelError, match="no tensor named 'nope'"):
        open_session(classifier(), provider="cpu", outputs=["nope"])
    model = classifier()
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array([7, 13], dtype=np.int64), "shape"))
    model.graph.node.append(helper.make_node("Reshape", ["scores", "shape"], ["wrong"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("wrong", TensorProto.FLOAT, None))
    with pytest.raises(ModelError) as caught:
        open_session(model, provider="cpu").run_batched(INPUTS)
    assert "can't run the model" in one_line(caught.value)


def test_wrong_options() -> None:
    with pytest.raises(UsageError):
        open_session(classifier(), provider="tpu")
    with pytest.raises(UsageError):
        open_session(classifier(), provider="cpu", threads=-1)


def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)


def test_cuda_is_never_silently_replaced(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    without_driver(monkeypatch)
    with pytest.raises(UsageError) as caught:
        open_session(classifier(), provider="cuda")
    assert "cuda can't be used" in one_line(caught.value)
    assert caught.value.exit_code == 2
    assert open_session(classifier(), provider="auto").provider == "cpu"
    assert capfd.readouterr() == ("", "")


class Driver:
    """A CUDA driver that shows ``count`` devices, or fails to start."""

    def __init__(self, count: int, status: int = 0) -> None:
        self.count, self.status = count, status

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, pointer: object) -> int:
        pointer._obj.value = self.count
        return 0


@pytest.mark.parametrize(("driver", "count"), [(Driver(2), 2), (Driver(0), 0), (Driver(2, status=100), 0)])
def test_devices_are_counted_by_the_driver(
    driver: Driver, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert providers.cuda_devices() == count


def test_a_device_whose_libraries_are_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """onnxruntime then starts on the CPU alone: an error for cuda, a plain CPU session for auto."""
    expected = plain_scores(classifier(), INPUTS, batch=7)
    monkeypatch.setattr(session, "choose_provider", lambda choice: "cpu" if choice == "cpu" else "cuda")
    start = ort.InferenceSession

    def cpu_only(model: bytes, options: object, providers: list[str], **rest: object) -> object:
        assert providers[-1] == "CPUExecutionProvider" and rest == {"enable_fallback": 0}
        return start(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(session.ort, "InferenceSession", cpu_only)
    with pytest.raises(UsageError) as caught:
        open_session(classifier(), provider="cuda")
    assert "did not start on cuda" in one_line(caught.value)
    opened = open_session(classifier(), provider="auto")
    assert opened.provider == "cpu"
    assert np.array_equal(opened.run({"input": INPUTS})["scores"], expected)
    assert capfd.readouterr() == ("", "")


def test_on_cuda_outputs_are_bound_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The binding itself, on a stand-in for a CUDA session: inputs from the host, outputs to the device."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(providers, "cuda_devices", lambda: 4)
    bound: list[tuple[str, str]] = []

    class Binding:
        def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
            bound.append((name, "host"))
            self.array = array

        def bind_output(self, name: str, device: str, index: int) -> None:
            bound.append((name, f"{device}:{index}"))

        def synchronize_outputs(self) -> None:
            bound.append(("", "synchronized"))

        def get_outputs(self) -> list[object]:
            return [ort.OrtValue.ortvalue_from_numpy(self.array.sum(axis=(2, 3)))]

    ran: list[Binding] = []
    value = SimpleNamespace(name="input", type="tensor(float)", shape=["N", 3, 8, 8])
    scores = SimpleNamespace(name="scores", type="tensor(float)", shape=["N", 3])
    stand_in = SimpleNamespace(
        get_inputs=lambda: [value],
        get_outputs=lambda: [scores],
        io_binding=Binding,
        run_with_iobinding=ran.append,
    )
    opened = session.Session(stand_in, "cuda", ["scores"])
    tensors = opened.run_torch(INPUTS)
    assert bound == [("input", "host"), ("scores", "cuda:3"), ("", "synchronized")]
    assert len(ran) == 1
    np.testing.assert_allclose(tensors["scores"].numpy(), INPUTS.sum(axis=(2, 3)), rtol=1e-6)


@pytest.mark.parametrize("usable", (False, True))
def test_the_algebra_stays_on_the_cpu_where_torch_has_no_gpu(
    usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: usable)
    assert providers.algebra_device("cuda").type == ("cuda" if usable else "cpu")
    assert providers.algebra_device("cpu").type == "cpu"


@pytest.mark.parametrize(("rank", "index"), ((None, 0), ("", 0), ("0", 0), ("2", 2), ("5", 1)))
def test_each_process_of_torchrun_has_a_gpu_of_its_own(
    rank: str | None, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(providers, "cuda_devices", lambda: 4)
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert str(providers.algebra_device("cuda")) == f"cuda:{index}"
    (name, options), last = providers.execution_providers("cuda")
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert isinstance(options, dict) and options["device_id"] == index
    assert "use_tf32" in options
    assert "use_tf32" not in providers.execution_providers("cuda", exact=False)[0][1]
    assert providers.execution_providers("cpu") == ["CPUExecutionProvider"]


def test_a_gpu_that_torch_cannot_use_gives_tensors_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_session(classifier(), provider="cpu", threads=1)
    expected = opened.run({"input": INPUTS})["scores"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    opened.provider = "cuda"
    scores = opened.run_torch(INPUTS)["scores"]
    assert scores.device.type == "cpu" and np.array_equal(scores.numpy(), expected)
