"""Classifiers of one value a sample, and of a Sigmoid for each class, through every command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune_cli.main import run
from tests.binary import HEADS, images, network, outputs, probabilities

DATA = ("--data", "data.npz", "--eval-data", "judge.npz", "--calibration", "145", "--threads", "1")
EVERY = ("--calibration", "160")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data to learn from and to judge by, as the current one."""
    for name, seed in (("data", 1), ("judge", 2)):
        x, labels = images(seed)
        np.savez(tmp_path / f"{name}.npz", x=x, y=labels)
        np.savez(tmp_path / f"{name}_bare.npz", x=x)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> dict[str, Any]:
    """The report of a command that does what it is asked to."""
    assert run([*arguments, "--json", "report.json"]) == 0
    report: dict[str, Any] = json.loads(Path("report.json").read_text())
    return report


def compressed(head: str, *options: str, batch: int | str = "N") -> dict[str, Any]:
    onnx.save(network(head, batch=batch), "model.onnx")
    return command("compress", "model.onnx", "-o", "small.onnx", "--force", *options)


def measured(head: str) -> tuple[float, float, float, float]:
    """Top-1 of model.onnx and small.onnx, agreement (percent) and divergence, by a loop over both classes."""
    x, labels = images(2)
    found = []
    for name in ("model.onnx", "small.onnx"):
        model = onnx.load(name)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"  # so that one run takes them all
        found.append(probabilities(head, outputs(model, x)))
    before, after, same = 0, 0, 0
    kl = 0.0
    for label, p, q in zip(labels, *found, strict=True):
        before += (p[1] > 0.5) == (label == 1)
        after += (q[1] > 0.5) == (label == 1)
        same += (p[1] > 0.5) == (q[1] > 0.5)
        kl += sum(mine * math.log(mine / other) for mine, other in zip(p, q, strict=True))
    count = len(labels)
    return 100 * before / count, 100 * after / count, 100 * same / count, kl / count


def assert_measured(report: dict[str, Any], head: str) -> None:
    """That the report's figures are those of the loop."""
    before, after, agreement, kl = measured(head)
    assert 60.0 < before < 100.0 and kl > 0.0
    assert report["before"]["metrics"] == {"top1": pytest.approx(before)}
    assert report["after"]["metrics"] == {"top1": pytest.approx(after)}
    assert report["after"]["fidelity"] == {
        "agreement": pytest.approx(agreement), "kl": pytest.approx(kl, rel=1e-3),
    }  # fmt: skip


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("head", HEADS)
def test_compress_and_evaluate_by_either_kind_of_data(head: str) -> None:
    report = compressed(head, *DATA, "--macs", "50%", "--verify", "--report", "report.html")
    assert report["after"]["macs"] <= 0.5 * report["before"]["macs"]
    assert report["data"]["classes"] == ["0", "1"]
    assert_measured(report, head)
    before, after, agreement, kl = measured(head)
    against = command("evaluate", "small.onnx", "--data", "judge.npz", "--against", "model.onnx")
    assert against["metrics"]["top1"] == pytest.approx(after)
    assert against["against"]["metrics"]["top1"] == pytest.approx(before)
    assert against["against"]["fidelity"]["kl"] == pytest.approx(kl, rel=1e-3)
    bare = command("evaluate", "small.onnx", "--data", "judge_bare.npz", "--against", "model.onnx")
    assert bare["against"]["fidelity"]["agreement"] == pytest.approx(agreement)
    told = [text for text in report["warnings"] if "gives one value a sample" in text]
    assert len(told) == (head != "sigmoids, N x 2")
    assert [text for text in against["warnings"] if "gives one value a sample" in text] == told


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("head", ["p, N", "sigmoids, N x 2"])
def test_labels_withheld_are_the_model_s_own_classes(head: str) -> None:
    bare = ("--data", "data_bare.npz", "--eval-data", "judge_bare.npz", *DATA[6:], *EVERY)
    report = compressed(head, *bare, "--macs", "50%", "--depth-weight", "1")
    _, _, agreement, _ = measured(head)
    assert report["before"]["metrics"]["top1"] == 100.0
    assert report["after"]["metrics"]["top1"] == pytest.approx(agreement)
    x, labels = images(1)
    own = np.array([one > 0.5 for _, one in probabilities(head, outputs(network(head), x))])
    assert 0 < (own != labels).sum() < len(labels) / 4
    np.savez("data.npz", x=x, y=own.astype(np.int64))
    stated = compressed(head, *DATA, *EVERY, "--macs", "50%", "--depth-weight", "1")
    assert stated["groups"] == report["groups"]
    assert stated["after"]["fidelity"] == report["after"]["fidelity"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("head", "batch"), [("logit, N", 7), ("p, squeezed", 1), ("p, squeezed", "N"), ("sigmoids, N x 2", 7)]
)
def test_taylor_and_fine_tuning_learn_from_the_same_two_classes(head: str, batch: int | str) -> None:
    options = (*DATA, "--macs", "40%", "--method", "taylor", "--recover")
    plain = compressed(head, *options, "none", batch=batch)
    tuned = compressed(head, *options, "finetune", "--epochs", "6", "--lr", "0.003", batch=batch)
    assert_measured(tuned, head)
    assert tuned["groups"] == plain["groups"]
    assert tuned["after"]["fidelity"]["kl"] < 0.5 * plain["after"]["fidelity"]["kl"]
    twin = compressed("logit, N x 1", *options, "none")
    assert twin["groups"] == plain["groups"] or head == "sigmoids, N x 2"


@pytest.mark.usefixtures("here")
def test_the_search_within_a_drop_and_the_sensitivity_are_those_of_the_logit() -> None:
    found = {}
    for head in ("logit, N x 1", "p, N"):
        drop = compressed(head, *DATA, "--max-drop", "5", "--method", "l1")
        assert_measured(drop, head)
        assert drop["before"]["metrics"]["top1"] - drop["after"]["metrics"]["top1"] <= 5.0
        curves = command("analyze", "model.onnx", *DATA)
        points = [point["fidelity"]["kl"] for group in curves["groups"] for point in group["points"]]
        assert len(points) == 6 and min(points) > 0.0 and len(curves["classes"]["names"]) == 2
        found[head] = (drop["groups"], points)
    logit, p = found.values()
    assert logit[0] == p[0] and logit[1] == pytest.approx(p[1], rel=1e-2)
