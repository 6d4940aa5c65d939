"""The HTML report: one file, complete, and no way in for names."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from onnxprune.report import svg
from onnxprune.report.html import report_html
from onnxprune.report.plot import sensitivity_svg
from onnxprune.report.schema import (
    AnalysisReport,
    ClassMerge,
    ClassStructure,
    Fidelity,
    Figures,
    GroupSensitivity,
    ModelFiles,
    SensitivityPoint,
)
from tests.report.examples import CLASSES, HOSTILE, compression

SVG = "{http://www.w3.org/2000/svg}"


class Elements(HTMLParser):
    """Collects the tags, the attributes and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements


def test_the_page_says_what_was_done() -> None:
    text = read(report_html(compression())).text
    for part in (
        "small.onnx", "-50.0 %", "125.49 M → 62.70 M", "-1.77 points", "91.62 %", "94.10 %", "0.0713",
        "16 → 7 (44%)", "/fc/Gemm", "graph output 'logits'", "stlp-ib", "macs 50%", "12.5", "truck",
    ):  # fmt: skip
        assert part in text, part


def test_the_page_needs_nothing_but_itself() -> None:
    page = report_html(compression())
    elements = read(page)
    assert not {"script", "link", "iframe", "img"} & set(elements.tags)
    assert not [name for name, _ in elements.attributes if name in ("src", "href") or name.startswith("on")]
    assert not re.search(r"url\(|@import", page)


def test_names_from_models_stay_text() -> None:
    plain, hostile = read(report_html(compression())), read(report_html(compression(HOSTILE)))
    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    assert HOSTILE in hostile.text


def test_what_was_not_measured_is_not_shown() -> None:
    bare = Figures(1000, 200, 3000)
    report = replace(compression(), before=bare, after=bare, groups=(), skipped=(), warnings=(), classes=None)
    text = read(report_html(report)).text
    for heading in ("Accuracy", "Warnings", "Left alone", "Tree of classes", "latency", "KL"):
        assert heading not in text


def test_bars_are_as_long_as_the_channel_counts() -> None:
    page = report_html(compression())
    widths = {
        kind: [float(width) for width in re.findall(rf'class="{kind}" style="width: ([\d.]+)%"', page)]
        for kind in ("before", "after")
    }
    groups = compression().groups
    assert max(widths["before"]) == 100.0
    for group, before, after in zip(groups, widths["before"], widths["after"], strict=True):
        assert after / before == pytest.approx(group.channels_after / group.channels_before, abs=2e-3)


def test_values_are_written_for_readers() -> None:
    data = {"calibration": {"labels": True, "split": None, "preprocess": {"mean": [0.5, 0.25]}, "samples": 9}}
    text = read(report_html(replace(compression(), data=data))).text
    assert "labels yes, preprocess mean 0.5, 0.25, samples 9" in text


def test_no_two_curves_look_alike() -> None:
    points = (SensitivityPoint(0.1, Fidelity(90.0, 0.01)),)
    groups = tuple(GroupSensitivity(str(index), 8, points) for index in range(20))
    drawing = ET.fromstring(svg.sensitivity_curves(groups))
    styles = [curve.get("style") for curve in drawing.iter(f"{SVG}polyline")]
    assert len(set(styles)) == len(groups)
    assert "KL divergence from the original, in nats" in {text.text for text in drawing.iter(f"{SVG}text")}


def test_the_tree_puts_every_class_once_and_joins_neighbours() -> None:
    classes = compression().classes
    assert classes is not None
    order = svg._leaf_order(10, classes.merges)
    assert sorted(order) == list(range(10))
    assert abs(order.index(3) - order.index(5)) == 1
    drawing = ET.fromstring(svg.class_tree(classes.names, classes.merges))
    assert len(list(drawing.iter(f"{SVG}path"))) == len(classes.merges)


def test_a_forest_is_drawn_too() -> None:
    drawing = ET.fromstring(svg.class_tree(CLASSES[:4], (ClassMerge((0, 2), 0.5),)))
    assert {text.text for text in drawing.iter(f"{SVG}text")} == set(CLASSES[:4])


def test_too_many_classes_are_not_drawn() -> None:
    names = tuple(str(number) for number in range(1000))
    report = replace(compression(), classes=ClassStructure(names, (ClassMerge((0, 1), 0.1),)))
    assert "Tree of classes" not in report_html(report)


def test_sensitivity_curves_rise_where_the_divergence_does() -> None:
    points = tuple(SensitivityPoint(share, Fidelity(90.0, kl)) for share, kl in ((0.1, 0.001), (0.5, 0.1)))
    report = AnalysisReport(
        model=ModelFiles("a.onnx"),
        data={},
        metrics={},
        groups=(GroupSensitivity(HOSTILE, 8, points), GroupSensitivity("flat", 8, ())),
        skipped=(),
        timings_s={},
    )
    drawing = ET.fromstring(sensitivity_svg(report).encode())
    curve, empty = drawing.iter(f"{SVG}polyline")
    (x1, y1), (x2, y2) = (map(float, spot.split(",")) for spot in curve.get("points", "").split())
    assert x2 > x1 and y2 < y1
    assert empty.get("points") == ""
    assert curve.find(f"{SVG}title").text == HOSTILE
