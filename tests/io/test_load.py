"""Loading: what a file claims is checked before anything is allocated, and refusals say why."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, UsageError
from onnxprune.io import limits
from onnxprune.io.load import load
from tests.model_builder import Builder


def small_model(opset: int = 13) -> onnx.ModelProto:
    b = Builder(opset=opset)
    return b.model(b.gemm(b.flatten(b.conv(b.input((1, 3, 8, 8)), 16, 3)), 3))


def with_external_data(folder: Path, name: str = "m.onnx", location: str = "m.data") -> Path:
    path = folder / name
    onnx.save_model(small_model(), path, save_as_external_data=True, location=location, size_threshold=1024)
    return path


def test_the_same_model_from_a_path_from_bytes_and_from_a_message(tmp_path: Path) -> None:
    model = small_model()
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    from_path, from_bytes, from_message = load(path), load(path.read_bytes()), load(model)
    assert from_path.model == from_bytes.model == from_message.model == model
    assert from_message.model is model
    assert from_path.path == path and from_bytes.path is None
    assert from_path.sha256 == from_bytes.sha256 and len(from_path.sha256) == 64
    assert from_path.files == (path,) and not from_path.external_data
    assert load(str(path)).model == model


def test_a_message_has_a_digest_of_its_own() -> None:
    model = small_model()
    digest = load(model).sha256
    assert digest == load(onnx.ModelProto.FromString(model.SerializeToString())).sha256
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    assert load(model).sha256 != digest


def test_external_data_is_read(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    loaded = load(path)
    assert loaded.external_data and set(loaded.files) == {path, tmp_path / "m.data"}
    assert all(t.data_location == TensorProto.DEFAULT for t in loaded.model.graph.initializer)
    assert loaded.model.graph.initializer == small_model().graph.initializer


def refuse(source: object, message: str, kind: type[Exception] = ModelError, hint: str = "") -> None:
    with pytest.raises(kind) as caught:
        load(source)
    assert message in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert hint in caught.value.hint
    assert caught.value.hint


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    refuse(tmp_path / "none.onnx", "no such file", UsageError)
    refuse(tmp_path, "is not a file", UsageError)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, this is a text file\n" * 9,
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"PK\x03\x04" + bytes(99),
        bytes(64),
    ],
)
def test_what_is_not_onnx(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    refuse(path, "empty" if not data else "not an ONNX model")
    refuse(data, "empty" if not data else "not an ONNX model")


def test_truncated_files_are_refused_or_harmless(tmp_path: Path) -> None:
    data = small_model().SerializeToString()
    for size in range(1, len(data), max(1, len(data) // 60)):
        with pytest.raises(ModelError):
            load(data[:size])


def test_random_damage_ends_in_a_typed_error_or_a_model() -> None:
    data = small_model().SerializeToString()
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for position in random.integers(0, len(data), 4):
            damaged[position] = random.integers(0, 256)
        try:
            load(bytes(damaged))
        except ModelError as error:
            assert error.exit_code == 3


Edit = Callable[[onnx.ModelProto], object]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.ClearField("graph"), "no graph"),
        (lambda m: m.graph.ClearField("node"), "no graph"),
        (lambda m: setattr(m, "ir_version", 14), "IR version 14"),
        (lambda m: setattr(m, "ir_version", 2), "IR version 2"),
        (lambda m: setattr(m.opset_import[0], "version", 27), "opset 27"),
        (lambda m: setattr(m.opset_import[0], "version", 6), "opset 6"),
        (lambda m: setattr(m.opset_import[0], "domain", "other"), "names no version"),
        (lambda m: m.opset_import.add(domain="ai.onnx", version=12), "several versions"),
        (lambda m: m.training_info.add(), "training graph"),
        (lambda m: setattr(m.graph.node[0], "domain", "ai.onnx.preview.training"), "training graph"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse"),
        (lambda m: setattr(m.graph.node[0], "op_type", "QLinearConv"), "quantized operator QLinearConv"),
        (lambda m: setattr(m.graph.node[0], "op_type", "MatMulNBits"), "quantized operator MatMulNBits"),
        (lambda m: m.graph.initializer[0].dims.append(2), "but holds"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), "negative size"),
        (lambda m: m.graph.initializer[0].dims.extend([2**40] * 3), "but holds"),
        (lambda m: m.graph.initializer[0].ClearField("raw_data"), "but holds 0 values"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "unsupported element type 99"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "nothing"), "not valid ONNX"),
        (lambda m: setattr(m.graph.initializer[0], "data_location", 1), "keeps its data in the file"),
    ],
)
def test_refused_models(edit: Edit, message: str) -> None:
    model = small_model()
    edit(model)
    refuse(model.SerializeToString(), message)
    refuse(model, message)


def test_a_domain_that_is_only_imported_does_not_matter() -> None:
    """What onnxruntime optimizes and saves imports every domain that it knows."""
    model = small_model()
    model.opset_import.add(domain="ai.onnx.preview.training", version=1)
    assert load(model).model is model


def test_block_quantized_weights_are_refused() -> None:
    model = small_model(opset=21)
    node = model.graph.node.add(op_type="DequantizeLinear", name="dq", input=["q", "s"], output=["w"])
    node.attribute.append(helper.make_attribute("block_size", 32))
    refuse(model, "block-quantized", hint="quantize the result")


def test_claims_of_tensors_inside_nodes_are_checked_too() -> None:
    model = small_model()
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1 << 50])
    model.graph.node.add(op_type="Constant", output=["c"]).attribute.append(
        helper.make_attribute("value", tensor)
    )
    refuse(model, "but holds 0 values")


def test_the_memory_limit_bounds_file_and_weights(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    with pytest.raises(ModelError, match="memory limit is 4000"):
        load(path, memory=4000)
    with pytest.raises(ModelError, match="at most 100 can be read"):
        load(path, memory=100)
    assert limits.memory_limit() > 2**20


def edit_external(path: Path, key: str, value: str) -> None:
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value
            break
    else:
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("location", "../m.data", "not a plain file in the model's folder"),
        ("location", "sub/../../m.data", "not a plain file in the model's folder"),
        ("location", "/etc/passwd", "not a plain file in the model's folder"),
        ("location", "..\\m.data", "not a plain file in the model's folder"),
        ("location", "", "not a plain file in the model's folder"),
        ("location", ".", "not a plain file in the model's folder"),
        ("location", "gone.data", "is missing"),
        ("offset", "999999999", "ends at byte"),
        ("offset", "-1", "not a number"),
        ("offset", "1e3", "not a number"),
        ("length", "12", "12 bytes of external data"),
        ("length", "9" * 30, "not a number"),
    ],
)
def test_external_data_is_contained(tmp_path: Path, key: str, value: str, message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = with_external_data(folder)
    (tmp_path / "m.data").write_bytes((folder / "m.data").read_bytes())
    edit_external(path, key, value)
    refuse(path, message)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")
def test_links_may_not_lead_out(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    path = with_external_data(folder)
    (folder / "m.data").rename(outside / "m.data")
    (folder / "m.data").symlink_to(outside / "m.data")
    refuse(path, "not a plain file in the model's folder")
    (folder / "m.data").unlink()
    (folder / "sub").symlink_to(outside)
    edit_external(path, "location", "sub/m.data")
    refuse(path, "not a plain file in the model's folder")


def test_truncated_external_data(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    data = tmp_path / "m.data"
    data.write_bytes(data.read_bytes()[:-1])
    refuse(path, "ends at byte", hint="incomplete")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TensorProto.FLOAT, [1.5, -2.0]),
        (TensorProto.DOUBLE, [1.5]),
        (TensorProto.FLOAT16, [1.0, 2.0, 3.0]),
        (TensorProto.INT8, [1, -2]),
        (TensorProto.INT64, [2**40]),
        (TensorProto.UINT32, [7]),
        (TensorProto.BOOL, [True]),
        (TensorProto.COMPLEX64, [1 + 2j, 3j]),
        (TensorProto.INT4, [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("raw", (False, True))
def test_every_way_to_store_a_tensor(kind: int, values: list[float], raw: bool) -> None:
    tensor = helper.make_tensor("t", kind, [len(values)], values)
    if raw:
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor), "t")
        assert tensor.HasField("raw_data")
    model = small_model(opset=21)
    model.graph.initializer.append(tensor)
    limits.check_tensors(model, None, 2**30)
    model.graph.initializer[-1].dims[0] += 2
    with pytest.raises(ModelError, match="but holds"):
        limits.check_tensors(model, None, 2**30)


def test_old_and_new_versions_are_read() -> None:
    for opset in (7, 8, 13, 21, 25, 26):
        assert load(small_model(opset)).model.opset_import[0].version == opset
