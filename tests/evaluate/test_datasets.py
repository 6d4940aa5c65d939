"""Every format against arrays that never passed through it, and the errors that users meet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from onnxprune.errors import DataError, OnnxPruneError, UsageError
from onnxprune.evaluate.datasets import load_dataset, open_source
from onnxprune.evaluate.formats import stream
from onnxprune.evaluate.metrics import evaluate
from onnxprune.evaluate.preprocess import Preprocess
from onnxprune.profile.session import open_session
from onnxprune.profile.spec import TensorSpec
from tests.evaluate.models import as_inputs, classifier, pixels, plain_counts, plain_scores, save_png

SPEC = TensorSpec("input", np.dtype(np.float32), (None, 3, 8, 8))
IMAGES = pixels(23)
LABELS = np.random.default_rng(5).integers(0, 10, 23)


def refused(call: object, kind: type[OnnxPruneError] = DataError, code: int = 5) -> str:
    """The one line of a refusal, its hint after it."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.exit_code == code
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return f"{caught.value} | {caught.value.hint}"


def class_folders(folder: Path, names: list[str] | None = None) -> None:
    for index, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        name = names[label] if names else f"class{label}"
        save_png(image, folder / name / f"{index:03d}.png")


def labels_csv(folder: Path, header: str = "file,label") -> None:
    for index, image in enumerate(IMAGES):
        save_png(image, folder / f"{index:03d}.png")
    rows = [f"{index:03d}.png,{label}" for index, label in enumerate(LABELS)]
    (folder / "labels.csv").write_text("\n".join([header, *rows] if header else rows))


def npz(folder: Path) -> Path:
    np.savez(folder / "data.npz", images=IMAGES, labels=LABELS)
    return folder / "data.npz"


def png_bytes(image: np.ndarray, folder: Path) -> bytes:
    return save_png(image, folder / "one.png").read_bytes()


