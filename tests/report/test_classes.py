"""How the classes relate, from the data to what people read."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from onnxprune import pipeline
from onnxprune.calibration import number_classes
from onnxprune.config import CompressConfig
from onnxprune.report.html import report_html
from onnxprune.report.schema import AnalysisReport, ClassEdge, ClassMerge, ClassStructure, ModelFiles
from onnxprune_cli import tables
from tests.model_builder import Builder

STRUCTURE = ClassStructure(
    ("cat", "[dog]", "car"),
    (ClassMerge((0, 1), 0.25), ClassMerge((3, 2), 1.0)),
    (ClassEdge(0, 1, 0.8), ClassEdge(1, 2, -0.6)),
)


def printed(classes: ClassStructure | None) -> list[str]:
    report = AnalysisReport(ModelFiles("a.onnx"), {}, {}, (), (), {}, classes=classes)
    console = Console(file=io.StringIO(), width=100, markup=False)
    console.print(*tables.analysis(report))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_analyze_prints_the_tree_and_the_strongest_edges() -> None:
    lines = printed(STRUCTURE)
    tree = next(index for index, line in enumerate(lines) if "tree of classes" in line)
    assert lines[tree + 1 : tree + 6] == [
        "└── 1.00",
        "    ├── 0.25",
        "    │   ├── cat",
        "    │   └── [dog]",
        "    └── car",
    ]
    edges = [line.split() for line in lines[tree + 7 :]]
    assert edges == [["cat", "[dog]", "+0.80"], ["[dog]", "car", "-0.60"]]
    assert not any("classes" in line for line in printed(None))


def test_weak_edges_are_counted_not_listed() -> None:
    names = tuple(f"c{index}" for index in range(10))
    edges = tuple(ClassEdge(i, j, 0.9 - 0.01 * i) for i in range(10) for j in range(i + 1, 10))
    lines = printed(ClassStructure(names, (ClassMerge(tuple(range(10)), 1.0),), edges))
    assert any("and 33 weaker" in line for line in lines)
    none = printed(dataclasses.replace(STRUCTURE, edges=()))
    assert any("no two classes correlate" in line for line in none)


def test_clusters_take_the_name_of_their_first_class() -> None:
    labels = np.arange(24) % 12
    outputs = np.eye(12)[labels] + 0.02
    outputs[:, 11] = outputs[:, 0]  # of classes 0 and 11 the model says the same
    names = tuple("abcdefghijk")
    _, found = number_classes(labels, outputs / outputs.sum(1, keepdims=True), names)
    assert len(found) <= 10
    assert "a+1" in found or "a+2" in found
    assert number_classes(np.array([0, 2, 11]), np.eye(12)[[0, 2, 11]], names)[1] == ("a", "c", "11")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders: warm ones are alike, and so are cool ones."""
    random = np.random.default_rng(0)
    for name, colour in (("amber", 220), ("blue", 40), ("cyan", 50), ("red", 210)):
        (tmp_path / name).mkdir()
        for index in range(8):
            pixels = random.integers(0, 30, (6, 6, 3))
            pixels[..., 0] += colour
            pixels[..., 2] += 225 - colour
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(tmp_path / name / f"{index}.png")
    return tmp_path


def test_reports_name_the_classes_and_join_those_that_respond_alike(photos: Path) -> None:
    b = Builder()
    x = b.relu(b.conv(b.relu(b.conv(b.input((1, 3, 6, 6), dynamic=True), 8, 3)), 8, 3))
    model = b.model(b.gemm(b.flatten(b.global_pool(x)), 4))
    options = {"data": str(photos), "provider": "cpu", "calibration": 24}
    analysed = pipeline.analyze(CompressConfig.from_options({"model": model, **options})).classes
    compressed = pipeline.compress(model, **options, macs=0.6).report
    assert analysed is not None
    assert analysed.names == ("amber", "blue", "cyan", "red")
    assert {tuple(sorted(merge.children)) for merge in analysed.merges[:2]} == {(0, 3), (1, 2)}
    assert {(edge.first, edge.second) for edge in analysed.edges if edge.correlation > 0} == {(0, 3), (1, 2)}
    assert compressed.classes == analysed
    page = report_html(compressed)
    assert "Tree of classes" in page and "Graph of classes" in page and "amber" in page
    plain = pipeline.compress(model, **options, macs=0.6, method="l1").report
    assert plain.classes is None
