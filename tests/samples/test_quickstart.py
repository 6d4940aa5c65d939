"""The quickstart: its README's commands work as written, and its files are what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.readme import ROOT, shell_blocks

SAMPLE = ROOT / "samples" / "quickstart"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the sample, where its commands may write."""
    target = tmp_path / "quickstart"
    shutil.copytree(SAMPLE, target, ignore=shutil.ignore_patterns("*.pruned.onnx"))
    return target


def test_the_commands_of_the_readme_work_as_written(copy: Path) -> None:
    scripts = Path(sysconfig.get_path("scripts"))
    environment = {**os.environ, "PATH": os.pathsep.join([str(scripts), os.environ["PATH"]])}
    commands = shell_blocks((SAMPLE / "README.md").read_text(encoding="utf-8"))
    assert [command.split()[1] for command in commands] == ["inspect", "compress", "evaluate", "benchmark"]
    for command in commands:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout
    report = json.loads((copy / "report.json").read_text(encoding="utf-8"))
    assert report["after"]["macs"] <= 0.5 * report["before"]["macs"]
    assert report["after"]["metrics"]["top1"] >= report["before"]["metrics"]["top1"] - 1.0
    assert (copy / "digits.onnx").read_bytes() == (SAMPLE / "digits.onnx").read_bytes()


def test_the_network_keeps_batchnorm_a_join_and_a_free_batch() -> None:
    model = onnx.load(SAMPLE / "digits.onnx")
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("BatchNormalization") == ops.count("Conv") == 5
    assert ops.count("Add") == 1
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_the_network_is_as_accurate_as_the_readme_says() -> None:
    data = np.load(SAMPLE / "digits.npz")
    images = data["images"].transpose(0, 3, 1, 2).astype(np.float32) / 255
    session = ort.InferenceSession(SAMPLE / "digits.onnx", providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: images})
    accuracy = 100 * float((scores.argmax(1) == data["labels"]).mean())
    stated = re.search(r"([\d.]+) % right", (SAMPLE / "README.md").read_text(encoding="utf-8"))
    assert stated is not None
    assert round(accuracy, 1) == float(stated[1])


def test_the_sample_is_small_and_complete() -> None:
    names = {path.name for path in SAMPLE.iterdir() if not path.name.endswith(".pruned.onnx")}
    assert names >= {"README.md", "digits.npz", "digits.onnx", "train.py"}
    assert sum((SAMPLE / name).stat().st_size for name in ("digits.npz", "digits.onnx")) < 1_000_000


def test_the_script_makes_the_network_that_is_there(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.insert(0, str(copy))
    try:
        import train
    finally:
        sys.path.remove(str(copy))
    monkeypatch.setattr(train, "EPOCHS", 1)
    train.main()
    made, shipped = onnx.load(copy / "digits.onnx"), onnx.load(SAMPLE / "digits.onnx")
    assert [node.op_type for node in made.graph.node] == [node.op_type for node in shipped.graph.node]
    assert {(t.name, *t.dims) for t in made.graph.initializer} == {
        (t.name, *t.dims) for t in shipped.graph.initializer
    }
    for name, array in np.load(SAMPLE / "digits.npz").items():
        np.testing.assert_array_equal(np.load(copy / "digits.npz")[name], array)
