"""Which channels to remove: every method under the same budget, recovery and data.

    python -m bench.selection MODEL --data TRAIN --eval-data TEST --macs 50% [--seeds 3] [--method NAME ...]
        [--depth-weight X] [preprocessing options of onnxprune compress]

One run of the library for each method and seed; prints top-1 and the KL divergence to the original on
TEST, mean and spread (largest minus smallest) over the seeds, which draw the calibration samples; each run by
itself goes to standard error, so that methods can be compared seed by seed. In rows with "labels
withheld" calibration sees no label: the original model's own predictions stand in.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from typing import Any

from onnxprune.config import CompressConfig
from onnxprune.evaluate.datasets import Dataset, load_dataset
from onnxprune.io.load import load
from onnxprune.pipeline import compress
from onnxprune.profile.session import open_session

WITHHELD = "labels withheld"
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("stlp-ib", {"method": "stlp-ib"}),
    ("sglp-ib", {"method": "sglp-ib"}),
    ("lasso-ib (one response)", {"method": "lasso-ib"}),
    (f"stlp-ib, {WITHHELD}", {"method": "stlp-ib"}),
    (f"sglp-ib, {WITHHELD}", {"method": "sglp-ib"}),
    ("stlp-ib, hsic", {"method": "stlp-ib", "data_term": "hsic"}),
    ("sglp-ib, hsic", {"method": "sglp-ib", "data_term": "hsic"}),
    ("lasso-ib, hsic (APIB)", {"method": "lasso-ib", "data_term": "hsic"}),
    ("obs (backward elimination)", {"method": "obs"}),
    ("random", {"method": "random"}),
    ("l1", {"method": "l1"}),
    ("l2", {"method": "l2"}),
    ("bn-scale", {"method": "bn-scale"}),
    ("fpgm", {"method": "fpgm"}),
    ("wanda (activation norm)", {"method": "wanda"}),
    ("taylor", {"method": "taylor"}),
    (f"taylor, {WITHHELD}", {"method": "taylor"}),
)


def chosen(part: str, name: str) -> bool:
    """Whether ``part`` stands for the method ``name``: it is its name, or no method's and held by it."""
    return part == name or (part in name and all(part != other for other, _ in METHODS))


def opened(config: CompressConfig) -> tuple[Dataset, Dataset | None]:
    """The data of a run and its evaluation data, read once for all runs."""
    spec = open_session(load(str(config.model)).model).input
    data = load_dataset(config.data, spec, preprocess=config.preprocess, split=config.split)
    if config.eval_data is None and config.eval_split is None:
        return data, None
    source = config.data if config.eval_data is None else config.eval_data
    judging = load_dataset(source, spec, preprocess=config.preprocess, split=config.eval_split)
    return data, judging.in_memory()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    for name in ("--data", "--split", "--eval-data", "--eval-split", "--macs", "--mean", "--std"):
        parser.add_argument(name)
    parser.add_argument("--scale", type=float)
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--depth-weight")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--method", action="append", help="only the method of this name, or those that hold it"
    )
    given = vars(parser.parse_args())
    seeds, wanted = range(given.pop("seeds")), given.pop("method")
    preprocess = {key: given.pop(key) for key in ("mean", "std", "scale")}
    plain = CompressConfig.from_options({**given, "preprocess": preprocess})
    data, judging = opened(plain)
    print("| method | top-1 | spread | KL | MACs |\n|---|---|---|---|---|")
    for name, options in METHODS:
        if wanted is not None and not any(chosen(part, name) for part in wanted):
            continue
        top1, kl, macs = [], [], []
        for seed in seeds:
            known = data.without_labels() if WITHHELD in name else data
            report = compress(
                replace(
                    plain, data=known, split=None, eval_data=judging, eval_split=None, seed=seed, **options
                )
            ).report
            assert report.after.fidelity is not None
            top1.append(report.after.metrics["top1"])
            kl.append(report.after.fidelity.kl)
            macs.append(100 * report.after.macs / report.before.macs)
            print(f"{name}, seed {seed}: {top1[-1]:.2f}, KL {kl[-1]:.4f}", file=sys.stderr, flush=True)
        print(
            f"| {name} | {statistics.mean(top1):.2f} | {max(top1) - min(top1):.2f} "
            f"| {statistics.mean(kl):.4f} | {max(macs):.2f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
