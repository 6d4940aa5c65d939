"""A remark where a plan leaves channel counts that kernels don't like."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.plan import Plan, kept_indices
from onnxprune.graph.structure import PruningGraph
from onnxprune.profile.cost import CostModel

_LEAST_MACS = 10_000_000
"""Below, a run takes about a millisecond whatever its layers look like."""

_LEAST_SHARE = 0.1
"""Share of the pruned model's MACs that such layers must have to be worth a remark."""


def odd_channels_warning(graph: PruningGraph, plan: Plan) -> tuple[str, ...]:
    """One line where many convolutions lose the even channel count that they had, else none.

    Kernels work on blocks of 4 to 16 channels; what is left over, above all in a depthwise or narrow
    Conv, can cost more time than the removed channels save.
    """
    costs = CostModel.of(graph)
    everything = np.ones_like(plan.keep)
    macs = {cost.name: cost.macs for cost in costs.by_layer(plan.keep)}
    convolutions = [
        layer for layer in graph.layers if layer.op in ("Conv", "ConvTranspose") and macs[layer.name]
    ]
    odd = [
        layer
        for layer in convolutions
        if len(layer.out_units) % 2 == 0 and kept_indices(plan.keep, layer.out_units).sum() % 2
    ]
    share = sum(macs[layer.name] for layer in odd) / max(1, sum(macs.values()))
    if costs.macs(everything) < _LEAST_MACS or share < _LEAST_SHARE:
        return ()
    return (
        f"{len(odd)} of {len(convolutions)} Conv layers end with an odd number of channels "
        f"({100 * share:.0f} % of the MACs), which makes some kernels slower: --round-to 8 avoids it",
    )
