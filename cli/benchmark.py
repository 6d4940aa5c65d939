"""``onnxprune benchmark``: latency, throughput, memory and file size, side by side."""

from __future__ import annotations

from typing import Any

import click

from onnxprune.values import parse_shape

from .files import check_outputs
from .options import REPORTING, RUNTIME, command, option
from .output import Output


@command("benchmark")
@click.argument("model", metavar="MODEL.onnx")
@click.argument("other", metavar="[OTHER.onnx]", required=False)
@option(
    "Measurement",
    "--batch",
    type=int,
    metavar="N",
    help="Samples in a run. [default: 1, or what --shape starts with]",
)
@option(
    "Measurement",
    "--runs",
    type=int,
    default=50,
    metavar="N",
    show_default=True,
    help="Measured runs of each model.",
)
@option(
    "Measurement",
    "--shape",
    metavar="NxCxHxW",
    help="Input shape, where the model leaves more than the batch free.",
)
@RUNTIME
@REPORTING
def benchmark(
    model: str,
    other: str | None,
    batch: int | None,
    runs: int,
    shape: str | None,
    json_path: str | None,
    quiet: bool,
    **runtime: Any,
) -> None:
    """Measure MODEL.onnx, side by side with OTHER.onnx where that is given."""
    check_outputs({"--json": json_path}, (model, other))
    output = Output(json_path=json_path, quiet=quiet)

    sizes = None if shape is None else parse_shape(shape)

    from onnxprune import pipeline

    from . import tables

    models = [model] if other is None else [model, other]
    given = {name: value for name, value in runtime.items() if value is not None}
    with output.progress() as progress:
        report = pipeline.benchmark(models, batch=batch, runs=runs, shape=sizes, progress=progress, **given)
    output.report(report)
    output.warn(report.warnings)
    output.show(*tables.benchmarks(report))
