"""``onnxprune analyze``: how much each group can lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.io.text import save_text

from .compress import DATA, NODES
from .files import check_outputs
from .options import CONFIG, PREPROCESSING, REPORTING, RUNTIME, collect_config, command, option
from .output import Output


@command("analyze")
@click.argument("model", metavar="MODEL.onnx", required=False)
@DATA
@PREPROCESSING
@NODES
@RUNTIME
@CONFIG
@option("Output", "--plot", "plot_path", metavar="FILE", help="Draw the sensitivity curves as SVG.")
@REPORTING
def analyze(
    config_path: str | None, json_path: str | None, plot_path: str | None, quiet: bool, **flags: Any
) -> None:
    """Show how much each group of channels of MODEL.onnx can lose before the output changes."""
    config = collect_config(config_path, flags)
    output = Output(json_path=json_path, quiet=quiet)
    outputs = {"--plot": plot_path, "--json": json_path}
    check_outputs(outputs, (config.model,), (config.data, config.eval_data, config_path))

    from onnxprune import pipeline

    from . import tables

    with output.progress() as progress:
        report = pipeline.analyze(config, progress=progress)
    output.report(report)
    if plot_path is not None:
        from onnxprune.report.plot import sensitivity_svg

        save_text(Path(plot_path), sensitivity_svg(report), "--plot")
    output.warn(report.warnings)
    output.show(*tables.analysis(report))
