"""Budgets turned into goals of the allocation, and checked again on the model as it will be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnxprune.config import CompressConfig
from onnxprune.errors import BudgetError
from onnxprune.graph.plan import Plan, keep_all
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph
from onnxprune.io.save import model_bytes
from onnxprune.profile.cost import Cost, CostModel, count
from onnxprune.profile.latency import time_sessions
from onnxprune.profile.session import Session, open_session
from onnxprune.select.allocate import CostGoal
from onnxprune.select.budget import Budget

Allocate = Callable[[tuple[CostGoal, ...]], Plan]
"""From goals to a plan; raises BudgetError where they can't be met."""

SEARCH_STEPS = 6
"""Bisection steps of a search that has to build and measure models."""

_SIZE_STEPS = 8

_LATENCY_MARGIN = 0.98
"""Share of a latency budget that the search uses, since the finished model is measured once more."""

_RUNS = 50
_SECOND_RUNS = 200
"""Runs by which a latency is judged, and by which it is judged again before a result is refused."""


@dataclass(frozen=True)
class Original:
    """What budgets are relative to, and how the result is counted and stored (see `model_bytes`)."""

    cost: Cost
    bytes: int
    external_data: bool = False
    target: Path | None = None
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    """The data's, where the model leaves sizes free."""

    def count(self, model: onnx.ModelProto) -> Cost:
        """The cost of ``model`` at the size of the data."""
        return count(model, self.input_shapes)

    def stored(self, model: onnx.ModelProto) -> int:
        """Bytes of the files that ``model`` will take."""
        return model_bytes(model, self.target, external_data=self.external_data)


@dataclass(frozen=True)
class Latencies:
    """Median milliseconds of one run, of the original and of the result, measured in turns."""

    before: float
    after: float


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
    return _within_latency(graph, costs, latency, _Stopwatch.of(graph, config, original), goals, sized)


def require_budgets(
    graph: PruningGraph, plan: Plan, model: onnx.ModelProto, config: CompressConfig, original: Original
) -> Latencies | None:
    """Raise BudgetError where the finished ``model`` does not meet a budget; latencies, if they are one.

    Everything is counted on the model itself, whoever made the plan.
    """
    cost = original.count(model)
    found = {
        "macs": (original.cost.macs, cost.macs),
        "params": (original.cost.params, cost.params),
        "size": (original.bytes, original.stored(model)),
    }
    hint = "raise the budget" + (", or choose channels anew without --plan" if config.plan else "")
    latencies = None
    for budget in config.budgets:
        if budget.kind == "latency":
            latencies = _require_latency(_Stopwatch.of(graph, config, original), plan, model, budget, hint)
            continue
        before, after = found[budget.kind]
        if not budget.met(before, after):
            unit = {"macs": "multiply-accumulates", "params": "parameters"}.get(budget.kind, "bytes")
            raise BudgetError(f"{budget} is not met: {after:,} {unit} of {before:,} are left", hint=hint)
    return latencies


def _require_latency(
    watch: _Stopwatch, plan: Plan, model: onnx.ModelProto, budget: Budget, hint: str
) -> Latencies:
    latencies = watch.measure(plan, model, _RUNS)
    if not budget.met(latencies.before, latencies.after):
        latencies = watch.measure(plan, model, _SECOND_RUNS)
    if not budget.met(latencies.before, latencies.after):
        raise BudgetError(
            f"{budget} is not met: a run takes {latencies.after:.3f} ms, {latencies.before:.3f} ms before",
            hint=f"{hint}; measure on a machine that does nothing else",
        )
    return latencies


@dataclass(frozen=True)
class _Stopwatch:
    """Times models beside the original, at the size of the data."""

    original: Session
    config: CompressConfig
    shape: tuple[int, ...] | None

    @classmethod
    def of(cls, graph: PruningGraph, config: CompressConfig, original: Original) -> _Stopwatch:
        """For results of ``graph``."""
        shape = None if original.input_shapes is None else next(iter(original.input_shapes.values()))
        return cls(_opened(graph.model, config), config, shape)

    def measure(self, plan: Plan, model: onnx.ModelProto, runs: int) -> Latencies:
        """What ``model`` takes, which ``plan`` made: as long as the original where nothing was removed."""
        other = [] if plan.keep.all() else [_opened(model, self.config)]
        sessions = [self.original, *other]
        times = time_sessions(sessions, batch=self.original.batch or 1, runs=runs, shape=self.shape)
        return Latencies(times[0].median_ms, times[-1].median_ms)


def _opened(model: onnx.ModelProto, config: CompressConfig) -> Session:
    return open_session(model, provider=config.provider, threads=config.threads, exact=False)


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
    limit, width = size.limit(original.bytes), _bytes_per_parameter(graph)
    offset = original.stored(graph.model) - width * costs.params(keep_all(graph).keep)
    last: tuple[int, int] | None = None
    for _ in range(_SIZE_STEPS):
        plan = allocate((*goals, CostGoal(costs, "size", limit, scale=width, offset=offset)))
        params, real = costs.params(plan.keep), original.stored(rewrite(graph, plan))
        if real <= limit:
            return plan
        # Through the last two measurements: what rewriting adds, such as nodes, is in both.
        if last is not None and last[0] > params and last[1] > real:
            width = (last[1] - real) / (last[0] - params)
        offset, last = real - width * params + 1, (params, real)
    raise BudgetError(f"no plan was found within {size}", hint="raise the size a little")


def _within_latency(
    graph: PruningGraph,
    costs: CostModel,
    latency: Budget,
    watch: _Stopwatch,
    goals: tuple[CostGoal, ...],
    allocate: Allocate,
) -> Plan:
    """The largest model found whose median latency, measured here, is within the budget."""

    def met(plan: Plan) -> bool:
        model = graph.model if plan.keep.all() else rewrite(graph, plan)
        found = watch.measure(plan, model, _RUNS)
        spent = found.after if plan.keep.all() else found.after / _LATENCY_MARGIN
        return latency.met(found.before, spent)

    best: Plan | None = None
    low, high, share = 0.0, 1.0, 1.0
    for _ in range(SEARCH_STEPS + 1):
        try:
            plan = allocate((*goals, macs_goal(costs, share)))
        except BudgetError:
            if share == high:
                raise  # the other goals by themselves
            low = share
        else:
            if met(plan):
                best, low = plan, share
            else:
                high = share
        if low == high:
            break  # all that the other goals leave is fast enough
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
