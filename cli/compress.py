"""``onnxprune compress``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.config import DATA_TERMS, MAX_GROUP_RATIO, METHODS, RECOVERIES
from onnxprune.io.text import save_text

from .files import check_model_output, check_outputs
from .options import (
    CONFIG,
    DATA_HELP,
    PREPROCESSING,
    REPORTING,
    RUNTIME,
    SPLIT_HELP,
    collect_config,
    command,
    default_of,
    grouped,
    option,
)
from .output import Output

BUDGETS = grouped(
    option("Budgets", "--macs", metavar="B", help="At most these multiply-accumulates: 50%, 0.5, 12M."),
    option("Budgets", "--params", metavar="B", help="At most these parameters: 40%, 300K."),
    option("Budgets", "--size", metavar="B", help="At most this file size: 60%, 5MB."),
    option("Budgets", "--latency", metavar="B", help="At most this latency, measured here: 70%, 4ms."),
    option(
        "Budgets",
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="Lose at most this much top-1. Alone: remove as much as that allows.",
    ),
)

METHOD = grouped(
    option(
        "Method",
        "--method",
        type=click.Choice(METHODS),
        metavar="NAME",
        help=f"How channels are chosen: {', '.join(METHODS)}. {default_of('method')}",
    ),
    option(
        "Method",
        "--data-term",
        type=click.Choice(DATA_TERMS),
        metavar="NAME",
        help=f"What the lasso fits: {', '.join(DATA_TERMS)}. {default_of('data_term')}",
    ),
    option(
        "Method",
        "--depth-weight",
        metavar="X",
        help=f"Errors in the last layer count X times those in the first. {default_of('depth_weight')}",
    ),
    option(
        "Method",
        "--recover",
        type=click.Choice(RECOVERIES),
        metavar="NAME",
        help=f"How accuracy is given back: {', '.join(RECOVERIES)}. {default_of('recover')}",
    ),
    option(
        "Method",
        "--epochs",
        type=float,
        metavar="N",
        help="Passes over the data in fine-tuning. [default: 10, or what the time limit allows]",
    ),
    option("Method", "--time-limit", metavar="T", help="Fine-tune for at most this long: 90s, 10m, 1h."),
    option("Method", "--lr", metavar="RATE", help=f"Peak learning rate of fine-tuning. {default_of('lr')}"),
    option("Method", "--checkpoint", metavar="DIR", help="Save fine-tuning here, or go on from here."),
    option("Method", "--seed", type=int, metavar="N", help=f"Random seed. {default_of('seed')}"),
)

DATA = grouped(
    option("Data", "--data", metavar="DATA", help=DATA_HELP),
    option(
        "Data",
        "--calibration",
        type=int,
        metavar="N",
        help=f"Calibration samples, class-balanced. {default_of('calibration')}",
    ),
    option("Data", "--eval-data", metavar="DATA", help="Measure accuracy on this. [default: DATA]"),
    option("Data", "--split", metavar="PART", help=SPLIT_HELP),
    option(
        "Data",
        "--eval-split",
        metavar="PART",
        help="As --split, for the evaluation data. [default: what calibration leaves]",
    ),
)

NODES = grouped(
    option("Choice of channels", "--keep", multiple=True, metavar="GLOB", help="Leave these nodes alone."),
    option("Choice of channels", "--only", multiple=True, metavar="GLOB", help="Prune these nodes only."),
)

LIMITS = grouped(
    option(
        "Choice of channels",
        "--round-to",
        type=int,
        metavar="N",
        help=f"Keep multiples of N channels. {default_of('round_to')}",
    ),
    option(
        "Choice of channels",
        "--max-group-ratio",
        type=float,
        metavar="SHARE",
        help="Remove at most this share of a group; 1 lets whole residual branches go. "
        f"[default: {MAX_GROUP_RATIO}]",
    ),
)

PLANS = grouped(
    option("Plan", "--dry-run", is_flag=True, help="Print the plan and write no model."),
    option("Plan", "--save-plan", metavar="FILE", help="Write the plan as JSON."),
    option("Plan", "--plan", metavar="FILE", help="Apply this saved plan instead of choosing one."),
    option("Plan", "--verify", is_flag=True, help="Check the pruned model against the masked original."),
)


@command("compress")
@click.argument("model", metavar="MODEL.onnx", required=False)
@BUDGETS
@DATA
@PREPROCESSING
@METHOD
@NODES
@LIMITS
@PLANS
@RUNTIME
@CONFIG
@option("Output", "-o", "--output", metavar="FILE", help="The smaller model. [default: MODEL.pruned.onnx]")
@option("Output", "--force", is_flag=True, help="Replace the output if it exists.")
@option("Output", "--report", "html_path", metavar="FILE", help="Write a report as one HTML page.")
@REPORTING
def compress(
    config_path: str | None, json_path: str | None, html_path: str | None, quiet: bool, **flags: Any
) -> None:
    """Remove channels from MODEL.onnx until every budget is met, and write a smaller model.

    The input file is never touched.
    """
    config = collect_config(config_path, flags, instead_of_data="plan")
    config.check_goal()
    target = config.target
    assert target is not None  # the command line names models by their paths
    check_outputs(
        {
            "-o": None if config.dry_run else target,
            "--json": json_path,
            "--report": html_path,
            "--save-plan": config.save_plan,
        },
        (config.model,),
        (config.data, config.eval_data, config.plan, config_path),
    )
    if not config.dry_run:
        check_model_output(target, config.model, force=config.force)
    output = Output(json_path=json_path, quiet=quiet)

    from onnxprune import pipeline

    from . import tables

    with output.progress() as progress:
        result = pipeline.compress(config, progress=progress)
    if not pipeline.is_main_process():
        return  # started with torchrun: the first process writes for all
    if config.save_plan is not None:
        result.save_plan(config.save_plan)
    report = result.report if config.dry_run else result.save(target, force=config.force)
    if html_path is not None:
        from onnxprune.report.html import report_html

        save_text(Path(html_path), report_html(report), "--report")
    output.report(report)
    output.warn(report.warnings)
    output.show(*tables.compression(report, plan_only=config.dry_run))
