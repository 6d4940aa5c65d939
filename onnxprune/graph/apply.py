"""One call from a model and a plan to the smaller model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.plan import Plan
from onnxprune.graph.rewrite import rewrite
from onnxprune.io.load import load


def apply(
    plan: Plan | str,
    model: str | Path | bytes | onnx.ModelProto,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> onnx.ModelProto:
    """``model`` without the units that ``plan`` removes; the model itself is not changed.

    ``plan`` is a value or the JSON text of one; ``input_shapes`` must be those of the analysis that
    the plan came from. Raises what loading, analysis and `rewrite` raise, PlanError above all.
    """
    loaded = load(model)
    graph = analyze_graph(loaded.model, input_shapes=input_shapes, in_place=loaded.owned)
    if isinstance(plan, str):
        plan = Plan.from_json(graph, plan, model_sha256=loaded.sha256)
    return rewrite(graph, plan)
