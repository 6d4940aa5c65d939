"""What the surgery costs: time and peak memory of each stage, in fresh processes.

* analysis of a residual network of 2,000 nodes: at most 5 s;
* rewriting a model with 100 MB of weights to half of its MACs: at most 3 s;
* peak memory of load, analyse, plan, rewrite, save: at most 2.0 times the weights. It is the growth of the
  process's resident memory over what it has after all imports. The weights lie in initializers, in a file
  of their own, or in Constant nodes.

Times are judged in CPU seconds: the work is on one thread, so that this is what a user waits on an idle
machine; wall seconds are shown beside them, with whatever else the machine is doing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import helper

from bench.surgery.common import Say, weight_bytes
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.rewrite import rewrite
from onnxprune.io.load import load
from onnxprune.io.save import save
from onnxprune.pipeline import select
from tests.model_builder import Builder

ANALYSIS_S, REWRITE_S, MEMORY = 5.0, 3.0, 2.0


def residual(blocks: int, channels: int, *, norm: bool = True) -> onnx.ModelProto:
    """A residual network: 7 nodes a block with normalisation, 4 without."""
    b = Builder()
    x = b.conv(b.input((1, 3, 8, 8)), channels, 3)
    for _ in range(blocks):
        y = b.conv(x, channels, 3)
        y = b.conv(b.relu(b.batch_norm(y) if norm else y), channels, 3)
        x = b.like("Add", x, b.batch_norm(y) if norm else y)
        x = b.relu(x) if norm else x
    return b.model(b.gemm(b.flatten(b.global_pool(x)), 10))


class Stages:
    """Seconds and memory of named stages of this process."""

    def __init__(self) -> None:
        self.base = _status("VmRSS")
        self.rows: list[tuple[str, float, float, int, int]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Record what the block takes."""
        start, worked = time.perf_counter(), time.process_time()
        yield
        wall, cpu = time.perf_counter() - start, time.process_time() - worked
        self.rows.append((name, cpu, wall, _status("VmRSS") - self.base, _status("VmHWM") - self.base))


def surgery(path: Path, share: float) -> list[tuple[str, float, float, int, int]]:
    """The stages of one surgery on a file, in this process."""
    stages = Stages()
    with stages("load"):
        loaded = load(path)
    with stages("analyse"):
        graph = analyze_graph(loaded.model, in_place=loaded.owned)
    with stages("plan"):
        plan = select(graph, None, share, method="random")
    with stages("rewrite"):
        pruned = rewrite(graph, plan)
    with stages("save"):
        save(pruned, path.with_suffix(".small.onnx"))
    return stages.rows


LAYOUTS = ("initializers", "external data", "Constant nodes")


def write(path: Path, megabytes: float, layout: str) -> int:
    """Write a model with about that many bytes of weights; the bytes."""
    channels = 512
    model = residual(max(1, round(megabytes * 1e6 / (2 * channels * channels * 36))), channels)
    size, graph = weight_bytes(model), model.graph
    if layout == "Constant nodes":
        held = [helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
        nodes = [*held, *graph.node]
        del graph.initializer[:], graph.node[:]
        graph.node.extend(nodes)
    onnx.save_model(model, path, save_as_external_data=layout == "external data", location="model.data")
    return size


def analysis(blocks: int) -> tuple[int, float, float]:
    """Nodes of a residual network, and the seconds of CPU and of wall time that its analysis takes."""
    model = residual(blocks, 16)
    start, worked = time.perf_counter(), time.process_time()
    analyze_graph(model)
    return len(model.graph.node), time.process_time() - worked, time.perf_counter() - start


def _status(key: str) -> int:
    """A figure of this process in bytes, as Linux states it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--megabytes", type=float, default=100.0, help="weights [default: 100]")
    parser.add_argument("--macs", type=float, default=0.5, help="share of the MACs [default: 0.5]")
    parser.add_argument("--blocks", type=int, default=286, help="of the analysed network [default: 286]")


def run(options: argparse.Namespace, say: Say) -> int:
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1) as pool:
        nodes, seconds, wall = pool.apply(analysis, (options.blocks,))
    say(f"analysis of {nodes:,} nodes: {seconds:.2f} s of CPU (at most {ANALYSIS_S:g}), {wall:.2f} s of wall")
    failures = int(seconds > ANALYSIS_S)
    for layout in LAYOUTS:
        failures += table(layout, options.megabytes, options.macs, say)
    return failures


def table(layout: str, megabytes: float, macs: float, say: Say) -> int:
    """The stages of one surgery in a fresh process; the number of bars that are missed."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "model.onnx")
        with spawn.Pool(1) as pool:
            size = pool.apply(write, (path, megabytes, layout))
        with spawn.Pool(1) as pool:
            rows = pool.apply(surgery, (path, macs))
    say("")
    say(f"{size / 1e6:.0f} MB of weights in {layout}, to {100 * macs:g} % of the MACs:")
    say("")
    say("| stage | CPU | wall | held after it, in weights | peak so far, in weights |")
    say("|---|---|---|---|---|")
    for name, cpu, wall, held, peak in rows:
        say(f"| {name} | {cpu:.2f} s | {wall:.2f} s | {held / size:.2f} | {peak / size:.2f} |")
    rewriting = next(cpu for name, cpu, *_ in rows if name == "rewrite")
    peak = max(peak for *_, peak in rows)
    say("")
    say(f"rewriting: {rewriting:.2f} s of CPU (at most {REWRITE_S:g} s)")
    say(f"peak memory: {peak / size:.2f} times the weights (at most {MEMORY:g})")
    return int(rewriting > REWRITE_S) + int(peak > MEMORY * size)
