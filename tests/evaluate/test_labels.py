"""Labels in every form: numbers, names, columns, batches and class folders."""

from __future__ import annotations

import csv
import warnings
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from onnxprune.evaluate.datasets import load_dataset, open_source
from onnxprune.evaluate.metrics import evaluate
from onnxprune.profile.session import open_session
from tests.evaluate.models import as_inputs, classifier, save_png
from tests.evaluate.test_datasets import IMAGES, LABELS, MANY, SPEC, class_folders, labels_csv, refused


def test_class_folders_by_name_and_by_number(tmp_path: Path) -> None:
    names = ["kiwi", "apple", "fig", "date", "plum", "pear", "lime", "nut", "oat", "rye"]
    class_folders(tmp_path / "named", names)
    dataset = load_dataset(tmp_path / "named", SPEC)
    order = sorted({names[label] for label in LABELS})
    assert sorted(dataset.labels.tolist()) == sorted(order.index(names[label]) for label in LABELS)
    assert any("sorted names" in warning for warning in dataset.warnings)
    class_folders(tmp_path / "numbered", [str(3 * label) for label in range(10)])
    numbered = load_dataset(tmp_path / "numbered", SPEC)
    assert sorted(numbered.labels.tolist()) == sorted(3 * int(label) for label in LABELS)


def test_class_folders_without_images_shift_no_number(tmp_path: Path) -> None:
    for name in ("ant", "cow"):
        save_png(IMAGES[0], tmp_path / name / "a.png")
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "a.heic").write_text("no known suffix")
    assert "no images in bee" in refused(lambda: load_dataset(tmp_path, SPEC))
    (tmp_path / "bee").rename(tmp_path / "dog")  # after all others: it shifts none
    assert load_dataset(tmp_path, SPEC).class_names == ("ant", "cow")
    for name in ("10", "2"):
        save_png(IMAGES[0], tmp_path / "numbered" / name / "a.png")
    (tmp_path / "numbered" / "notes").mkdir()
    assert load_dataset(tmp_path / "numbered", SPEC).labels.tolist() == [10, 2]
    save_png(IMAGES[0], tmp_path / "numbered" / ("9" * 30) / "a.png")
    assert "include 1e+30" in refused(lambda: load_dataset(tmp_path / "numbered", SPEC))


@pytest.mark.parametrize(
    "header",
    ["file,label", "filename,class_index", "path,imagenet1k_index", "IMAGE,Labels", "\ufefffile,kind", ""],
)
def test_labels_csv_headers(tmp_path: Path, header: str) -> None:
    labels_csv(tmp_path, header)
    dataset = load_dataset(tmp_path, SPEC)
    assert dataset.labels.tolist() == LABELS.tolist()
    assert np.array_equal(dataset.arrays([5]).inputs, as_inputs(IMAGES[[5]]))


def test_labels_csv_with_more_columns_in_their_own_order(tmp_path: Path) -> None:
    for index in (0, 1, 2):
        save_png(IMAGES[index], tmp_path / "photos" / f"{index}.png")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["author", "imagenet1k_index", "file", "split"])
        writer.writerow(["Doe, J.", 7, "photos/2.png", "val"])
        writer.writerow(["Roe", 1, "photos/0.png", "train"])
        writer.writerow(["Poe", 2, "photos/1.png", "val"])
    assert load_dataset(tmp_path, SPEC).labels.tolist() == [7, 1, 2]
    chosen = load_dataset(tmp_path, SPEC, split="val")
    assert chosen.labels.tolist() == [7, 2]
    assert np.array_equal(chosen.arrays().inputs, as_inputs(IMAGES[[2, 1]]))
    assert "its splits: train, val" in refused(lambda: load_dataset(tmp_path, SPEC, split="test"))


def test_names_as_labels_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    labels_csv(tmp_path)
    (tmp_path / "labels.csv").write_text("file,label\n000.png,dog\n001.png,cat\n002.png,dog\n")
    np.savez(tmp_path / "names.npz", x=IMAGES[:3], y=["dog", "cat", "dog"])
    for data in (tmp_path, tmp_path / "names.npz"):
        dataset = load_dataset(data, SPEC)
        assert dataset.labels.tolist() == [1, 0, 1]
        assert "classes are numbered by their sorted names: 0 is 'cat'" in dataset.warnings
        assert dataset.class_names == dataset.in_memory().class_names == ("cat", "dog")
        assert dataset.warnings == dataset.in_memory().warnings


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\n000.png,1\ngone.png,2\nlost.png,3\n", "'gone.png' and 1 more"),
        ("file,label\ngone.png,2\n", "files that do not exist: 'gone.png' |"),
        ("file,label,fine_label,class\n000.png,1,2,3\n", "several label columns: label, fine_label, class"),
        ("file,a_index,b_index\n000.png,1,2\n", "several label columns: a_index, b_index"),
        (
            "file,author,license\n000.png,a,b\n",
            "no label column | call one 'label'; its columns: author, license",
        ),
        ("picture,label\n000.png,1\n", "no file column"),
        ("file,label\n000.png\n", "row 2 has 1 cells"),
        ("file,label\n000.png,\n", "1 rows without a label"),
        ("file,label\n000.png,-1\n", "include -1"),
        ("file,label\n", "lists no files"),
        ("", "is empty"),
    ],
)
def test_broken_labels_csv(tmp_path: Path, text: str, says: str) -> None:
    labels_csv(tmp_path)
    (tmp_path / "labels.csv").write_text(text)
    assert says in refused(lambda: load_dataset(tmp_path, SPEC))


