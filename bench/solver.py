"""How long the structured lasso takes: ``python -m bench.solver [--large] [--penalty NAME] [--threads N]``.

Each row is a whole path from lambda_max down. Wall time is what a user waits; CPU time is what the
machine did, and the fairer figure where other work shares it. Memory is the process's peak so far.
``optimality`` is the worst distance to the subdifferential over the path, ``converged`` says whether every
level met its own tolerance.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from onnxprune.select.classes import ClassGraph, ClassTree, class_correlation
from onnxprune.select.graph_penalty import GraphPenalty
from onnxprune.select.hsic import hsic_statistics
from onnxprune.select.path import PathResult, solve_path
from onnxprune.select.penalties import L1, Penalty
from onnxprune.select.problem import ClasswiseQuadratic, QuadraticTerm, SharedQuadratic
from onnxprune.select.tree_penalty import TreePenalty


@dataclass(frozen=True)
class Case:
    """One row: the problems are solved one after the other."""

    name: str
    penalty: str
    problems: list[tuple[QuadraticTerm, Penalty]]
    levels: int
    target: float | None


def planted(units: int, classes: int, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated features X, targets Y, and the class means behind them: classes fall into clusters."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((samples, 20)) @ rng.standard_normal((20, units)) * 0.3
    x = rng.standard_normal((samples, units)) + factors + 0.5 * rng.standard_normal((samples, 1))
    x /= np.linalg.norm(x, axis=0)
    clusters = np.arange(classes) * max(2, classes // 8) // classes
    truth = np.zeros((units, classes))
    for k in rng.choice(units, units // 4, replace=False):
        chosen = np.isin(clusters, rng.choice(clusters.max() + 1, 1 + clusters.max() // 4))
        truth[k, chosen] = rng.standard_normal() + 0.1 * rng.standard_normal(chosen.sum())
    y = x @ truth
    y += y.std() * rng.standard_normal(y.shape)
    means = rng.standard_normal((clusters.max() + 1, 64))[clusters] + 0.7 * rng.standard_normal((classes, 64))
    return x, y / np.linalg.norm(y, axis=0), means


def penalties(means: np.ndarray) -> dict[str, Penalty]:
    r = class_correlation(means)
    return {
        "l1": L1(nonnegative=True),
        "tree": TreePenalty(ClassTree.from_correlation(r), nonnegative=True),
        "graph": GraphPenalty(ClassGraph.from_correlation(r), nonnegative=True),
        "graph, signed": GraphPenalty(ClassGraph.from_correlation(r)),
    }


def shared_cases(units: int, classes: int, target: float, names: list[str], device: str) -> Iterator[Case]:
    x, y, means = planted(units, classes, 2 * units, 0)
    term = SharedQuadratic.from_arrays(x.T @ x, x.T @ y, 0.5 * classes, device=device)
    for name in names:
        yield Case(f"{units} units x {classes} classes", name, [(term, penalties(means)[name])], 30, target)


def resnet_cases(device: str) -> Iterator[Case]:
    """27 groups of 16, 32, 64 units with a Gram matrix for each of 10 classes."""
    problems: dict[str, list[tuple[QuadraticTerm, Penalty]]] = {}
    for index in range(27):
        units = 16 * 2 ** (index // 9)
        grams, targets = [], []
        for c in range(10):
            x, y, means = planted(units, 10, 4 * units, 100 * index + c)
            grams.append(x.T @ x)
            targets.append(x.T @ y[:, 0])
        term = ClasswiseQuadratic.from_arrays(np.stack(grams), np.stack(targets, axis=1), 5.0, device=device)
        for name, penalty in penalties(means).items():
            problems.setdefault(name, []).append((term, penalty))
    for name, pairs in problems.items():
        yield Case("27 groups of 16-64 units x 10 classes, class-wise Q", name, pairs, 20, None)


def hsic_cases(device: str) -> Iterator[Case]:
    """A path on Q and R of real kernels: far more alike than random features."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 300)
    features = np.maximum(rng.standard_normal((300, 128)) + rng.standard_normal((10, 128))[labels], 0)
    term = hsic_statistics(features, labels, 10, device=device).classwise()
    for name, penalty in penalties(rng.standard_normal((10, 20))).items():
        yield Case("HSIC, 128 units x 10 classes", name, [(term, penalty)], 30, None)


def timed(action: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - processor


def report(case: Case) -> None:
    paths: list[PathResult] = []

    def run() -> None:
        for term, penalty in case.problems:
            paths.append(solve_path(term, penalty, count=case.levels, stop_when_full=False))

    wall, processor = timed(run)
    iterations = sum(int(path.iterations.sum()) for path in paths)
    worst = max(float(path.optimality.max()) for path in paths)
    entered = np.mean([path.active.any(axis=0).mean() for path in paths])
    converged = "all" if all(path.converged for path in paths) else "NOT ALL"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    target = "" if case.target is None else f"{case.target:.0f}"
    print(
        f"| {case.name} | {case.penalty} | {case.levels} | {wall:.2f} | {processor:.2f} | {target} "
        f"| {iterations} | {worst:.1e} | {converged} | {entered:.0%} | {peak:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="2,048 units x 1,000 classes as well")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--penalty", action="append", help="only these: l1, tree, graph, 'graph, signed'")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = "problem", "penalty", "levels", "wall s", "CPU s", "bar s", "steps", "optimality", "converged"
    print(f"| {' | '.join(head)} | entered | GiB |\n|{'---|' * 11}")
    names = ["l1", "tree", "graph", "graph, signed"]

    def cases() -> Iterator[Case]:
        yield from resnet_cases(options.device)
        yield from hsic_cases(options.device)
        yield from shared_cases(512, 100, 5.0, names, options.device)
        if options.large:
            yield from shared_cases(2048, 1000, 60.0, names, options.device)

    for case in cases():
        if options.only in case.name and (options.penalty is None or case.penalty in options.penalty):
            report(case)


if __name__ == "__main__":
    main()
