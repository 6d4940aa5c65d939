"""What the proofs share: running a model, pruning one to a share of its MACs, and checking the result."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from onnxprune.graph.check import TOLERANCE, verify
from onnxprune.graph.plan import Plan
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph

Array = npt.NDArray[Any]
LEAST_EFFECT = 1e-3
"""Where removing channels changes the output by less, a network proves nothing."""

Say = Callable[[str], None]
"""Prints one line of the proof's table, and records it."""


def session(model: onnx.ModelProto | str) -> ort.InferenceSession:
    """A session on one CPU thread that computes node by node, as the file says."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, str) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Checked:
    """What a check found: why the result is wrong ("" where it is right), and two relative differences.

    ``error`` is that of the pruned model to the masked original, ``effect`` that of the masked original
    to the original: how much there was to get wrong.
    """

    wrong: str
    error: float
    effect: float


def check(graph: PruningGraph, plan: Plan, original: onnx.ModelProto, *, seed: int = 0) -> Checked:
    """Prune and check.

    The result must pass the full check, load in onnxruntime, equal the masked original to 1e-5, keep
    inputs, outputs and versions, and have fewer bytes where anything went.
    """
    pruned = rewrite(graph, plan)
    onnx.checker.check_model(pruned, full_check=True)
    error = verify(graph, plan, pruned, tolerance=float("inf"), seed=seed)
    effect = verify(graph, plan, graph.model, tolerance=float("inf"), seed=seed)
    weights = {tensor.name for tensor in original.graph.initializer}
    wrong = ""
    if not error <= TOLERANCE:
        wrong = f"relative error {error:.1e}"
    elif list(pruned.graph.input) != [v for v in original.graph.input if v.name not in weights]:
        wrong = "other inputs"
    elif list(pruned.graph.output) != list(original.graph.output):
        wrong = "other outputs"
    elif list(pruned.opset_import) != list(original.opset_import):
        wrong = "another opset"
    elif pruned.ir_version != max(original.ir_version, 4):
        wrong = "another IR version"
    elif not plan.keep.all() and weight_bytes(pruned) >= weight_bytes(graph.model):
        wrong = "no fewer bytes"
    return Checked(wrong, error, effect)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers."""
    width = onnx.helper.tensor_dtype_to_np_dtype
    return sum(
        int(np.prod(tensor.dims)) * width(tensor.data_type).itemsize for tensor in model.graph.initializer
    )


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tally(counts: Mapping[str, int], columns: Sequence[str], say: Say) -> None:
    """A table of names and counts, largest first."""
    say(f"| {columns[0]} | {columns[1]} |")
    say("|---|---|")
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        say(f"| {name} | {count} |")