def test_one_hot_and_unfit_labels() -> None:
    one_hot = np.eye(10)[LABELS]
    assert load_dataset((IMAGES, one_hot), SPEC).labels.tolist() == LABELS.tolist()
    assert "22 labels" in refused(lambda: load_dataset((IMAGES, LABELS[1:]), SPEC))
    assert "whole numbers" in refused(lambda: load_dataset((IMAGES, LABELS + 0.5), SPEC))
    assert "shape" in refused(lambda: load_dataset((IMAGES, np.zeros((23, 4))), SPEC))
    session = open_session(classifier(classes=5), provider="cpu")
    text = refused(lambda: evaluate(session, load_dataset((IMAGES, LABELS), SPEC)))
    assert "label 9 is not among the model's 5 classes" in text


def test_names_in_batches_are_numbered_over_all_batches() -> None:
    order = np.argsort(LABELS, kind="stable")
    batches = [
        (IMAGES[rows], [f"class{label}" for label in LABELS[rows]]) for rows in np.split(order, [4, 15])
    ]
    expected = np.unique(LABELS[order], return_inverse=True)[1]
    assert load_dataset(batches, SPEC).labels.tolist() == expected.tolist()
    text = refused(lambda: load_dataset([(IMAGES[:3], [0, 1, 2]), (IMAGES[:3], np.eye(3))], SPEC))
    assert "differ in form" in text
    assert "2 samples but 3 labels" in refused(lambda: load_dataset([(IMAGES[:2], [1, 2, 3])], SPEC))
    assert "a label of shape ()" in refused(lambda: load_dataset([(IMAGES[:2], 1)], SPEC))


@pytest.mark.parametrize(
    "labels",
    [
        MANY.astype(str).astype("S"),
        MANY.astype(float).astype(str),
        [f" {label} " for label in MANY],
        np.array([Decimal(int(label)) for label in MANY]),
        np.array([int(label) for label in MANY], dtype=object),
    ],
    ids=["bytes", "float text", "text", "decimals", "objects"],
)
def test_numbers_as_labels_in_any_form(labels: object) -> None:
    assert load_dataset((IMAGES, labels), SPEC).labels.tolist() == MANY.tolist()


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([10**30, *LABELS[1:]], "include 1e+30"),
        (["1" * 400, *MANY[1:]], "not whole numbers"),
        (MANY + 1e300, "include 1e+300"),
        (MANY.astype(np.uint64) + np.uint64(2**63), "include 9.22337e+18"),
        (["1.5"] * 23, "not whole numbers"),
        (["-1"] * 23, "include -1"),
        (["nan", *MANY[1:].astype(str)], "not whole numbers"),
        ([None, *MANY[1:]], "type NoneType"),
        (np.array(["cat", float("nan"), *MANY[2:]], dtype=object), "missing values"),
        (np.array([b"\xff"] * 23), "not UTF-8"),
    ],
)
def test_labels_that_are_no_class(labels: object, says: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert says in refused(lambda: load_dataset((IMAGES, labels), SPEC))


@pytest.mark.parametrize(
    "labels",
    [
        [str(label).encode() for label in MANY],
        [str(float(label)) for label in MANY],
        [[label] for label in MANY],
        np.eye(12)[MANY].tolist(),
    ],
    ids=["binary", "float text", "lists", "one-hot"],
)
def test_label_columns_of_parquet(tmp_path: Path, labels: list[object]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"x": IMAGES.reshape(23, -1).tolist(), "label": labels})
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=5)
    assert open_source(tmp_path / "d.parquet").labels.tolist() == MANY.tolist()


def test_uneven_label_lists_of_parquet_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for labels in ([[1], [2, 3]], [["a"], ["b"]], [{"a": 1}, {"a": 2}]):
        pq.write_table(pa.table({"x": [[1], [2]], "label": labels}), tmp_path / "d.parquet")
        assert "values of type" in refused(lambda: open_source(tmp_path / "d.parquet"))
