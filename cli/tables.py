"""Reports as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from onnxprune.report.schema import (
    AnalysisReport,
    BenchmarkReport,
    ClassStructure,
    CompressionReport,
    EvaluationReport,
    Figures,
    InspectReport,
    Obstacle,
    SkippedGroup,
)

_LISTED = 12
"""Skipped groups, or edges between classes, that a summary lists before it counts the rest."""

_SHARES = (
    "touched: MACs of the nodes that read or give such channels; kept: what of them "
    "stays if every channel goes that can. Shares overlap."
)


def compression(report: CompressionReport, *, plan_only: bool) -> list[RenderableType]:
    """What came out of a compression: figures before and after, groups, what was skipped."""
    shown: list[RenderableType] = [_figures(report.before, report.after), _groups(report)]
    if report.skipped:
        shown.append(_skipped(report.skipped))
    if plan_only:
        shown.append(Text("dry run: nothing was written"))
    elif report.model.output is not None:
        shown.append(Text(f"wrote {report.model.output}"))
    return shown


def inspection(report: InspectReport) -> list[RenderableType]:
    """A model's cost by layer, its groups, and what stands in the way of more."""
    layers = _table("layer", "op", "MACs", "parameters", "channels in", "out", "prunable in", "out")
    for layer in report.layers:
        layers.add_row(
            layer.name,
            layer.op,
            _count(layer.macs),
            _count(layer.params),
            *(str(n) for n in (layer.channels_in, layer.channels_out, layer.prunable_in, layer.prunable_out)),
        )
    groups = _table("group", "channels", "made by", "read by")
    for group in report.groups:
        groups.add_row(group.name, str(group.channels), _names(group.producers), _names(group.consumers))
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in _opsets(report.format))
    summary = (
        f"{report.model.input or 'model'}: {_count(report.cost.macs)} MACs, "
        f"{_count(report.cost.params)} parameters, {_bytes(report.cost.bytes)}; opset {opsets}"
    )
    coverage = (
        f"channels that can be pruned carry {_percent(report.coverage.macs)} of the MACs "
        f"and {_percent(report.coverage.params)} of the parameters"
    )
    shown: list[RenderableType] = [layers, groups, Text(summary), Text(coverage)]
    if report.obstacles:
        shown += [_obstacles(report.obstacles), Text(_SHARES)]
    return shown


def analysis(report: AnalysisReport) -> list[RenderableType]:
    """Each group's divergence from the original, one column for each share removed."""
    shares = sorted({point.removed for group in report.groups for point in group.points})
    table = _table("group", "channels", *(f"-{_percent(share, 0)}" for share in shares))
    table.caption = "mean KL divergence of the output, this group alone losing that share of its channels"
    for group in report.groups:
        points = {point.removed: f"{point.fidelity.kl:.4f}" for point in group.points}
        table.add_row(group.name, str(group.channels), *(points.get(share, "") for share in shares))
    shown: list[RenderableType] = [table]
    if report.skipped:
        shown.append(_skipped(report.skipped))
    if report.classes is not None and report.classes.merges:
        shown += [_class_tree(report.classes), _class_graph(report.classes)]
    return shown


def evaluation(report: EvaluationReport) -> list[RenderableType]:
    """One model's accuracy, beside another's where there is one."""
    if report.against is None:
        table = _table("metric", "value")
        for name, value in report.metrics.items():
            table.add_row(name, _metric(value))
    else:
        table = _table(
            "metric", report.against.model.input or "other", report.model.input or "model", "change"
        )
        for name, value in report.metrics.items():
            other = report.against.metrics[name]
            table.add_row(name, _metric(other), _metric(value), _points(value - other))
        table.add_row("agreement", "", _metric(report.against.fidelity.agreement), "")
        table.add_row("KL divergence", "", f"{report.against.fidelity.kl:.4f}", "")
    return [table, Text(f"{report.samples} samples")]


def benchmarks(report: BenchmarkReport) -> list[RenderableType]:
    """Speed and size of one or two models."""
    names = [item.model.input or "model" for item in report.models]
    table = _table("", *names, *(["ratio"] if report.ratio else []))
    rows = (
        ("median latency", "latency_median", [f"{m.latency.median_ms:.3f} ms" for m in report.models]),
        ("90 % of runs within", "latency_p90", [f"{m.latency.p90_ms:.3f} ms" for m in report.models]),
        ("throughput", "throughput", [f"{m.throughput:.1f}/s" for m in report.models]),
        (
            "memory",
            "memory_bytes",
            ["-" if m.memory_bytes is None else _bytes(m.memory_bytes) for m in report.models],
        ),
        ("file", "bytes", [_bytes(m.bytes) for m in report.models]),
    )
    for label, key, values in rows:
        ratio = [f"{report.ratio[key]:.2f}" if key in report.ratio else "-"] if report.ratio else []
        table.add_row(label, *values, *ratio)
    threads = "all" if report.threads is None else str(report.threads)
    return [table, Text(f"provider {report.provider}, threads {threads}, batch {report.batch}")]


