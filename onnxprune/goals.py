"""Budgets turned into goals of the allocation, and checked again on the model as it will be written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.config import CompressConfig
from onnxprune.errors import BudgetError
from onnxprune.graph.plan import Plan, keep_all
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph
from onnxprune.io.save import model_bytes
from onnxprune.profile.cost import Cost, CostModel
from onnxprune.profile.latency import measure_latency
from onnxprune.select.allocate import CostGoal
from onnxprune.select.budget import Budget

Allocate = Callable[[tuple[CostGoal, ...]], Plan]
"""From goals to a plan; raises BudgetError where they can't be met."""

SEARCH_STEPS = 6
"""Bisection steps of a search that has to build and measure models."""

_SIZE_STEPS = 8


@dataclass(frozen=True)
class Original:
    """What budgets are relative to."""

    cost: Cost
    bytes: int


def plan_for(graph: PruningGraph, config: CompressConfig, original: Original, allocate: Allocate) -> Plan:
    """The plan that meets all budgets of ``config``, each counted on the rewritten model.

    Latency is met by bisection on MACs, measuring the models. Raises BudgetError.
    """
    costs = CostModel.of(graph)
    goals = tuple(
        CostGoal(costs, budget.kind, budget.limit(getattr(original.cost, budget.kind)))
        for budget in config.budgets
        if budget.kind in ("macs", "params")
    )  # fmt: skip
    size = config.budget("size")
    latency = config.budget("latency")

    def sized(wanted: tuple[CostGoal, ...]) -> Plan:
        return (
            allocate(wanted) if size is None else _within_size(graph, costs, size, original, wanted, allocate)
        )

    if latency is None:
        return sized(goals)
    return _within_latency(graph, costs, latency, config, goals, sized)


def macs_goal(costs: CostModel, share: float) -> CostGoal:
    """At most ``share`` of the graph's MACs."""
    return CostGoal(costs, "macs", share * costs.macs(np.ones(costs.unit_count, dtype=np.bool_)))


def _within_size(
    graph: PruningGraph,
    costs: CostModel,
    size: Budget,
    original: Original,
    goals: tuple[CostGoal, ...],
    allocate: Allocate,
) -> Plan:
    """Allocate by an estimate of the bytes, measured and corrected until the real file fits."""
    everything = keep_all(graph)
    limit = size.limit(original.bytes)
    width = _bytes_per_parameter(graph)
    offset = model_bytes(graph.model) - width * costs.params(everything.keep)
    for _ in range(_SIZE_STEPS):
        goal = CostGoal(costs, "size", limit, scale=width, offset=offset)
        plan = allocate((*goals, goal))
        real = model_bytes(rewrite(graph, plan))
        if real <= limit:
            return plan
        offset += real - goal.value(plan.keep) + 1
    raise BudgetError(f"no plan was found within {size}", hint="raise the size a little")


def _within_latency(
    graph: PruningGraph,
    costs: CostModel,
    latency: Budget,
    config: CompressConfig,
    goals: tuple[CostGoal, ...],
    allocate: Allocate,
) -> Plan:
    """The largest model found whose median latency, measured here, is within the budget."""

    def met(model: onnx.ModelProto) -> bool:
        pair = (graph.model, model)
        before, after = measure_latency(pair, provider=config.provider, threads=config.threads)
        return latency.met(before.median_ms, after.median_ms)

    best: Plan | None = None
    low, high = 0.0, 1.0
    share = 0.5
    for _ in range(SEARCH_STEPS):
        try:
            plan = allocate((*goals, macs_goal(costs, share)))
        except BudgetError:
            low = share
        else:
            if met(rewrite(graph, plan)):
                best, low = plan, share
            else:
                high = share
        share = 0.5 * (low + high)
    if best is None:
        raise BudgetError(f"no plan within {latency} was found", hint="raise the latency budget")
    return best


def _bytes_per_parameter(graph: PruningGraph) -> float:
    used = [tensor for tensor in graph.model.graph.initializer if tensor.data_type in _WIDTHS]
    count = sum(int(np.prod(tensor.dims)) for tensor in used)
    return sum(int(np.prod(tensor.dims)) * _WIDTHS[tensor.data_type] for tensor in used) / max(1, count)


_WIDTHS: dict[int, int] = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.DOUBLE: 8,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.BFLOAT16: 2,
}
