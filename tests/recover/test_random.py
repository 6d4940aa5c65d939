"""Statistics and recovery on random graphs of all op families: no crash, a loadable model, no harm done."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxprune.evaluate.datasets import load_dataset
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.rewrite import rewrite
from onnxprune.profile.session import open_session
from onnxprune.profile.statistics import collect_statistics
from onnxprune.progress import SilentProgress
from onnxprune.recover.closed_form import recover
from tests.plain import Array, run, samples
from tests.strategies import models, random_plan


def with_free_batch(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with its batch axis freed, where that still runs and keeps samples apart."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    for value in (free.graph.input[0], *free.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    name, x = free.graph.input[0].name, samples(free, 2)
    try:
        both = outputs(free, {name: x})
        each = [outputs(free, {name: x[index : index + 1]}) for index in range(2)]
    except Exception:  # onnxruntime's errors share no base class
        return None
    apart = all(
        a.shape[0] == 2 and np.allclose(a, np.concatenate(parts), atol=1e-4)
        for a, *parts in zip(both, *each, strict=True)
    )
    return free if apart else None


def outputs(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    return list(run(model, feeds, [value.name for value in model.graph.output]).values())


@given(model=models(), seed=st.integers(0, 1000), share=st.sampled_from([0.2, 0.5]), free=st.booleans())
@settings(max_examples=20)
def test_random_graphs(model: onnx.ModelProto, seed: int, share: float, free: bool) -> None:
    chosen = with_free_batch(model) if free else model
    assume(chosen is not None)
    assert chosen is not None
    graph = analyze_graph(chosen)
    inputs = samples(graph, 12)
    labels = np.arange(12) % 3
    data = load_dataset((inputs, None), open_session(graph.model).input)
    statistics = collect_statistics(graph, data, labels, provider="cpu", threads=1, progress=SilentProgress())
    for entry in statistics.values():
        assert np.isfinite(entry.contributions).all() and np.isfinite(entry.energy) and entry.rows > 0
    plan = random_plan(graph, seed, share)
    pruned = rewrite(graph, plan)
    result = recover(
        graph, plan, pruned, inputs, batch=None if free else 1, provider="cpu", threads=1,
        progress=SilentProgress(),
    )  # fmt: skip
    onnx.checker.check_model(result.model, full_check=True)
    ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    shapes = {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}
    for tensor in result.model.graph.initializer:
        assert list(tensor.dims) == shapes.get(tensor.name, list(tensor.dims))
    if plan.keep.all():
        assert not result.fits
    for fit in result.fits:
        assert fit.reason or fit.kept
        assert not fit.kept or fit.error_after < fit.error_before
