"""``onnxprune evaluate``: accuracy, and fidelity to another model."""

from __future__ import annotations

from typing import Any

import click

from .files import check_outputs
from .options import (
    CONFIG,
    DATA_HELP,
    PREPROCESSING,
    REPORTING,
    RUNTIME,
    SPLIT_HELP,
    collect_config,
    command,
    option,
)
from .output import Output


@command("evaluate")
@click.argument("model", metavar="MODEL.onnx", required=False)
@option("Data", "--data", metavar="DATA", help=DATA_HELP)
@option("Data", "--split", metavar="PART", help=SPLIT_HELP)
@option("Data", "--against", metavar="MODEL", help="Compare with this model, sample by sample.")
@PREPROCESSING
@RUNTIME
@CONFIG
@REPORTING
def evaluate(
    config_path: str | None, json_path: str | None, against: str | None, quiet: bool, **flags: Any
) -> None:
    """Measure the accuracy of MODEL.onnx, and how closely it follows another model."""
    config = collect_config(config_path, flags, data_hint="name some with --data")
    check_outputs({"--json": json_path}, (config.model, against), (config.data, config_path))
    output = Output(json_path=json_path, quiet=quiet)

    from onnxprune import pipeline

    from . import tables

    with output.progress() as progress:
        report = pipeline.evaluate(config, against=against, progress=progress)
    output.report(report)
    output.warn(report.warnings)
    output.show(*tables.evaluation(report))
