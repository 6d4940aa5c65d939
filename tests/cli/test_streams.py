"""Standard output and error as callers leave them: closed, full, without a reader, in any encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "quickstart" / "digits.onnx"
NAME = os.fsdecode(b"bad\xff.onnx")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a model whose nodes, and whose file, have names beyond ASCII."""
    model = onnx.load(SAMPLE)
    for node in model.graph.node:
        node.name = f"é→{node.name}"
    onnx.save(model, tmp_path / "digits.onnx")
    (tmp_path / NAME).write_bytes((tmp_path / "digits.onnx").read_bytes())
    return tmp_path


def shell(folder: Path, arguments: str, encoding: str | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = dict(os.environ) if encoding is None else {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m onnxprune {arguments}"],
        cwd=folder,
        capture_output=True,
        env=environment,
    )


def test_errors_do_not_go_to_standard_output_where_standard_error_is_closed_or_full(here: Path) -> None:
    for suffix in ("2>&-", "2>/dev/full"):
        done = shell(here, f"inspect none.onnx {suffix}")
        assert (done.returncode, done.stdout) == (2, b"")


def test_work_goes_on_where_standard_error_is_closed_or_full(here: Path) -> None:
    for suffix in ("2>&-", "2>/dev/full"):
        done = shell(here, f"benchmark digits.onnx --runs 1 --json - {suffix}")
        assert done.returncode == 0 and json.loads(done.stdout)["batch"] == 1


@pytest.mark.parametrize("arguments", ["--version", "--help", "compress --help"])
def test_help_is_printed_as_results_are(here: Path, arguments: str) -> None:
    full = shell(here, f"{arguments} >/dev/full")
    assert full.returncode == 2
    assert full.stderr.startswith(b"error: can't write to standard output: No space left on device\nhint: ")
    gone = shell(here, f"{arguments} 2>err | true")
    assert gone.returncode == 141 and (here / "err").read_text() == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_are_printed_in_any_encoding(here: Path, encoding: str) -> None:
    table = shell(here, "inspect digits.onnx", encoding)
    assert table.returncode == 0, table.stderr
    shown = {"ascii": "\\xe9\\u2192/stem", "latin-1": "é\\u2192/stem", "utf-8": "é→/stem"}[encoding]
    assert shown.encode(encoding) in table.stdout
    report = shell(here, "inspect digits.onnx --json - --quiet", encoding)
    assert "é→/stem" in json.loads(report.stdout.decode(encoding))["layers"][0]["name"]


def test_file_names_that_are_no_text_are_escaped(here: Path) -> None:
    done = shell(here, "inspect $'bad\\xff.onnx' --json - --quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("utf-8"))["model"]["input"] == NAME
    assert shell(here, "inspect $'bad\\xff.onnx' --json r.json").returncode == 0
    assert json.loads((here / "r.json").read_text(encoding="utf-8"))["model"]["input"] == NAME