def parquet(folder: Path, kind: str = "struct") -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    encoded = [png_bytes(image, folder) for image in IMAGES]
    if kind == "struct":
        column = pa.array([{"bytes": data, "path": None} for data in encoded])
    elif kind == "bytes":
        column = pa.array(encoded)
    elif kind == "path":
        for index, data in enumerate(encoded):
            (folder / f"{index}.png").write_bytes(data)
        column = pa.array([{"bytes": None, "path": f"{index}.png"} for index in range(len(encoded))])
    else:
        column = pa.array(IMAGES.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    table = pa.table({"img": column, "label": pa.array(LABELS)})
    pq.write_table(table, folder / "data.parquet", row_group_size=5)
    return folder / "data.parquet"


def module_file(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    np.savez(folder / "raw.npz", images=IMAGES, labels=LABELS)
    (folder / f"{name}.py").write_text(
        "import numpy as np\n"
        f"raw = np.load({str(folder / 'raw.npz')!r})\n"
        "def batches():\n"
        "    for start in range(0, 23, 4):\n"
        "        yield raw['images'][start:start + 4], raw['labels'][start:start + 4]\n"
        "def images():\n"
        "    return raw['images']\n"
        "def broken():\n"
        "    raise RuntimeError('no\\ndisk')\n"
        "def nothing():\n"
        "    return []\n"
    )
    monkeypatch.chdir(folder)
    return f"{name}:batches"


FORMATS = ["folders", "csv", "npz", "x-y", "struct", "bytes", "path", "nested", "module", "arrays", "file.py"]


@pytest.fixture(params=FORMATS)
def data(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    form: str = request.param
    if form == "folders":
        class_folders(tmp_path)
    elif form == "csv":
        labels_csv(tmp_path)
    elif form == "npz":
        return npz(tmp_path)
    elif form == "x-y":
        np.savez_compressed(tmp_path / "d.npz", x=IMAGES, y=LABELS.astype(np.float64)[:, None])
        return tmp_path / "d.npz"
    elif form == "module":
        return module_file(tmp_path, monkeypatch, "stream_for_formats")
    elif form == "file.py":
        module_file(tmp_path, monkeypatch, "stream_from_file")
        return f"{tmp_path / 'stream_from_file.py'}:batches"
    elif form == "arrays":
        return (IMAGES, LABELS)
    else:
        return parquet(tmp_path, form)
    return tmp_path


def test_every_format_counts_as_a_plain_loop_does(data: object) -> None:
    model = classifier()
    session = open_session(model, provider="cpu", threads=1)
    dataset = load_dataset(data, session.input)
    metrics = evaluate(session, dataset, batch_size=5)
    expected = plain_counts(plain_scores(model, as_inputs(IMAGES)), LABELS)
    assert (metrics.samples, metrics.correct_top1, metrics.correct_top5) == (23, *expected)
    assert 0 < metrics.correct_top5 < 23  # otherwise nothing is shown


def test_every_format_gives_the_same_inputs_in_any_order(data: object) -> None:
    dataset = load_dataset(data, SPEC)
    assert len(dataset) == 23
    order = np.array([20, 3, 3, 11])
    batches = list(dataset.batches(3, order))
    assert [len(batch.inputs) for batch in batches] == [3, 1]
    inputs = np.concatenate([batch.inputs for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    # Class folders come sorted by class: find each image by its label and pixels.
    whole = dataset.arrays()
    assert np.array_equal(inputs, whole.inputs[order])
    assert np.array_equal(labels, whole.labels[order])
    pairs = {(image.tobytes(), int(label)) for image, label in zip(whole.inputs, whole.labels, strict=True)}
    assert pairs == {
        (image.tobytes(), int(label)) for image, label in zip(as_inputs(IMAGES), LABELS, strict=True)
    }


def test_memory_copies_and_views_give_the_same(data: object) -> None:
    dataset = load_dataset(data, SPEC, preprocess=Preprocess(resize=10, color="bgr", mean=0.5))
    kept = dataset.in_memory()
    assert np.array_equal(kept.arrays().inputs, dataset.arrays().inputs)
    assert kept.preprocess.mean == dataset.preprocess.mean
    assert dataset.in_memory(limit=10) is dataset
    part = dataset.subset([4, 2]).with_labels([7, 8])
    assert np.array_equal(part.arrays().inputs, dataset.arrays([4, 2]).inputs)
    assert part.labels.tolist() == [7, 8]
    with pytest.raises(ValueError, match="shape"):
        part.with_labels([1])


def test_hidden_and_foreign_files_are_left_out(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / ".cache").mkdir()
    save_png(IMAGES[0], tmp_path / ".cache" / "a.png")
    (tmp_path / "class0" / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    assert len(load_dataset(tmp_path, SPEC)) == 23


def test_links_back_to_a_folder_are_not_followed(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        save_png(IMAGES[0], tmp_path / name / "a.png")
        (tmp_path / name / "root").symlink_to("..")
        (tmp_path / name / "self").symlink_to(".")
    assert load_dataset(tmp_path, SPEC).labels.tolist() == [0, 1]
    (tmp_path / "cow").symlink_to("ant")
    assert load_dataset(tmp_path, SPEC).labels.tolist() == [0, 1, 2]


def test_plain_images_have_no_labels(tmp_path: Path) -> None:
    save_png(IMAGES[0], tmp_path / "b.png")
    save_png(IMAGES[1], tmp_path / "a.png")
    dataset = load_dataset(tmp_path, SPEC)
    assert dataset.labels is None
    assert np.array_equal(dataset.arrays().inputs, as_inputs(IMAGES[[1, 0]]))
    session = open_session(classifier(), provider="cpu")
    assert "no labels" in refused(lambda: evaluate(session, dataset))


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("0:5", range(5)),
        (":5", range(5)),
        ("20:", range(20, 23)),
        ("-3:", range(20, 23)),
        ("[5:7]", range(5, 7)),
        ("10%:20%", range(2, 4)),
        ("20:100", range(20, 23)),
    ],
)
def test_row_ranges(split: str, rows: range) -> None:
    dataset = load_dataset((IMAGES, LABELS), SPEC, split=split)
    assert dataset.labels.tolist() == LABELS[list(rows)].tolist()
    assert np.array_equal(dataset.arrays().inputs, as_inputs(IMAGES[list(rows)]))
    assert dataset.describe()["split"] == split


@pytest.mark.parametrize("split", ["", "a:b", "train[", "1:2:3", "train0:3", "[0]"])
def test_splits_that_can_not_be_read(split: str) -> None:
    assert "--split" in refused(lambda: load_dataset((IMAGES, LABELS), SPEC, split=split), UsageError, 2)


def test_a_range_without_rows() -> None:
    assert "none of the 23 rows" in refused(lambda: load_dataset((IMAGES, LABELS), SPEC, split="40:"))


def test_named_splits_of_folders_and_archives(tmp_path: Path) -> None:
    class_folders(tmp_path / "pictures" / "train")
    class_folders(tmp_path / "pictures" / "test")
    text = refused(lambda: load_dataset(tmp_path / "pictures", SPEC))
    assert "the splits test, train" in text
    assert len(load_dataset(tmp_path / "pictures", SPEC, split="train[:4]")) == 4
    assert "its parts: test, train" in refused(lambda: load_dataset(tmp_path / "pictures", SPEC, split="dev"))
    np.savez(tmp_path / "m.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:4], y_test=LABELS[:4])
    assert len(load_dataset(tmp_path / "m.npz", SPEC, split="test")) == 4
    assert load_dataset(tmp_path / "m.npz", SPEC, split="train").labels.tolist() == LABELS.tolist()
    assert "x_train" in refused(lambda: load_dataset(tmp_path / "m.npz", SPEC))
    assert "x_train" in refused(lambda: load_dataset(tmp_path / "m.npz", SPEC, split="dev"))


def test_folders_of_data_files_and_shards(tmp_path: Path) -> None:
    source = parquet(tmp_path)
    folder = tmp_path / "hub"
    folder.mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        (folder / f"{name}.parquet").write_bytes(source.read_bytes())
    assert "test, train" in refused(lambda: load_dataset(folder, SPEC))
    joined = load_dataset(folder, SPEC, split="train")
    assert joined.labels.tolist() == [*LABELS, *LABELS]
    inputs = joined.arrays([1, 24, 45]).inputs
    assert np.array_equal(inputs, as_inputs(IMAGES[[1, 1, 22]]))
    assert len(load_dataset(folder, SPEC, split="test")) == 23


def test_float_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((6, 3, 8, 8))
    np.save(tmp_path / "v.npy", values)
    dataset = load_dataset(tmp_path / "v.npy", SPEC)
    assert dataset.labels is None and dataset.preprocess is None and dataset.warnings == ()
    assert np.array_equal(dataset.arrays().inputs, values.astype(np.float32))
    # ... unless preprocessing is asked for: by channel, whichever layout they come in, scale 1.
    asked = Preprocess(mean=(1, 2, 3), std=(2, 4, 8))
    expected = (values - np.array([1, 2, 3])[:, None, None]) / np.array([2, 4, 8])[:, None, None]
    for form in (values, values.transpose(0, 2, 3, 1)):
        inputs = load_dataset(form, SPEC, preprocess=asked).arrays().inputs
        np.testing.assert_allclose(inputs, expected, rtol=1e-6, atol=1e-6)
        assert inputs.dtype == np.float32 and inputs.flags.c_contiguous


def test_arrays_for_inputs_that_are_no_images() -> None:
    spec = TensorSpec("x", np.dtype(np.float16), (None, 5))
    values = np.arange(20).reshape(4, 5)
    inputs = load_dataset(values.astype(np.uint8), spec).arrays().inputs
    assert inputs.dtype == np.float16
    assert np.array_equal(inputs, values)


def test_uint8_arrays_with_channels_first_and_gray() -> None:
    turned = load_dataset(IMAGES.transpose(0, 3, 1, 2), SPEC).arrays().inputs
    assert np.array_equal(turned, as_inputs(IMAGES))
    gray = TensorSpec("x", np.dtype(np.float32), (None, 1, 8, 8))
    one = pixels(4, channels=1)
    expected = as_inputs(one)
    assert np.array_equal(load_dataset(one[..., 0], gray).arrays().inputs, expected)
    assert np.array_equal(load_dataset(one, gray).arrays().inputs, expected)
    as_rgb = load_dataset(one, SPEC).arrays().inputs
    assert np.array_equal(as_rgb, np.repeat(expected, 3, axis=1))


MANY = np.arange(23) % 12
"""Labels whose order as text is another than as numbers."""


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "nowhere", "no such data"),
        (lambda folder: folder, "holds no images"),
        (lambda folder: "no_such_module_here:batches", "ModuleNotFoundError"),
        (lambda folder: "math:nothing", "AttributeError"),
        (lambda folder: "gone.py:batches", "no such file"),
        (lambda folder: np.zeros((0, 3, 8, 8), np.float32), "no samples"),
        (lambda folder: np.zeros((2, 3, 8, 8), "datetime64[s]"), "not numbers"),
        (lambda folder: 3, "not batches"),
        (lambda folder: [IMAGES[:2], IMAGES[:2, :4]], "differ in shape"),
        (lambda folder: [(IMAGES[:2], LABELS[:2]), IMAGES[:2]], "only some batches"),
        (lambda folder: iter(()), "yields no batches"),
    ],
)
def test_data_that_is_not_there(tmp_path: Path, make: object, says: str) -> None:
    assert says in refused(lambda: load_dataset(make(tmp_path), SPEC))


def test_failing_functions_are_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module_file(tmp_path, monkeypatch, "stream_for_errors")
    assert "RuntimeError: no disk" in refused(lambda: load_dataset("stream_for_errors:broken", SPEC))
    assert "no batches" in refused(lambda: load_dataset("stream_for_errors:nothing", SPEC))
    assert len(load_dataset("stream_for_errors:images", SPEC)) == 23


def test_python_objects_that_fail_are_named_in_one_line() -> None:
    torch = pytest.importorskip("torch")
    text = refused(lambda: load_dataset(lambda: 1 / 0, SPEC))
    assert "<lambda> failed: ZeroDivisionError" in text
    tensor = torch.zeros((23, 3, 8, 8), requires_grad=True)
    for data in ((tensor, LABELS), [(tensor, LABELS)], {"x": tensor}):
        text = refused(lambda data=data: load_dataset(data, SPEC))
        assert "does not give arrays: RuntimeError" in text and "requires grad" in text


def test_streams_are_read_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_SAMPLES", 10)

    def endless() -> object:
        while True:
            yield {"x": IMAGES[:4], "y": LABELS[:4]}

    dataset = load_dataset(endless, SPEC)
    assert len(dataset) == 12
    assert any("only the first 12" in warning for warning in dataset.warnings)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no archive"])
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_broken_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    assert path.name in refused(lambda: load_dataset(path, SPEC))


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "without pickled objects" in refused(lambda: load_dataset(tmp_path / "p.npy", SPEC))
    np.savez(tmp_path / "p.npz", images=np.array([{"a": 1}], dtype=object))
    assert "without pickled objects" in refused(lambda: load_dataset(tmp_path / "p.npz", SPEC))


def test_unknown_file_formats_and_columns(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("x")
    assert "no known format" in refused(lambda: load_dataset(tmp_path / "data.txt", SPEC))
    np.savez(tmp_path / "odd.npz", a=IMAGES, b=LABELS)
    assert "its arrays: a, b" in refused(lambda: load_dataset(tmp_path / "odd.npz", SPEC))
    np.savez(tmp_path / "one.npz", IMAGES)
    assert load_dataset(tmp_path / "one.npz", SPEC).labels is None
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "t.parquet")
    assert "its columns: text, label" in refused(lambda: load_dataset(tmp_path / "t.parquet", SPEC))
    pq.write_table(pa.table({"img": ["a"], "label": [1]}), tmp_path / "s.parquet")
    assert "holds string" in refused(lambda: load_dataset(tmp_path / "s.parquet", SPEC))
    assert "no split" in refused(lambda: load_dataset(tmp_path / "s.parquet", SPEC, split="train"))


def test_columns_that_come_twice(tmp_path: Path) -> None:
    text = refused(lambda: load_dataset({"x": IMAGES, "Label": LABELS, "label": LABELS}, SPEC))
    assert "has its array of labels twice: Label, label" in text
    assert len(load_dataset({"x": IMAGES, "Note": LABELS, "note": LABELS}, SPEC)) == 23
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = [pa.array([b"image"]), pa.array([1]), pa.array([1])]
    pq.write_table(pa.Table.from_arrays(columns, ["x", "label", "label"]), tmp_path / "d.parquet")
    assert "has its label column twice: label, label" in refused(lambda: open_source(tmp_path / "d.parquet"))


def test_a_link_that_leads_nowhere_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("gone.png")
    assert "a.png | the file is gone, or a link that leads nowhere" in refused(
        lambda: load_dataset(tmp_path, SPEC)
    )


def test_an_image_that_is_cut_short_is_named(tmp_path: Path) -> None:
    labels_csv(tmp_path)
    whole = (tmp_path / "004.png").read_bytes()
    (tmp_path / "004.png").write_bytes(whole[: len(whole) // 2])
    dataset = load_dataset(tmp_path, SPEC)
    assert "004.png" in refused(lambda: list(dataset.batches(4)))
    (tmp_path / "004.png").write_text("no image")
    assert "004.png" in refused(lambda: list(dataset.batches(4)))
    (tmp_path / "004.png").unlink()
    assert "004.png" in refused(lambda: list(dataset.batches(4)))


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (np.zeros((2, 3, 9, 8), np.float32), "wants N x 3 x 8 x 8, the data gives 2 x 3 x 9 x 8"),
        (np.zeros((2, 8, 8, 3), np.float32), "in the model's layout"),
        (np.zeros((2, 5), np.float32), "wants N x 3 x 8 x 8"),
        (np.zeros((2, 28, 28, 3), np.uint8), "--resize and --crop"),
        (np.zeros((2, 5, 5, 2), np.uint8), "images (N, H, W, C)"),
    ],
)
def test_shapes_that_do_not_fit_the_model(samples: np.ndarray, says: str) -> None:
    # The first sample is prepared at once, so batches of it are never started.
    text = refused(lambda: load_dataset(samples, SPEC))
    assert says.replace("2 x", "1 x") in text or says in text


def test_synthetic_data_is_the_same_for_the_same_seed() -> None:
    first, again, other = (load_dataset("synthetic", SPEC, seed=seed, samples=6) for seed in (1, 1, 2))
    assert np.array_equal(first.arrays().inputs, again.arrays().inputs)
    assert not np.array_equal(first.arrays().inputs, other.arrays().inputs)
    assert np.array_equal(first.arrays([4]).inputs, first.arrays().inputs[4:5])
    assert first.arrays().inputs.shape == (6, 3, 8, 8)
    assert first.labels is None
    assert any("synthetic" in warning for warning in first.warnings)
    flat = TensorSpec("x", np.dtype(np.float32), (None, 5))
    assert load_dataset("synthetic", flat).arrays([0, 1]).inputs.shape == (2, 5)
    free = TensorSpec("x", np.dtype(np.float32), (None, 3, None, None))
    assert "--crop" in refused(lambda: load_dataset("synthetic", free))
    sized = load_dataset("synthetic", free, preprocess=Preprocess(crop=6))
    assert sized.arrays([0]).inputs.shape == (1, 3, 6, 6)
    tokens = TensorSpec("x", np.dtype(np.int64), (None, 4))
    assert load_dataset("synthetic", tokens).arrays([0]).inputs.dtype == np.int64


def test_describe_says_what_the_report_needs(tmp_path: Path) -> None:
    labels_csv(tmp_path)
    described = load_dataset(tmp_path, SPEC, split=":20").describe()
    assert described["source"] == str(tmp_path)
    assert (described["format"], described["samples"], described["labels"]) == ("labels.csv", 20, True)
    assert described["classes"] == len(set(LABELS[:20].tolist()))
    assert described["preprocess"]["scale"] == pytest.approx(1 / 255)
    assumed = ("no --mean, --std or --scale was given: images are fed as x / 255",)
    assert load_dataset(tmp_path, SPEC).warnings == assumed
    assert load_dataset(tmp_path, SPEC, preprocess=Preprocess(layout="nchw")).warnings == assumed
    assert load_dataset(tmp_path, SPEC, preprocess=Preprocess(scale=1)).warnings == ()


def test_a_dataset_is_data_too(tmp_path: Path) -> None:
    labels_csv(tmp_path)
    dataset = load_dataset(tmp_path, SPEC, preprocess=Preprocess(mean=0.5), split="3:")
    again = load_dataset(dataset, SPEC, split=":4")
    assert np.array_equal(again.arrays().inputs, dataset.arrays([0, 1, 2, 3]).inputs)
    assert again.labels.tolist() == LABELS[3:7].tolist()
    assert load_dataset(dataset, SPEC).warnings == dataset.warnings
    nhwc = TensorSpec("input", np.dtype(np.float32), (None, 8, 8, 3))
    turned = load_dataset(dataset, nhwc)
    assert turned.preprocess.mean == (0.5,)
    assert np.array_equal(turned.arrays().inputs, dataset.arrays().inputs.transpose(0, 2, 3, 1))


def test_abandoned_batches_leave_no_thread_behind() -> None:
    import threading

    batches = load_dataset((IMAGES, LABELS), SPEC).batches(4)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("onnxprune-data")]


def test_sources_open_without_a_model() -> None:
    assert len(open_source((IMAGES, LABELS))) == 23
    source = open_source({"images": IMAGES, "labels": LABELS})
    assert open_source(source) is source


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
def test_the_model_gets_its_own_layout_and_type(layout: str, dtype: int) -> None:
    model = classifier(layout=layout, dtype=dtype)
    session = open_session(model, provider="cpu", threads=1)
    inputs = IMAGES if dtype == TensorProto.UINT8 else IMAGES / 255.0
    inputs = inputs.transpose(0, 3, 1, 2) if layout == "nchw" else inputs
    inputs = np.ascontiguousarray(inputs.astype(session.input.dtype))
    dataset = load_dataset((IMAGES, LABELS), session.input)
    assert np.array_equal(dataset.arrays().inputs, inputs)
    metrics = evaluate(session, dataset)
    expected = plain_counts(plain_scores(model, inputs), LABELS)
    assert (metrics.correct_top1, metrics.correct_top5) == expected


@pytest.mark.parametrize("name", ("x.npz", "x.npy", "x.parquet"))
def test_a_file_that_may_not_be_read_is_not_called_broken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"whatever")

    def refuse(self: Path, mode: str = "r") -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"can't be read: Permission denied") as caught:
        open_source(str(tmp_path / name))
    assert caught.value.hint == "check its permissions"
