"""Saving: whole or not at all, never over the input, and each shared weight once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxprune.errors import UsageError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.io import save as save_module
from onnxprune.io.load import load
from onnxprune.io.save import save
from tests.model_builder import Builder


def small_model() -> onnx.ModelProto:
    b = Builder(opset=13)
    return b.model(b.gemm(b.flatten(b.conv(b.input((1, 3, 8, 8)), 16, 3)), 3))


def test_written_as_it_is(tmp_path: Path) -> None:
    model = small_model()
    before = model.SerializeToString(deterministic=True)
    assert save(model, tmp_path / "m.onnx") == (tmp_path / "m.onnx",)
    assert onnx.load(tmp_path / "m.onnx") == model
    assert model.SerializeToString(deterministic=True) == before
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_same_model_same_bytes(tmp_path: Path) -> None:
    a, b = (save(small_model(), tmp_path / name)[0].read_bytes() for name in ("a", "b"))
    assert a == b


def test_external_data(tmp_path: Path) -> None:
    model = small_model()
    files = save(model, tmp_path / "m.onnx", external_data=True)
    assert files == (tmp_path / "m.onnx", tmp_path / "m.onnx.data")
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    assert files[0].stat().st_size < files[1].stat().st_size
    loaded = load(files[0])
    assert loaded.external_data and loaded.model == model
    ort.InferenceSession(str(files[0]), providers=["CPUExecutionProvider"])
    bare = onnx.load(files[0], load_external_data=False)
    offsets = [int(e.value) for t in bare.graph.initializer for e in t.external_data if e.key == "offset"]
    assert offsets and all(offset % 4096 == 0 for offset in offsets)
    small = [t for t in bare.graph.initializer if t.dims == [3]]
    assert small and not small[0].external_data


def test_models_over_the_limit_get_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.io.limits.INLINE_LIMIT", 1000)
    assert len(save(small_model(), tmp_path / "m.onnx")) == 2


def test_an_existing_output_needs_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="exists") as caught:
        save(small_model(), path)
    assert "--force" in caught.value.hint and path.read_bytes() == b"old"
    save(small_model(), path, overwrite=True)
    assert onnx.load(path) == small_model()


def test_an_existing_data_file_needs_overwrite(tmp_path: Path) -> None:
    data = tmp_path / "m.onnx.data"
    data.write_bytes(b"old")
    with pytest.raises(UsageError, match=r"m\.onnx\.data exists"):
        save(small_model(), tmp_path / "m.onnx", external_data=True)
    assert os.listdir(tmp_path) == ["m.onnx.data"]
    save(small_model(), tmp_path / "m.onnx", external_data=True, overwrite=True)
    assert load(tmp_path / "m.onnx").model == small_model()


@pytest.mark.parametrize("how", ("same", "symbolic", "hard"))
def test_the_input_is_never_overwritten(tmp_path: Path, how: str) -> None:
    source = save(small_model(), tmp_path / "in.onnx")[0]
    before = source.read_bytes()
    target = source if how == "same" else tmp_path / "out.onnx"
    if how == "symbolic":
        target.symlink_to(source)
    elif how == "hard":
        os.link(source, target)
    with pytest.raises(UsageError, match="is the input"):
        save(small_model(), target, overwrite=True, protect=source)
    assert source.read_bytes() == before


@pytest.mark.parametrize("existing", (True, False))
def test_a_link_stays_one(tmp_path: Path, existing: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere" / "real.onnx", tmp_path / "link.onnx"
    link.symlink_to(real)
    if existing:
        real.write_bytes(b"old")
        with pytest.raises(UsageError, match="exists"):
            save(small_model(), link)
    assert save(small_model(), link, overwrite=existing) == (real,)
    assert link.is_symlink() and onnx.load(real) == small_model()


def test_a_link_in_place_of_the_data_needs_overwrite_and_its_target_stays(tmp_path: Path) -> None:
    data = tmp_path / "m.onnx.data"
    data.symlink_to("other")
    with pytest.raises(UsageError, match=r"m\.onnx\.data exists"):
        save(small_model(), tmp_path / "m.onnx", external_data=True)
    assert data.is_symlink()
    (tmp_path / "other").write_bytes(b"theirs")
    save(small_model(), tmp_path / "m.onnx", external_data=True, overwrite=True)
    assert (tmp_path / "other").read_bytes() == b"theirs" and load(tmp_path / "m.onnx").external_data


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "loop", "null"):
        with pytest.raises(UsageError):
            save(small_model(), tmp_path / name, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["loop", "null", "pipe"]
    assert (tmp_path / "pipe").is_fifo() and all((tmp_path / name).is_symlink() for name in ("loop", "null"))


def test_names_are_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    save(small_model(), tmp_path / ("x" * longest))
    for _ in range(2):
        save(small_model(), tmp_path / ("y" * (longest - 5)), external_data=True, overwrite=True)
    with pytest.raises(UsageError, match="too long"):
        save(small_model(), tmp_path / ("z" * (longest + 1)))
    assert len(os.listdir(tmp_path)) == 3


def test_the_inputs_data_file_is_protected_too(tmp_path: Path) -> None:
    save(small_model(), tmp_path / "m.onnx", external_data=True)
    (tmp_path / "m.onnx").rename(tmp_path / "in.onnx")
    loaded = load(tmp_path / "in.onnx")
    with pytest.raises(UsageError, match=r"m\.onnx\.data is the input"):
        save(loaded.model, tmp_path / "m.onnx", external_data=True, overwrite=True, protect=loaded.files)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        save(small_model(), tmp_path / "none" / "m.onnx")
    (tmp_path / "d").mkdir()
    with pytest.raises(UsageError, match="is not a file"):
        save(small_model(), tmp_path / "d", overwrite=True)


@pytest.mark.parametrize("fails", ("_write", "_externalise", "fsync", "replace-1", "replace-2", "replace-3"))
@pytest.mark.parametrize("existing", (True, False))
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, existing: bool
) -> None:
    path = tmp_path / "m.onnx"
    if existing:
        save(small_model(), path, external_data=True)
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    if fails.startswith("replace"):
        real, left = os.replace, [int(fails[-1]) - (0 if existing else 1)]

        def replace(source: str, target: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                fail()
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        if left[0] == 0:
            pytest.skip("no such step")
    elif fails == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(save_module, fails, fail)
    changed = small_model()
    changed.graph.name = "changed"
    changed.graph.initializer[0].raw_data = bytes(len(changed.graph.initializer[0].raw_data))
    with pytest.raises(UsageError, match="No space left"):
        save(changed, path, external_data=True, overwrite=True)
    monkeypatch.undo()
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before


def test_copies_that_are_still_equal_are_one_tensor_again(tmp_path: Path) -> None:
    b = Builder()
    x = b.input((1, 3, 4, 4))
    bias, weight = b.weight(6), b.weight(6, 3, 1, 1)
    left = b.conv(x, 6, 1, bias_name=bias, weight=weight)
    right = b.conv(b.relu(x), 6, 1, bias_name=bias, weight=weight)
    model = b.model(b.conv(b.concat(left, right), 4, 1))
    prepared = analyze_graph(model).model
    assert len(prepared.graph.initializer) == len(model.graph.initializer) + 2
    saved = onnx.load(save(prepared, tmp_path / "m.onnx")[0])
    assert {t.name for t in saved.graph.initializer} == {t.name for t in model.graph.initializer}
    assert [list(n.input) for n in saved.graph.node] == [list(n.input) for n in model.graph.node]
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)}
    outputs = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for m in (model, saved)
    ]
    np.testing.assert_array_equal(*outputs)


def test_copies_that_differ_stay_apart(tmp_path: Path) -> None:
    b = Builder()
    x = b.input((1, 3, 4, 4))
    bias = b.weight(6)
    y = b.concat(b.conv(x, 6, 1, bias_name=bias), b.conv(x, 6, 3, bias_name=bias))
    prepared = analyze_graph(b.model(b.conv(y, 4, 1))).model
    clone = next(t for t in prepared.graph.initializer if "::" in t.name)
    clone.raw_data = bytes(len(clone.raw_data))
    saved = onnx.load(save(prepared, tmp_path / "m.onnx")[0])
    assert saved == prepared