def _figures(before: Figures, after: Figures) -> Table:
    table = _table("", "before", "after", "change")
    for label, old, new, show in (
        ("MACs", before.macs, after.macs, _count),
        ("parameters", before.params, after.params, _count),
        ("file", before.bytes, after.bytes, _bytes),
    ):
        table.add_row(label, show(old), show(new), _change(old, new))
    if before.latency_ms is not None and after.latency_ms is not None:
        table.add_row(
            "latency",
            f"{before.latency_ms:.3f} ms",
            f"{after.latency_ms:.3f} ms",
            _change(before.latency_ms, after.latency_ms),
        )
    for name, value in before.metrics.items():
        if name in after.metrics:
            then = after.metrics[name]
            table.add_row(name, _metric(value), _metric(then), _points(then - value))
    if after.fidelity is not None:
        table.add_row("agreement", "", _metric(after.fidelity.agreement), "")
        table.add_row("KL divergence", "", f"{after.fidelity.kl:.4f}", "")
    return table


def _groups(report: CompressionReport) -> Table:
    table = _table("group", "before", "after", "kept")
    for group in report.groups:
        kept = group.channels_after / max(group.channels_before, 1)
        table.add_row(group.name, str(group.channels_before), str(group.channels_after), _percent(kept, 0))
    return table


def _skipped(skipped: Iterable[SkippedGroup]) -> Table:
    listed = tuple(skipped)
    table = _table("left alone", "channels", "because")
    for item in listed[:_LISTED]:
        table.add_row(item.name, "" if item.channels is None else str(item.channels), item.reason)
    if len(listed) > _LISTED:
        table.caption = f"and {len(listed) - _LISTED} more: see --json"
    return table


def _obstacles(obstacles: tuple[Obstacle, ...]) -> Table:
    table = _table("what keeps channels, and where", "MACs kept", "touched")
    for item in obstacles[:_LISTED]:
        more = f" and {len(item.places) - 1} more" if len(item.places) > 1 else ""
        text = Text(f"{item.reason}\n  {item.places[0]}{more}")
        table.add_row(text, _percent(item.macs_kept), _percent(item.macs))
    if len(obstacles) > _LISTED:
        table.caption = f"and {len(obstacles) - _LISTED} more: see --json"
    return table


def _class_tree(classes: ClassStructure) -> Tree:
    """The classes as the tree's leaves, each branch under its height."""
    count = len(classes.names)
    joined = {child for merge in classes.merges for child in merge.children}
    tree = Tree("tree of classes: at 0 they respond alike, at 1 they share nothing")

    def grow(node: int, into: Tree) -> None:
        if node < count:
            into.add(Text(classes.names[node]))
            return
        merge = classes.merges[node - count]
        branch = into.add(f"{merge.height:.2f}")
        for child in merge.children:
            grow(child, branch)

    for node in range(count + len(classes.merges)):
        if node not in joined:
            grow(node, tree)
    return tree


def _class_graph(classes: ClassStructure) -> Table:
    table = _table("graph of classes", "and", "correlation")
    for edge in classes.edges[:_LISTED]:
        first, second = classes.names[edge.first], classes.names[edge.second]
        table.add_row(Text(first), Text(second), f"{edge.correlation:+.2f}")
    if len(classes.edges) > _LISTED:
        table.caption = f"and {len(classes.edges) - _LISTED} weaker: see --json"
    elif not classes.edges:
        table.caption = "no two classes correlate beyond the threshold"
    return table


def _table(first: str, *others: str) -> Table:
    """A plain table, all columns but the first to the right where they hold numbers."""
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    texts = {"and", "op", "because", "made by", "read by"}
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="left" if name in texts else "right", overflow="fold")
    return table


def _opsets(form: Mapping[str, object]) -> list[tuple[str, int]]:
    opsets = form.get("opsets", {})
    return sorted(opsets.items()) if isinstance(opsets, Mapping) else []


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"


def _bytes(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f} B"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _metric(percent: float) -> str:
    return f"{percent:.2f} %"


def _points(difference: float) -> str:
    return f"{difference:+.2f} points"


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before else ""
