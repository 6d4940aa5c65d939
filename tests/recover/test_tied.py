"""Weights that several layers share stay one tensor, and what is noted beside a tensor stays with it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.plan import Plan, keep_all
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph
from onnxprune.io.save import model_bytes
from onnxprune.io.share import united
from onnxprune.pipeline import compress
from onnxprune.profile.cost import count
from onnxprune.progress import SilentProgress
from onnxprune.recover.closed_form import recover
from tests.model_builder import Builder
from tests.plain import samples


def shared() -> onnx.ModelProto:
    """Two wide layers, then three that read one weight and one bias, then two that share a bias only."""
    b = Builder(seed=3)
    x = b.relu(b.conv(b.input((1, 3, 8, 8), dynamic=True), 12, 3))
    x = b.relu(b.conv(x, 6, 3))
    weight, bias = b.weight(6, 6, 3, 3), b.weight(6)
    for _ in range(3):
        x = b.relu(b.shaped(b.node("Conv", [x, weight, bias], pads=[1] * 4), 1, 6, 8, 8))
    zeros = b.constant(np.zeros(6, np.float32))
    for _ in range(2):
        x = b.relu(b.shaped(b.node("Conv", [x, b.weight(6, 6, 3, 3), zeros], pads=[1] * 4), 1, 6, 8, 8))
    model = b.model(b.gemm(b.flatten(b.global_pool(x)), 4))
    for tensor in model.graph.initializer:
        tensor.doc_string = f"about {tensor.name}"
        tensor.metadata_props.add(key="k", value=tensor.name)
    return model


def plan_of(graph: PruningGraph) -> Plan:
    """Without half of the first layer's channels."""
    plan = keep_all(graph)
    plan.keep[graph.layers[0].out_units[:6]] = False
    return plan


@pytest.mark.parametrize("new_bias", [True, False])
def test_what_is_shared_is_stored_once_after_recovery(new_bias: bool) -> None:
    graph = analyze_graph(shared())
    plan = plan_of(graph)
    pruned = rewrite(graph, plan)
    result = recover(
        graph, plan, pruned, samples(graph, 64), new_bias=new_bias, provider="cpu", threads=1,
        progress=SilentProgress(),
    )  # fmt: skip
    before, after = count(united(pruned)), count(united(result.model))
    # The two layers that shared a bias may have one each now, where parameters may be added.
    assert after.params == before.params + (6 if new_bias else 0)
    assert after.macs == before.macs
    left = {fit.layer for fit in result.fits if not fit.kept and "shared" in fit.reason}
    assert left == {layer.name for layer in graph.layers[2:5]}
    for tensor in united(result.model).graph.initializer:
        assert tensor.doc_string == f"about {tensor.metadata_props[0].value}"


def test_fine_tuning_trains_what_is_shared_as_one() -> None:
    model = shared()
    inputs = samples(model, 96)
    result = compress(
        model, data=inputs, macs="70%", method="l1", recover="finetune", epochs=2, lr=0.001, threads=1
    )
    assert result.report.method["finetune"]["kept"]
    plain = compress(model, data=inputs, macs="70%", method="l1", recover="none", threads=1)
    assert model_bytes(result.model) < 1.02 * model_bytes(plain.model)
