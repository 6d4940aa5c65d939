"""A compression's report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from onnxprune.report import svg
from onnxprune.report.schema import SCHEMA_VERSION, ClassStructure, CompressionReport, GroupChange
from onnxprune.version import package_version

_MOST_DRAWN_CLASSES = 48
"""Beyond this many, a drawing of the classes shows nothing that can be read."""


def report_html(report: CompressionReport) -> str:
    """The page: figures, accuracy, groups, what was left alone and why, classes, method, warnings."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxprune.report", ""),
        # Names and paths come from models and users: all of them are escaped.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = _count
    environment.filters["size"] = _size
    environment.filters["text"] = _text
    page = environment.get_template("compression.html.jinja")
    return page.render(
        report=report,
        version=package_version(),
        schema=SCHEMA_VERSION,
        figures=_figures(report),
        metrics=_metrics(report),
        bars=_bars(report.groups),
        # Drawings escape what they show themselves.
        drawings=_class_drawings(report.classes),
    )


def _figures(report: CompressionReport) -> list[dict[str, str]]:
    rows = [
        ("multiply-accumulates", report.before.macs, report.after.macs, _count),
        ("parameters", report.before.params, report.after.params, _count),
        ("file size", report.before.bytes, report.after.bytes, _size),
    ]
    figures = [
        {
            "name": name,
            "before": show(before),
            "after": show(after),
            "change": _change(before, after),
        }
        for name, before, after, show in rows
    ]
    if report.before.latency_ms is not None and report.after.latency_ms is not None:
        before_ms, after_ms = report.before.latency_ms, report.after.latency_ms
        figures.append(
            {
                "name": "latency",
                "before": f"{before_ms:.3f} ms",
                "after": f"{after_ms:.3f} ms",
                "change": _change(before_ms, after_ms),
            }
        )
    return figures


def _metrics(report: CompressionReport) -> list[dict[str, str]]:
    rows = []
    for name, before in report.before.metrics.items():
        if name in report.after.metrics:
            after = report.after.metrics[name]
            rows.append(
                {
                    "name": name,
                    "before": f"{before:.2f} %",
                    "after": f"{after:.2f} %",
                    "change": f"{after - before:+.2f} points",
                }
            )
    return rows


def _bars(groups: Sequence[GroupChange]) -> list[dict[str, str]]:
    """One row a group: the widths of its bars in percent of the most channels, and what they say."""
    widest = max((group.channels_before for group in groups), default=1)
    return [
        {
            "name": group.name,
            "nodes": ", ".join(group.nodes[:20]),
            "before": f"{100 * group.channels_before / widest:.2f}%",
            "after": f"{100 * group.channels_after / widest:.2f}%",
            "says": f"{group.channels_before} → {group.channels_after} "
            f"({group.channels_after / max(group.channels_before, 1):.0%})",
        }
        for group in groups
    ]


def _class_drawings(classes: ClassStructure | None) -> list[dict[str, Any]]:
    if classes is None or len(classes.names) > _MOST_DRAWN_CLASSES:
        return []
    drawings = []
    if classes.merges:
        about = "Classes that the layers' outputs treat alike join early: far to the right."
        tree = svg.class_tree(classes.names, classes.merges)
        drawings.append({"title": "Tree of classes", "about": about, "svg": tree})
    if classes.edges:
        about = "Lines join classes whose mean outputs correlate: blue positively, red negatively."
        graph = svg.class_graph(classes.names, classes.edges)
        drawings.append({"title": "Graph of classes", "about": about, "svg": graph})
    return [{**drawing, "svg": Markup(drawing["svg"])} for drawing in drawings]


def _text(value: object) -> str:
    """A value of the report as a reader would write it; what is not known is left out."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(_text, value))
    return str(value)


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before else ""


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"


def _size(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f} B"
