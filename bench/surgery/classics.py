"""The weightless classics of the onnx package, given random weights: half of the MACs go, exactly.

The package's light models make their weights of one constant. Here every such tensor gets random values
(scaled by its fan-in, variances positive), and the last Softmax is cut off, which would hide errors. Each
is pruned to the share of its MACs in a process of its own and compared with the masked original.
Error: of the pruned model to the masked original, relative. Effect: what the removal itself does to the
output.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bench.surgery.common import LEAST_EFFECT, Say, check, peak_bytes
from onnxprune.graph.analysis import analyze_graph
from onnxprune.pipeline import select
from onnxprune.profile.cost import CostModel
from onnxprune.report.inspection import coverage

LEAST_COVERED = 0.95
"""Share of the MACs that must be prunable."""


def files() -> list[Path]:
    """The package's weightless models."""
    return sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def with_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """``model`` with random initializers for all constants of a size, without a last Softmax."""
    generator = np.random.default_rng(seed)
    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    variances = {node.input[4] for node in graph.node if node.op_type == "BatchNormalization"}
    nodes, shapes = [], {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if floats(tensor)}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            shapes[node.output[0]] = tuple(int(size) for size in numpy_helper.to_array(values[node.input[0]]))
        elif not (node.op_type == "Softmax" and node.output[0] == graph.output[0].name):
            nodes.append(node)
        else:
            graph.output[0].name = node.input[0]
    stated = {value.name for value in graph.input}
    kept = [tensor for tensor in graph.initializer if tensor.name not in shapes]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    for name, shape in shapes.items():
        if name in variances:
            value = generator.uniform(0.5, 2.0, shape)
        else:
            fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
            value = generator.standard_normal(shape) * np.sqrt(2.0 / fan_in)
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        if name not in stated:  # as this version of the format asks for
            graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return model


def floats(tensor: onnx.TensorProto) -> bool:
    """Whether it is a weight."""
    return bool(tensor.data_type == onnx.TensorProto.FLOAT)


def row(task: tuple[Path, float]) -> tuple[str, bool]:
    """A line of the table, and whether the model failed."""
    path, share = task
    name = path.stem.removeprefix("light_")
    model = with_weights(onnx.load(path))
    start = time.perf_counter()
    graph = analyze_graph(model)
    seconds = time.perf_counter() - start
    costs = CostModel.of(graph)
    covered = coverage(graph, costs).macs
    try:
        plan = select(graph, None, share, method="l2")
        found = check(graph, plan, model)
    except Exception as problem:  # any of them is a failure of the row, and the others go on
        return f"| {name} | {100 * covered:.1f} % | {type(problem).__name__}: {problem} | | | | | | |", True
    wrong = found.wrong or ("the removal changes nothing" if found.effect < LEAST_EFFECT else "")
    if covered < LEAST_COVERED:
        wrong = wrong or "too little can be pruned"
    before, after = costs.macs(np.ones_like(plan.keep)), costs.macs(plan.keep)
    return (
        f"| {name} | {100 * covered:.1f} % | {wrong or 'exact'} | {found.error:.1e} "
        f"| {found.effect:.1e} | {before / 1e6:,.0f} M | {100 * after / before:.1f} % | {seconds:.1f} s "
        f"| {peak_bytes() / 2**30:.1f} GiB |"
    ), bool(wrong)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--macs", type=float, default=0.5, help="share of the MACs [default: 0.5]")
    parser.add_argument("--only", default="", help="models whose name holds this")


def run(options: argparse.Namespace, say: Say) -> int:
    say("| model | prunable MACs | result | error | effect | MACs | after | analysis | peak memory |")
    say("|---|---|---|---|---|---|---|---|---|")
    failures = 0
    for path in files():
        if options.only in path.stem:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                line, failed = pool.apply(row, ((path, options.macs),))
            say(line)
            failures += failed
    return failures
