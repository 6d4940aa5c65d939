"""``onnxprune inspect``: cost, groups, what can be pruned and why the rest can't."""

from __future__ import annotations

import click

from .files import check_outputs
from .options import REPORTING, command
from .output import Output


@command("inspect")
@click.argument("model", metavar="MODEL.onnx")
@REPORTING
def inspect(model: str, json_path: str | None, quiet: bool) -> None:
    """Show what MODEL.onnx costs, what of it can be pruned, and why the rest can't."""
    check_outputs({"--json": json_path}, (model,))
    output = Output(json_path=json_path, quiet=quiet)

    from onnxprune import pipeline

    from . import tables

    report = pipeline.inspect(model)
    output.report(report)
    output.warn(report.warnings)
    output.show(*tables.inspection(report))
