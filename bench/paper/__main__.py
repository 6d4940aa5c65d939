"""Run rows of the paper's table, or print it.

    python -m bench.paper DATA --out FOLDER --row vgg16 [--row ...] [--device auto] [--epochs N]
        [--finetune-epochs N] [--seeds N] [--calibration N] [--train FILE --test FILE] [--resnet56 FILE.onnx]
    python -m bench.paper --out FOLDER --table

DATA holds ``cifar10/train.parquet`` and ``cifar10/test.parquet``, and ``cifar100/`` where those rows are run.
Every stage leaves its product in FOLDER, and a run goes on from what is there: training from its last epoch,
fine-tuning from its last look. A row with other settings than those in FOLDER is refused.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from onnx import TensorProto, helper

from bench.paper.rows import ROWS, Row
from bench.paper.stages import Job, run
from bench.paper.table import table
from onnxprune.profile.providers import Provider, algebra_device
from onnxprune.profile.session import open_session


def main(arguments: list[str] | None = None, rows: tuple[Row, ...] = ROWS) -> None:
    """Run the rows that are asked for, then print the table of all."""
    parser = argparse.ArgumentParser(
        "python -m bench.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the products")
    parser.add_argument("--row", action="append", choices=[row.name for row in rows], default=[])
    parser.add_argument("--table", action="store_true", help="print the table of what is in the folder")
    parser.add_argument("--train", type=Path, help="labelled training images in place of DATA's")
    parser.add_argument("--test", type=Path, help="labelled test images in place of DATA's")
    parser.add_argument("--resnet56", type=Path, metavar="FILE.onnx", help="the trained ResNet-56")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--epochs", type=int, help="of training the baseline")
    parser.add_argument("--finetune-epochs", type=float)
    parser.add_argument("--calibration", type=int, default=1000, help="images that selection sees")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.row and not given.data and not (given.train and given.test):
        parser.error("say where the images are: DATA, or --train and --test")
    if not given.row and not given.table:
        parser.error("nothing to do: give --row or --table")
    for row in rows:
        if row.name in given.row:
            job = _job(row, given)
            for seed in range(given.seeds):
                place = given.out / row.name / f"seed-{seed}"
                run(row, job, seed, place, _Log(f"{row.name}, seed {seed}", place))
    print(table(given.out, rows), end="")


def _provider(choice: str) -> Provider:
    """What onnxruntime really starts on, before an hour of training goes by."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return open_session(model, provider=choice).provider


def _job(row: Row, given: argparse.Namespace) -> Job:
    device = algebra_device(_provider(given.device))
    folder = (given.data or Path()) / row.data
    job = Job(
        given.train or folder / "train.parquet",
        given.test or folder / "test.parquet",
        device,
        calibration=given.calibration,
        baseline=given.resnet56,
        threads=given.threads,
    )
    if given.epochs:
        job = replace(job, recipe=replace(job.recipe, epochs=given.epochs))
    if given.finetune_epochs:
        job = replace(job, tuning=replace(job.tuning, epochs=given.finetune_epochs))
    if given.threads:
        torch.set_num_threads(given.threads)
    return job


class _Log:
    """Lines for the terminal, and for ``log.txt`` beside the products."""

    def __init__(self, title: str, folder: Path) -> None:
        self.title, self.file = title, folder / "log.txt"

    def __call__(self, line: str) -> None:
        print(f"{self.title}: {line}", flush=True)
        with self.file.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


if __name__ == "__main__":
    main()
