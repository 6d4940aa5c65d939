"""Exit statuses, one-line errors with a hint, clean standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from onnxprune.errors import BudgetError, DataError, ModelError, OnnxPruneError, PlanError, UsageError
from onnxprune.report.schema import (
    BenchmarkReport,
    Coverage,
    EvaluationReport,
    Figures,
    InspectReport,
    ModelFiles,
)
from onnxprune_cli.main import run

INSPECTED = InspectReport(
    model=ModelFiles(input="a[bold].onnx"),
    format={"opsets": {"ai.onnx": 17}},
    cost=Figures(macs=10, params=5, bytes=99),
    coverage=Coverage(macs=0.5, params=0.25),
    layers=(),
    groups=(),
    skipped=(),
    warnings=("mind\nthe gap",),
)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for the pipeline, on which each test puts what the command shall meet."""
    module = ModuleType("onnxprune.pipeline")
    monkeypatch.setitem(sys.modules, "onnxprune.pipeline", module)
    import onnxprune

    monkeypatch.setitem(vars(onnxprune), "pipeline", module)
    return module


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*args: object, **options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OnnxPruneError("x", hint="y"), 1),
        (UsageError("x", hint="y"), 2),
        (ModelError("x", hint="y"), 3),
        (PlanError("x", hint="y"), 3),
        (BudgetError("x", hint="y"), 4),
        (DataError("x", hint="y"), 5),
    ],
)
def test_each_kind_of_error_has_its_status(
    pipeline: ModuleType, capsys: pytest.CaptureFixture[str], error: OnnxPruneError, status: int
) -> None:
    pipeline.inspect = raising(error)
    assert run(["inspect", "a.onnx"]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: x\nhint: y\n"


def test_a_bug_says_so_and_shows_a_traceback_only_when_asked(
    pipeline: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.inspect = raising(RuntimeError("two\nlines"))
    assert run(["inspect", "a.onnx"]) == 1
    quiet = capsys.readouterr().err
    assert quiet.splitlines()[0] == "error: internal error: RuntimeError: two lines"
    assert "Traceback" not in quiet and "--debug" in quiet
    assert run(["inspect", "a.onnx", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(pipeline: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.inspect = raising(KeyboardInterrupt())
    assert run(["inspect", "a.onnx"]) == 130
    printed = capsys.readouterr()
    assert "error: interrupted" in printed.err and printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing command"),
        (["comprss"], "comprss"),
        (["compress", "a.onnx", "--dta", "x"], "--dta"),
        (["compress", "--data", "synthetic", "--macs", "50%"], "no model is given"),
        (["compress", "a.onnx", "--macs", "50%"], "no data is given"),
        (["compress", "a.onnx", "--data", "synthetic"], "no budget is given"),
        (["compress", "a.onnx", "--data", "synthetic", "--macs", "50"], "would be 50 in all"),
        (["compress", "a.onnx", "--data", "synthetic", "--macs", "x"], "neither a share nor an amount"),
        (["compress", "a.onnx", "--data", "synthetic", "--macs", "50%", "--method", "l3"], "l3"),
        (
            ["compress", "a.onnx", "--plan", "p", "--depth-weight", "2"],
            "--depth-weight is of no use with --plan",
        ),
        (["compress", "a.onnx", "--plan", "p", "--method", "stlp-ib"], "--method is of no use with --plan"),
        (["benchmark", "a.onnx", "--shape", "1x8x8", "--batch", "8"], "--batch 8 contradicts --shape 1x8x8"),
        (["compress", "a.onnx", "--data", "synthetic", "--macs", "50%", "--layout", "nc"], "--layout"),
        (["compress", "a.onnx", "--data", "x", "--macs", "50%", "--json", "/no/such/dir/f"], "--json"),
        (["compress", "a.onnx", "--data", "x", "--macs", "50%", "-o", "/no/such/dir/f"], "-o"),
        (
            ["compress", "a.onnx", "--data", "x", "--macs", "50%", "--config", "/no/such.toml"],
            "/no/such.toml",
        ),
        (["evaluate", "a.onnx"], "no data is given"),
        (["benchmark", "a.onnx", "--shape", "1x0"], "--shape"),
    ],
)
def test_usage_errors_are_one_line_and_a_hint(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    error, *rest = printed.err.splitlines()
    assert error.startswith("error: ") and says in error
    assert all(line.startswith("hint: ") for line in rest) and len(rest) <= 1
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_needs_force(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pipeline: ModuleType
) -> None:
    pipeline.compress = raising(AssertionError("work began before the check"))
    model = tmp_path / "net.onnx"
    model.write_bytes(b"in")
    (tmp_path / "net.pruned.onnx").write_bytes(b"old")
    common = ["compress", str(model), "--data", "synthetic", "--macs", "50%"]
    assert run(common) == 2
    assert "--force" in capsys.readouterr().err
    assert run([*common, "-o", str(model), "--force"]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert (tmp_path / "net.pruned.onnx").read_bytes() == b"old" and model.read_bytes() == b"in"


def test_json_on_stdout_is_alone_there(pipeline: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.inspect = lambda model: INSPECTED
    assert run(["inspect", "a.onnx", "--json", "-"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["schema"], report["cost"]["macs"]) == (1, 10)
    assert "warning: mind the gap\n" in printed.err
    assert "50.0 %" in printed.err


def test_quiet_prints_nothing_but_the_json(
    pipeline: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pipeline.inspect = lambda model: INSPECTED
    target = tmp_path / "report.json"
    assert run(["inspect", "a.onnx", "--quiet", "--json", str(target)]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert json.loads(target.read_text())["model"]["input"] == "a[bold].onnx"


def test_names_from_models_are_printed_as_they_are(
    pipeline: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.inspect = lambda model: INSPECTED
    assert run(["inspect", "a.onnx"]) == 0
    assert "a[bold].onnx" in capsys.readouterr().out


def test_evaluate_and_benchmark_pass_their_options_on(
    pipeline: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def evaluate(config: Any, **options: Any) -> EvaluationReport:
        seen.append((config.model, config.data, config.threads, config.split, options["against"]))
        return EvaluationReport(ModelFiles("a.onnx"), {}, {"top1": 12.5}, samples=8)

    def benchmark(models: list[str], **options: Any) -> BenchmarkReport:
        options.pop("progress")
        seen.append((models, options))
        return BenchmarkReport((), provider="cpu", threads=None, batch=1)

    pipeline.evaluate = evaluate
    pipeline.benchmark = benchmark
    flags = ["--data", "d", "--against", "b.onnx", "--threads", "1", "--split", ":5"]
    assert run(["evaluate", "a.onnx", *flags]) == 0
    assert "12.50 %" in capsys.readouterr().out
    assert run(["benchmark", "a.onnx", "b.onnx", "--shape", "1x3x8x8", "--runs", "7"]) == 0
    assert seen == [
        ("a.onnx", "d", 1, ":5", "b.onnx"),
        (["a.onnx", "b.onnx"], {"batch": None, "runs": 7, "shape": (1, 3, 8, 8)}),
    ]


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    from onnxprune.version import package_version

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"onnxprune {package_version()}\n"


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxprune", "inspect", "/no/such/model.onnx"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no such file: /no/such/model.onnx\nhint: ")
