"""Helpers of the analysis' tests: a model is right if any plan's result equals the masked original."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.check import verify
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import IntArray, PruningGraph
from tests.model_builder import Builder
from tests.strategies import random_plan


def exact(model: onnx.ModelProto, plans: int = 3) -> PruningGraph:
    """Analyse ``model`` and check several random plans by the oracle, one of them as small as can be."""
    graph = analyze_graph(model)
    for seed in range(plans):
        plan = random_plan(graph, seed, share=(1.0, 0.4, 0.6)[seed % 3])
        verify(graph, plan, rewrite(graph, plan), seed=seed)
    return graph


def units_at(graph: PruningGraph, tensor: str, axis: int = 1) -> IntArray:
    """Unit ids along an axis, all fixed where the graph has none."""
    ids = graph.axes[tensor][axis]
    return np.full(graph.shapes[tensor][axis], -1) if ids is None else ids


def reasons(graph: PruningGraph) -> str:
    """All reasons for what is skipped, in one text."""
    return "\n".join(item.reason for item in graph.skipped)


def start(channels: int = 6, *, opset: int = 17, size: int = 6, inputs: int = 3) -> tuple[Builder, str]:
    """A builder with an input and a Conv of that many channels."""
    b = Builder(opset=opset)
    return b, b.conv(b.input((1, inputs, size, size)), channels, 3)


def finish(b: Builder, x: str) -> onnx.ModelProto:
    """The model with a last Conv (4-d), MatMul otherwise, whose channels are the graph's output."""
    return b.model(b.conv(x, 3) if len(b.shapes[x]) == 4 else b.matmul(x, 3))
