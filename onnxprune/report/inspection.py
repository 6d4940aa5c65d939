"""What a model costs and what of it can be pruned, as a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.plan import keep_all
from onnxprune.graph.structure import FIXED, IntArray, PruningGraph, Reason
from onnxprune.io.load import LoadedModel, ModelSource, load
from onnxprune.profile.cost import CostModel, count
from onnxprune.profile.macs import uncounted
from onnxprune.report.evaluation import model_files
from onnxprune.report.schema import (
    Coverage,
    Figures,
    GroupInfo,
    InspectReport,
    LayerCost,
    Obstacle,
    SkippedGroup,
)


def inspect(
    model: ModelSource,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> InspectReport:
    """Analyse a model without running it; ``input_shapes`` as for `analyze_graph`.

    Raises ModelError for a model that is refused.
    """
    loaded = load(model)
    stated, cost, size = _format(loaded.model), count(loaded.model), file_bytes(loaded)
    graph = analyze_graph(loaded.model, input_shapes=input_shapes, in_place=loaded.owned)
    costs = CostModel.of(graph)
    return InspectReport(
        model=model_files(loaded),
        format=stated,
        cost=Figures(macs=cost.macs, params=cost.params, bytes=size),
        coverage=coverage(graph, costs),
        layers=_layers(graph, costs),
        groups=tuple(
            GroupInfo(
                name=group.name,
                channels=len(group.units),
                producers=group.producers,
                consumers=group.consumers,
                nodes=group.nodes,
            )
            for group in graph.groups
        ),
        skipped=tuple(SkippedGroup(item.name, item.reason, item.channels) for item in graph.skipped),
        obstacles=obstacles(graph, costs),
        warnings=uncounted_warning(graph),
    )


def uncounted_warning(graph: PruningGraph) -> tuple[str, ...]:
    """A warning where nodes cost multiply-accumulates that no count includes."""
    names = uncounted(graph.model, graph.shapes)
    if not names:
        return ()
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (f"the multiply-accumulates of {listed} are not counted",)


def file_bytes(loaded: LoadedModel) -> int:
    """Bytes of a model's files, or of its serialized form where it came from memory."""
    if loaded.files:
        return sum(file.stat().st_size for file in loaded.files)
    return loaded.model.ByteSize()


def coverage(graph: PruningGraph, costs: CostModel) -> Coverage:
    """Shares of the cost that would go with every unit of every group, were they all to go."""
    everything, bare = keep_all(graph).keep, np.zeros(graph.unit_count, np.bool_)
    macs, params = costs.macs(everything), costs.params(everything)
    return Coverage(
        macs=1.0 - costs.macs(bare) / macs if macs else 0.0,
        params=1.0 - costs.params(bare) / params if params else 0.0,
    )


def obstacles(graph: PruningGraph, costs: CostModel) -> tuple[Obstacle, ...]:
    """What keeps channels, whatever it is once for all its places; that which keeps most MACs first.

    Nodes that keep MACs without a reason read nothing that can go, such as products of inputs.
    """
    before = costs.by_layer(keep_all(graph).keep)
    after = costs.by_layer(np.zeros(graph.unit_count, np.bool_))
    places: dict[str, dict[str, None]] = {}
    macs, kept = Counter[str](), Counter[str]()
    for whole, rest in zip(before, after, strict=True):
        reasons = graph.reasons.get(whole.name, ())
        if not reasons and rest.macs:
            reasons = (Reason(whole.op, whole.name, "it reads no channels that can go"),)
        for reason in reasons:
            places.setdefault(reason.kind, {})[reason.place] = None
        for kind in {reason.kind for reason in reasons}:
            macs[kind] += whole.macs
            kept[kind] += rest.macs
    total = sum(layer.macs for layer in before) or 1
    found = [
        Obstacle(kind, tuple(names), macs[kind] / total, kept[kind] / total) for kind, names in places.items()
    ]
    return tuple(sorted(found, key=lambda item: (-item.macs_kept, -item.macs)))


def _layers(graph: PruningGraph, costs: CostModel) -> tuple[LayerCost, ...]:
    layers = {layer.name: layer for layer in graph.layers}
    listed = []
    for cost in costs.by_layer(keep_all(graph).keep):
        layer = layers.get(cost.name)
        in_units = layer.in_units if layer is not None else np.empty(0, np.int64)
        out_units = layer.out_units if layer is not None else np.empty(0, np.int64)
        listed.append(
            LayerCost(
                name=cost.name,
                op=cost.op,
                macs=cost.macs,
                params=cost.params,
                channels_in=len(in_units),
                channels_out=len(out_units),
                prunable_in=_prunable(in_units),
                prunable_out=_prunable(out_units),
            )
        )
    return tuple(listed)


def _prunable(units: IntArray) -> int:
    return int(np.count_nonzero(units != FIXED))


def _format(model: onnx.ModelProto) -> dict[str, Any]:
    initializers = {tensor.name for tensor in model.graph.initializer}
    return {
        "ir_version": model.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "producer": " ".join(part for part in (model.producer_name, model.producer_version) if part),
        "inputs": {
            value.name: _shape(value) for value in model.graph.input if value.name not in initializers
        },
        "outputs": {value.name: _shape(value) for value in model.graph.output},
    }


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]
