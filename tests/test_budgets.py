"""Budgets are counted on what is written, whoever made the plan; latencies here are a stand-in's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import goals, pipeline
from onnxprune.config import CompressConfig
from onnxprune.errors import BudgetError, OnnxPruneError, UsageError
from onnxprune.io.load import load
from onnxprune.profile.cost import count
from onnxprune.report.html import report_html
from onnxprune.report.schema import Latency
from tests.model_builder import Builder
from tests.quantized import quantize

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "quickstart"
MODEL = SAMPLE / "digits.onnx"
OPTIONS: dict[str, Any] = {
    "data": str(SAMPLE / "digits.npz"), "split": ":80", "calibration": 40, "method": "l1", "recover": "none",
    "threads": 1,
}  # fmt: skip


def compress(model: str | Path | onnx.ModelProto = MODEL, **options: Any) -> pipeline.CompressionResult:
    """As the command line does, which may say where the result goes."""
    usual = {name: value for name, value in OPTIONS.items() if not ("plan" in options and name == "method")}
    return pipeline.compress(CompressConfig.from_options({"model": model, **usual, **options}))


def files(path: Path) -> int:
    return sum(file.stat().st_size for file in load(path).files)


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with its weights in a file of their own."""
    path = tmp_path_factory.mktemp("external") / "digits.onnx"
    onnx.save(onnx.load(MODEL), path, save_as_external_data=True, location="digits.bin", size_threshold=1024)
    return path


@pytest.mark.parametrize("size", ["171500B", "60%", "100%"])
def test_the_written_file_meets_the_size_with_all_that_is_recorded(tmp_path: Path, size: str) -> None:
    result = compress(size=size)
    report = result.save(tmp_path / "small.onnx")
    limit = 171500 if size == "171500B" else float(size[:-1]) / 100 * MODEL.stat().st_size
    assert (
        0.9 * limit
        < files(tmp_path / "small.onnx")
        == result.report.after.bytes
        == report.after.bytes
        <= limit
    )


@pytest.mark.parametrize("share", (0.8, 0.6, 0.5))
def test_a_quantized_model_meets_the_size_where_parameters_are_bytes(tmp_path: Path, share: float) -> None:
    """An int8 level takes a quarter of what the first estimate, by its float parameters, says."""
    images = np.load(SAMPLE / "digits.npz")["images"][:40].astype(np.float32).transpose(0, 3, 1, 2) / 255.0
    model = quantize(onnx.load(MODEL), images, tmp_path, per_channel=True)
    whole = len(model.SerializeToString())
    after = compress(model, size=share).report.after.bytes
    assert 0.97 * share * whole < after <= share * whole


@pytest.mark.parametrize("share", (0.95, 0.8, 0.6))
def test_a_size_is_met_where_rewriting_adds_nodes(share: float) -> None:
    """Pads and Gathers keep the distances that an LRN sums over; what they take is no parameter."""
    b = Builder(seed=0)
    x = b.input((1, 3, 8, 8), dynamic=True)
    for _ in range(3):
        x = b.conv(x, 24, 1)
        x = b.like("LRN", x, size=5)
    model = b.model(b.shaped(b.node("GlobalAveragePool", [b.conv(x, 64, 1)]), 1, 64, 1, 1))
    report = compress(model, data="synthetic", split=None, calibration=8, method="random", size=share).report
    assert 0.9 * share * report.before.bytes < report.after.bytes <= share * report.before.bytes


