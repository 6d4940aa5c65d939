"""Drawings as inline SVG: class trees, class graphs, curves.

Every text goes through ``escape``: names come from models that nobody vouches for. Colours are
classes of the page's style sheet, with plain fallbacks for drawings that stand alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from onnxprune.report.schema import ClassEdge, ClassMerge, GroupSensitivity

STYLE = """
.label { fill: #1f2733; font: 12px sans-serif }
.faint { fill: #5b6675; font: 11px sans-serif } .line { stroke: #2563a8; fill: none; stroke-width: 1.5 }
.negative { stroke: #b4472e } .axis { stroke: #b9c2ce; stroke-width: 1 } .dot { fill: #2563a8 }
""".strip()

_ROW = 20
_LONGEST_NAME = 44
_CURVE_DASHES = ("none", "7 3", "2 3", "9 3 2 3")
_CURVE_COLORS = ("#2563a8", "#b4472e", "#3f7d3a", "#7a4fa3", "#a37c1f", "#2a8c8c", "#8c2a5c", "#5b6675")


def class_tree(names: Sequence[str], merges: Sequence[ClassMerge]) -> str:
    """The tree of classes, lying: leaves on the right, the root on the left; height runs to the left."""
    count, width = len(names), 420.0
    order = _leaf_order(count, merges)
    y = {leaf: row * _ROW + _ROW / 2 for row, leaf in enumerate(order)}
    x = dict.fromkeys(range(count), width)
    parts = [_text(width + 8, y[leaf] + 4, _short(names[leaf])) for leaf in order]
    for index, merge in enumerate(merges):
        node = count + index
        x[node] = width * (1.0 - merge.height) * 0.97 + 4
        heights = [y[child] for child in merge.children]
        y[node] = sum(heights) / len(heights)
        lines = [f"M{x[child]:.1f} {y[child]:.1f}H{x[node]:.1f}" for child in merge.children]
        lines.append(f"M{x[node]:.1f} {min(heights):.1f}V{max(heights):.1f}")
        parts.append(f'<path class="line" d="{"".join(lines)}"/>')
    return _svg(width + 190, count * _ROW, parts, "tree of classes")


def class_graph(names: Sequence[str], edges: Sequence[ClassEdge]) -> str:
    """The graph of classes on a circle; the stronger the correlation, the wider the line."""
    radius, centre, middle = 150.0, 260.0, 180.0
    angles = [2 * math.pi * index / max(len(names), 1) - math.pi / 2 for index in range(len(names))]
    points = [(centre + radius * math.cos(angle), middle + radius * math.sin(angle)) for angle in angles]
    parts = []
    for edge in edges:
        (x1, y1), (x2, y2) = points[edge.first], points[edge.second]
        sign = "line negative" if edge.correlation < 0 else "line"
        about = escape(f"{names[edge.first]} / {names[edge.second]}: {edge.correlation:+.2f}")
        parts.append(
            f'<path class="{sign}" d="M{x1:.1f} {y1:.1f}Q{centre:.1f} {middle:.1f} {x2:.1f} {y2:.1f}" '
            f'style="stroke-width:{0.5 + 3 * abs(edge.correlation):.2f}"><title>{about}</title></path>'
        )
    for name, (x, y), angle in zip(names, points, angles, strict=True):
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        side = "start" if math.cos(angle) > 0.1 else "end" if math.cos(angle) < -0.1 else "middle"
        parts.append(
            _text(x + 12 * math.cos(angle), y + 14 * math.sin(angle) + 4, _short(name, 16), anchor=side)
        )
    return _svg(2 * centre, 2 * middle, parts, "graph of classes")


def sensitivity_curves(groups: Sequence[GroupSensitivity]) -> str:
    """Divergence over the share removed, one curve a group, on a logarithmic axis."""
    left, top, width, height = 80.0, 12.0, 520.0, 300.0
    values = [point.fidelity.kl for group in groups for point in group.points if point.fidelity.kl > 0]
    low = math.floor(math.log10(max(min(values, default=1e-3), 1e-8)))
    high = max(math.ceil(math.log10(max(values, default=1.0))), low + 1)

    def place(share: float, divergence: float) -> tuple[float, float]:
        level = (math.log10(max(divergence, 10.0**low)) - low) / (high - low)
        return left + width * share, top + height * (1.0 - level)

    parts = []
    for power in range(low, high + 1):
        _, y = place(0.0, 10.0**power)
        parts.append(f'<path class="axis" d="M{left} {y:.1f}H{left + width}"/>')
        parts.append(_text(left - 8, y + 4, f"1e{power}", kind="faint", anchor="end"))
    for step in range(0, 11, 2):
        x, _ = place(step / 10, 1.0)
        parts.append(_text(x, top + height + 18, f"{10 * step} %", kind="faint", anchor="middle"))
    for index, group in enumerate(groups):
        color = _CURVE_COLORS[index % len(_CURVE_COLORS)]
        dashes = _CURVE_DASHES[index // len(_CURVE_COLORS) % len(_CURVE_DASHES)]
        style = f'style="stroke:{color};stroke-dasharray:{dashes}"'
        spots = [place(point.removed, point.fidelity.kl) for point in group.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(
            f'<polyline class="line" points="{path}" {style}><title>{escape(group.name)}</title></polyline>'
        )
        row = top + 12 + index * 15
        parts.append(f'<path class="line" d="M{left + width + 14} {row - 4}h18" {style}/>')
        parts.append(_text(left + width + 36, row, _short(group.name, 36), kind="faint"))
    parts.append(_text(left, top + height + 38, "share of the group's channels removed", kind="faint"))
    middle = top + height / 2
    about = _text(0.0, 0.0, "KL divergence from the original, in nats", kind="faint", anchor="middle")
    parts.append(f'<g transform="translate(16 {middle}) rotate(-90)">{about}</g>')
    tall = max(top + height + 46, top + 20 + 15 * len(groups))
    return _svg(left + width + 300, tall, parts, "KL divergence of the output, by group")


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label={quoteattr(title)} '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, *, kind: str = "label", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(name: str, longest: int = _LONGEST_NAME) -> str:
    """``name`` without its middle where it is long: both ends of a node's name tell something."""
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _leaf_order(count: int, merges: Sequence[ClassMerge]) -> list[int]:
    """The classes in an order in which no two branches cross."""
    joined = {child for merge in merges for child in merge.children}
    roots = [node for node in range(count + len(merges)) if node not in joined]
    order: list[int] = []
    pending = list(reversed(roots))
    while pending:
        node = pending.pop()
        if node < count:
            order.append(node)
        else:
            pending.extend(reversed(merges[node - count].children))
    return order
