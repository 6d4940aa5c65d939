"""The table, from what the stages left: our rows beside the published ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.paper.rows import ROWS, Published, Row
from bench.paper.stages import STAGES

HEADER = (
    "| network, data | method | top-1 | change | parameters removed | FLOPs removed | run |",
    "|---|---|---|---|---|---|---|",
)
NOT_RUN = "not run"

Seeds = Sequence[dict[str, dict[str, Any]]]


def table(folder: Path, rows: Sequence[Row] = ROWS) -> str:
    """All rows as Markdown, from the results in ``folder``; a row without any says that it was not run."""
    lines = list(HEADER)
    for row in rows:
        name = f"{row.title}, {row.data.upper().replace('CIFAR', 'CIFAR-')}"
        lines += [_published(name, entry) for entry in row.published]
        lines.append(_own(name, finished(folder, row)))
    return "\n".join(lines) + "\n"


def finished(folder: Path, row: Row) -> Seeds:
    """The figures of every seed of a row whose last stage was run, by stage."""
    return [
        {stage: json.loads((place / f"{stage}.json").read_text(encoding="utf-8")) for stage in STAGES}
        for place in sorted((folder / row.name).glob("seed-*"))
        if all((place / f"{stage}.json").is_file() for stage in STAGES)
    ]


def _published(name: str, entry: Published) -> str:
    top1 = "" if entry.top1 is None else f"{entry.top1:.2f}"
    change = "" if entry.change is None else f"{entry.change:+.2f}"
    shares = ("" if value is None else f"{value:g} %" for value in (entry.params, entry.macs))
    return f"| {name} | {entry.method} | {top1} | {change} | {' | '.join(shares)} | published |"


def _own(name: str, seeds: Seeds) -> str:
    if not seeds:
        return f"| {name} | **onnxprune** | {NOT_RUN} | | | | |"
    base, pruned, tuned = ([float(seed[stage]["top1"]) for seed in seeds] for stage in STAGES)
    change = [after - before for before, after in zip(base, tuned, strict=True)]
    params, macs = (_removed(seeds, kind) for kind in ("params", "macs"))
    top1 = f"{mean(base):.2f} -> {mean(pruned):.2f} (closed form) -> {_spread(tuned)}"
    return (
        f"| {name} | **onnxprune** | {top1} | {mean(change):+.2f} "
        f"| {params:.1f} % | {macs:.1f} % | {_how(seeds)} |"
    )


def _removed(seeds: Seeds, kind: str) -> float:
    """The mean share that was removed, in percent."""
    pairs = [seed["pruned"][kind] for seed in seeds]
    return mean(100.0 * (1.0 - float(after) / float(before)) for before, after in pairs)


def _spread(values: list[float]) -> str:
    """The mean, and with several seeds the smallest and the largest."""
    several = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{mean(values):.2f}{several}"


def _how(seeds: Seeds) -> str:
    """Hardware, minutes a seed, seeds, training images and epochs."""
    where = sorted({seed[stage]["hardware"] for seed in seeds for stage in STAGES})
    minutes = mean(sum(seed[stage]["seconds"] for stage in STAGES) for seed in seeds) / 60.0
    settings = seeds[0]["tuned"]["settings"]
    trained = "" if settings["recipe"] is None else f"{settings['recipe']['epochs']} epochs, "
    numbers = ", ".join(str(seed["tuned"]["settings"]["seed"]) for seed in seeds)
    return (
        f"{' and '.join(where)}; {minutes:.1f} min a seed; seed {numbers}; "
        f"{seeds[0]['tuned']['images']:,} images, {trained}{settings['tuning']['epochs']:g} of fine-tuning"
    )