def test_external_data_counts_with_its_padding(external: Path, tmp_path: Path) -> None:
    result = compress(external, size="190000B", output=tmp_path / "small.onnx")
    result.save(tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx.data").exists()
    assert 150_000 < files(tmp_path / "small.onnx") == result.report.after.bytes <= 190_000


def test_a_name_that_makes_the_file_too_large_is_refused(external: Path, tmp_path: Path) -> None:
    fitting = compress(external, macs="60%", output="x").report.after.bytes
    result = compress(external, size=f"{fitting}B", macs="60%", output="x")
    with pytest.raises(BudgetError, match="are allowed"):
        result.save(tmp_path / ("x" * 200))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved plan for 60 % of the multiply-accumulates."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    compress(macs="60%").save_plan(path)
    return path


@pytest.mark.parametrize("budget", [{"macs": "10%"}, {"params": "10%"}, {"size": "1KB"}])
def test_a_saved_plan_that_misses_a_budget_is_refused(plan: Path, budget: dict[str, str]) -> None:
    with pytest.raises(BudgetError, match="is not met") as caught:
        compress(plan=plan, **budget)
    assert "--plan" in caught.value.hint


@pytest.mark.parametrize(
    ("choice", "kind"),
    [
        ({"round_to": 16}, "--round-to"),
        ({"max_group_ratio": 0.1}, "--round-to"),
        ({"keep": ("*stem*",)}, "--keep"),
    ],
)
def test_a_saved_plan_that_goes_against_a_choice_is_refused(
    plan: Path, choice: dict[str, Any], kind: str
) -> None:
    with pytest.raises(UsageError, match=kind):
        compress(plan=plan, **choice)


def test_the_usual_ratio_binds_a_saved_plan_only_where_it_is_stated(tmp_path: Path) -> None:
    far = tmp_path / "far.json"
    compress(macs="1%", max_group_ratio=0.97).save_plan(far)
    assert compress(plan=far).report.after.macs
    with pytest.raises(UsageError, match="--max-group-ratio"):
        compress(plan=far, max_group_ratio=0.9)
    assert compress(macs="60%").report.method["max_group_ratio"] == 0.9


def test_a_saved_plan_that_meets_all_is_applied(plan: Path) -> None:
    result = compress(plan=plan, macs="60%", max_group_ratio=0.8)
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    assert result.report.method["plan"] == str(plan)


def test_a_report_names_only_what_had_a_part_in_the_choice(plan: Path) -> None:
    chosen = {
        "name": [None, "l1", "obs", "stlp-ib"],
        "data_term": [None, None, None, "contribution"],
        "depth_weight": [None, None, 1.0, 1.0],
    }
    cases = [{"plan": plan}, *({"macs": "90%", "method": name} for name in chosen["name"][1:])]
    for index, options in enumerate(cases):
        report = compress(**options, dry_run=True).report
        assert {name: report.method[name] for name in chosen} == {
            name: values[index] for name, values in chosen.items()
        }
        assert "</html>" in report_html(report)


def test_a_dry_run_of_a_saved_plan_recovers_nothing(plan: Path) -> None:
    report = compress(plan=plan, dry_run=True, recover="closed-form").report
    assert "rewrite" in report.timings_s and "recover" not in report.timings_s


def test_the_callers_model_is_left_as_it_is() -> None:
    model = onnx.load(MODEL)
    before = model.SerializeToString(deterministic=True)
    assert compress(model, macs="60%").model.metadata_props
    assert model.SerializeToString(deterministic=True) == before


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Models take a microsecond for every thousand multiply-accumulates; the runs that were asked for."""
    asked: list[int] = []

    def stand_in(
        sessions: Sequence[Any], *, batch: int, runs: int, shape: tuple[int, ...] | None
    ) -> tuple[Latency, ...]:
        assert batch == 1 and shape is None
        asked.append(runs)
        each = [count(session.model).macs / 1e6 for session in sessions]
        return tuple(Latency(value, value, value, runs) for value in each)

    monkeypatch.setattr(goals, "open_session", lambda model, **_: SimpleNamespace(batch=None, model=model))
    monkeypatch.setattr(goals, "time_sessions", stand_in)
    return asked


def test_latency_is_measured_on_the_result_and_reported(times: list[int]) -> None:
    report = compress(latency="70%").report
    assert (report.before.latency_ms, report.after.latency_ms) == (
        report.before.macs / 1e6,
        report.after.macs / 1e6,
    )
    assert 0.6 * report.before.macs < report.after.macs <= 0.7 * report.before.macs
    assert set(times) == {goals._RUNS}


def test_a_latency_that_the_original_has_removes_nothing(times: list[int]) -> None:
    result = compress(latency="10s")
    assert np.all(result.plan.keep) and result.report.after.latency_ms == result.report.before.latency_ms


def test_with_other_budgets_latency_is_met_beside_them(times: list[int]) -> None:
    report = compress(latency="70%", macs="40%").report
    assert report.after.macs <= 0.4 * report.before.macs
    with pytest.raises(OnnxPruneError, match="MACs"):
        compress(latency="70%", macs="1K")


def test_a_plan_that_is_too_slow_is_measured_again_and_refused(times: list[int], plan: Path) -> None:
    with pytest.raises(BudgetError, match="latency 50% is not met"):
        compress(latency="50%", plan=plan)
    assert times == [goals._RUNS, goals._SECOND_RUNS]


def sized(*, free: bool) -> onnx.ModelProto:
    """A net for images of 20 x 20, which it states or leaves free."""
    b = Builder(seed=2)
    x = b.relu(b.conv(b.input((1, 3, 20, 20), dynamic=True), 8, 3))
    x = b.relu(b.conv(x, 8, 3, stride=2))
    model = b.model(b.gemm(b.flatten(b.global_pool(x)), 4))
    for axis in (2, 3) if free else ():
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    return model


IMAGES = np.random.default_rng(0).standard_normal((40, 3, 20, 20)).astype(np.float32)


def test_a_model_that_leaves_sizes_free_is_counted_at_the_size_of_the_data() -> None:
    results = [compress(sized(free=free), data=IMAGES, split=None, macs="60%") for free in (False, True)]
    figures = [(r.report.before.macs, r.report.before.params, r.report.after.macs) for r in results]
    assert figures[0] == figures[1]


def test_it_is_timed_at_that_size_too() -> None:
    report = compress(sized(free=True), data=IMAGES, split=None, latency="10s").report
    assert report.before.latency_ms is not None and report.after.macs == report.before.macs
