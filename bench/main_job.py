"""The main job on real trained networks: what it costs, what it keeps, how long it takes.

    python -m bench.main_job [--row NAME ...] [--out FOLDER] DATA [-- OPTIONS of onnxprune compress]

DATA holds ``models/`` (the ONNX files), ``cifar10/`` (train.parquet, test.parquet) and ``flickr1000/``
(photos with labels.csv). Every row is one run of the command line with closed-form recovery; the figures
are those of its JSON report, which counts the written file and evaluates it on data that calibration
never saw. Times are those of this machine, with whatever else it is doing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

IMAGENET = ("--mean", ".485,.456,.406", "--std", ".229,.224,.225")
RAW = ("--scale", "1")


@dataclass(frozen=True)
class Row:
    """One model, its data, and its budget."""

    model: str
    data: str
    preprocessing: tuple[str, ...]
    macs: str
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The model's name without its ending."""
        return self.model.removesuffix(".onnx")


RESNETS = (
    "resnet56_bn_opset17",
    "resnet56_bnfused_opset13",
    "resnet56_dynamo_opset20",
    "resnet20_bn_opset11",
    "resnet20_bn_opset17",
    "resnet20_bnfused_opset13",
    "resnet20_dynamo_opset20",
)
ROWS = (
    *(Row(f"{name}.onnx", "cifar10", IMAGENET, "50%") for name in RESNETS),
    Row("resnet8_mlperftiny.onnx", "cifar10", RAW, "50%"),
    Row("vgglike_cnn_pypi.onnx", "cifar10", RAW, "50%"),
    Row("efficientnet_lite0_imagenet.onnx", "flickr1000", ("--mean", ".5,.5,.5", "--std", ".5,.5,.5"), "70%"),
    Row(
        "resnet50_imagenet_opset13.onnx", "flickr1000", (*RAW, "--mean", "123.68,116.779,103.939"), "70%"
    ),
)  # fmt: skip


def run(row: Row, folder: Path, out: Path, extra: tuple[str, ...]) -> str:
    """Run one row and return it as a line of the table."""
    if row.data == "cifar10":
        data = ["--data", str(folder / "cifar10/train.parquet"), "--calibration", "1000"]
        data += ["--eval-data", str(folder / "cifar10/test.parquet")]
    else:
        photos = str(folder / "flickr1000")
        data = ["--data", photos, "--split", ":300", "--calibration", "300"]
        data += ["--eval-data", photos, "--eval-split", "300:"]
    report = out / f"{row.name}.json"
    start = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable, "-m", "onnxprune", "compress", str(folder / "models" / row.model), *data,
            *row.preprocessing, "--macs", row.macs, *row.options, *extra, "--verify", "--force", "--quiet",
            "--json", str(report), "-o", str(out / f"{row.name}.pruned.onnx"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode:
        return f"| {row.name} | {row.macs} | exit status {done.returncode}: {done.stderr.strip()} | | | | |"
    result = json.loads(report.read_text(encoding="utf-8"))
    before, after = result["before"], result["after"]
    top1 = before["metrics"]["top1"], after["metrics"]["top1"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return (
        f"| {row.name} | {row.macs} | {100 * after['macs'] / before['macs']:.2f} % "
        f"| {100 * after['params'] / before['params']:.1f} % | {top1[0]:.2f} -> {top1[1]:.2f} "
        f"| {seconds:.0f} s | {peak:.1f} GiB |"
    )


def main() -> None:
    """Print the table, a row as soon as it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--row", action="append", help="only rows whose name holds this")
    parser.add_argument("--macs", help="another budget for every row")
    parser.add_argument("--out", type=Path, help="keep models and reports here")
    parser.add_argument("extra", nargs="*", help="options passed on to onnxprune compress, after --")
    given = parser.parse_args()
    rows = [replace(row, macs=given.macs) for row in ROWS] if given.macs else ROWS
    chosen = [row for row in rows if given.row is None or any(part in row.name for part in given.row)]
    if not chosen:
        parser.error(f"no row is called so; there are {', '.join(row.name for row in ROWS)}")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
    print("| model | budget | MACs | parameters | top-1 | time | peak memory so far |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        for row in chosen:
            print(run(row, given.data, out, tuple(given.extra)), flush=True)


if __name__ == "__main__":
    main()
