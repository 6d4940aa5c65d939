"""Latency, memory and sizes: measured on the right thing, compared the right way round."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, UsageError
from onnxprune.profile import latency
from onnxprune.profile.benchmark import benchmark
from onnxprune.profile.latency import measure_latency, random_inputs
from onnxprune.profile.memory import peak_memory
from onnxprune.profile.spec import TensorSpec


def chain(width: int, layers: int = 1, batch: int | str = "N", free: bool = False) -> onnx.ModelProto:
    """x -> MatMul -> ... of square weights, so that cost and size grow with ``width``."""
    random = np.random.default_rng(0)
    size: int | str = "W" if free else width
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(layers)]
    weights = [
        numpy_helper.from_array(random.standard_normal((width, width)).astype(np.float32), f"w{i}")
        for i in range(layers)
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [batch, size])],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, [batch, width])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def test_the_larger_model_takes_longer() -> None:
    small, large = measure_latency([chain(16), chain(1024, 8)], runs=15, threads=1)
    assert small.runs == large.runs == 15
    assert small.median_ms < large.median_ms
    assert 0 < small.median_ms <= small.p90_ms


def test_the_figures_are_those_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(np.cumsum(np.tile([0.0, 0.001], 200)).tolist())
    summary = latency._summary(np.array([0.001, 0.002, 0.003, 0.010]))
    assert (summary.median_ms, summary.mean_ms, summary.runs) == (pytest.approx(2.5), pytest.approx(4.0), 4)
    assert summary.p90_ms == pytest.approx(np.percentile([1, 2, 3, 10], 90))
    monkeypatch.setattr(latency, "_warm_up", lambda session, inputs: None)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    (measured,) = measure_latency([chain(4)], runs=10, threads=1)
    assert measured.median_ms == pytest.approx(1.0)


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Spy:
        def __init__(self, name: str) -> None:
            self.name, self.inputs = name, (TensorSpec("x", np.dtype(np.float32), (None, 2)),)

        def run(self, values: object) -> None:
            order.append(self.name)

    monkeypatch.setattr(latency, "_warm_up", lambda session, inputs: None)
    latency.time_sessions([Spy("a"), Spy("b")], runs=3)
    assert order == ["a", "b"] * 3


def test_inputs_fit_the_model() -> None:
    specs = [
        TensorSpec("image", np.dtype(np.float16), (None, 3, 4)),
        TensorSpec("index", np.dtype(np.int64), (5,)),
        TensorSpec("one", np.dtype(np.float32), ()),
    ]
    with pytest.raises(UsageError, match="insists on a batch of 5"):
        random_inputs(specs, batch=2)
    inputs = random_inputs(specs, batch=5)
    assert {name: (array.shape, array.dtype) for name, array in inputs.items()} == {
        "image": ((5, 3, 4), np.float16),
        "index": ((5,), np.int64),
        "one": ((), np.float32),
    }
    assert inputs["image"].std() > 0 and not inputs["index"].any()


def test_free_sizes_need_a_shape() -> None:
    with pytest.raises(UsageError) as caught:
        measure_latency([chain(8, free=True)], runs=1, threads=1)
    assert "--shape" in caught.value.hint
    measure_latency([chain(8, free=True)], runs=1, threads=1, shape=(2, 8))
    with pytest.raises(UsageError, match="does not fit"):
        measure_latency([chain(8)], runs=1, threads=1, shape=(2, 9))


@pytest.mark.parametrize("options", [{"batch": 10**11}, {"shape": (10**20, 4)}, {"shape": (1 << 40, 4)}])
def test_inputs_beyond_the_memory_are_refused(options: Any) -> None:
    with pytest.raises(UsageError, match="memory"):
        measure_latency([chain(4)], runs=1, threads=1, **options)


def test_memory_that_runs_out_for_an_input_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "memory_limit", lambda: 1 << 62)
    with pytest.raises(UsageError, match="memory"):
        random_inputs([TensorSpec("x", np.dtype(np.int64), (None,))], batch=1 << 55)


@pytest.mark.parametrize("options", [{"runs": 0}, {"batch": 0}, {"runs": 10**12}])
def test_senseless_numbers_are_refused(options: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        measure_latency([chain(4)], **options)
    with pytest.raises(UsageError):
        benchmark([saved(chain(4), tmp_path / "a.onnx")], **options)


def test_memory_is_at_least_the_weights_and_not_a_multiple(tmp_path: Path) -> None:
    width, layers = 1024, 12
    path = saved(chain(width, layers), tmp_path / "large.onnx")
    weights = 4 * width * width * layers
    measured = peak_memory(path, inputs={"x0": ((1, width), "float32")}, provider="cpu", threads=1)
    assert measured is not None
    assert weights < measured < 5 * weights


def test_memory_of_what_does_not_load_is_a_model_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError):
        peak_memory(path, inputs={}, provider="cpu", threads=1)


def test_two_models_side_by_side(tmp_path: Path) -> None:
    large = saved(chain(512, 6), tmp_path / "large.onnx")
    small = saved(chain(64), tmp_path / "small.onnx")
    report = benchmark([large, small], runs=10, batch=2, threads=1, provider="cpu")
    first, second = report.models
    assert first.bytes == large.stat().st_size and second.bytes == small.stat().st_size
    assert report.ratio["bytes"] == pytest.approx(second.bytes / first.bytes)
    assert report.ratio["latency_median"] == pytest.approx(second.latency.median_ms / first.latency.median_ms)
    assert report.ratio["latency_median"] < 1 < report.ratio["throughput"]
    assert first.throughput == pytest.approx(2e3 / first.latency.mean_ms)
    assert (report.provider, report.threads, report.batch) == ("cpu", 1, 2)
    assert benchmark([small], runs=2, threads=1).ratio == {}


def test_a_model_in_memory_is_measured_as_its_file_is(tmp_path: Path) -> None:
    model = chain(512, 6)
    path = saved(model, tmp_path / "a.onnx")
    report = benchmark([path, path.read_bytes(), model], runs=2, threads=1, provider="cpu")
    file, data, proto = report.models
    assert file.bytes == data.bytes == proto.bytes
    assert data.model.input is None and data.model.sha256 == file.model.sha256
    for entry in (data, proto):
        assert entry.memory_bytes == pytest.approx(file.memory_bytes, rel=0.5)
