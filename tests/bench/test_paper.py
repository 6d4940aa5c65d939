"""Rows of the paper's table at a tiny scale: every stage, interrupted inside and between them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from bench.paper import stages
from bench.paper.__main__ import main
from bench.paper.data import load_images
from bench.paper.models import POOL, VGG
from bench.paper.rows import Published, Row
from bench.paper.stages import Job
from bench.paper.table import table
from bench.paper.train import Recipe, accuracy, train
from onnxprune.errors import DataError
from onnxprune.profile.cost import count
from onnxprune.recover.finetune import FinetuneSettings

ROW = Row(
    "tiny", "Tiny", lambda classes: VGG(classes, (8, POOL, 12)), 0.5, 0.6,
    (Published("elsewhere", 91.5, 0.25, None, 40),), classes=3,
)  # fmt: skip
CPU = torch.device("cpu")


def write_images(path: Path, n: int, seed: int) -> Path:
    """Noisy 8 x 8 images; the class is the channel that is brightest."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, n)
    images = random.integers(40, 160, (n, 8, 8, 3))
    images[np.arange(n), :, :, labels] += 60
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("images")
    return Job(
        write_images(folder / "train.npz", 160, 0), write_images(folder / "test.npz", 60, 1), CPU,
        Recipe(epochs=4, batch_size=16, rate=0.05), FinetuneSettings(epochs=2, lr=1e-3, checks=2),
        calibration=48, threads=1,
    )  # fmt: skip


class Interrupted(Exception):
    pass


def silent(line: str) -> None:
    del line


def killer(epochs: int) -> Any:
    def log(line: str) -> None:
        if line.startswith(f"epoch {epochs}/"):
            raise Interrupted

    return log


def test_training_that_is_killed_ends_where_it_would_have(job: Job, tmp_path: Path) -> None:
    images, build = load_images(job.train, CPU), lambda: VGG(3, (8, POOL, 12))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, done = train(build, images, job.recipe, 1, tmp_path / "whole", silent)
    for epochs in (1, 3):
        with pytest.raises(Interrupted):
            train(build, images, job.recipe, 1, tmp_path / "killed", killer(epochs))
    resumed, again = train(build, images, job.recipe, 1, tmp_path / "killed", silent)
    assert again.loss == done.loss
    for (name, want), got in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(got, want), name
    assert accuracy(resumed, load_images(job.test, CPU)) > 60
    with pytest.raises(SystemExit, match="of another run"):
        train(build, images, replace(job.recipe, rate=0.1), 1, tmp_path / "killed", silent)


def test_a_row_runs_through_all_stages_and_goes_on_between_them(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ROW.name / "seed-0"

    def fail(*given: object, **options: object) -> Any:
        raise Interrupted

    for broken, there in (("compress", ["baseline"]), ("finetune", ["baseline", "pruned"])):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(stages, broken, fail)
            stages.run(ROW, job, 0, folder, silent)
        assert [name for name in stages.STAGES if (folder / f"{name}.json").is_file()] == there
        assert "not run" in table(tmp_path, [ROW])
        # What was done is not done again.
        monkeypatch.setattr(stages, "train", fail)
    results = stages.run(ROW, job, 0, folder, silent)
    monkeypatch.setattr(stages, "compress", fail)
    monkeypatch.setattr(stages, "finetune", fail)
    assert stages.run(ROW, job, 0, folder, silent) == results
    before, after = (count(onnx.load(folder / f"{name}.onnx")) for name in ("baseline", "tuned"))
    assert results[1]["macs"] == [before.macs, after.macs] and after.macs <= 0.5 * before.macs
    assert results[1]["params"] == [before.params, after.params] and after.params <= 0.6 * before.params
    assert min(result["top1"] for result in results) > 50
    assert (folder / "tuning" / "finetune.safetensors").is_file()
    with pytest.raises(SystemExit, match="other settings"):
        stages.run(ROW, replace(job, calibration=40), 0, folder, silent)


def test_the_command_runs_seeds_and_prints_them_beside_what_was_published(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--out", str(tmp_path), "--train", str(job.train), "--test", str(job.test)]
    other = replace(ROW, name="other", title="Other")
    short = ["--epochs", "1", "--finetune-epochs", "0.5", "--seeds", "2", "--device", "cpu", "--threads", "1"]
    main([*places, "--row", "tiny", *short], (replace(ROW, macs=0.8, params=None), other))
    out = capsys.readouterr().out
    assert "tiny, seed 1: epoch 1/1" in out
    told = [line for line in out.splitlines() if "tiny, seed 1: fine-tune: " in line]
    assert told and "100 %, loss " in told[-1] and told[-1].endswith("0 s left")
    assert "epoch 1/1" in (tmp_path / "tiny" / "seed-1" / "log.txt").read_text()
    lines = {line.split(" | ")[0]: line for line in out.splitlines() if "**onnxprune**" in line}
    tuned = [json.loads((tmp_path / f"tiny/seed-{seed}/tuned.json").read_text()) for seed in (0, 1)]
    ours = lines["| Tiny, CIFAR-10"]
    assert f"{(tuned[0]['top1'] + tuned[1]['top1']) / 2:.2f} (" in ours
    assert "seed 0, 1; 160 images, 1 epochs, 0.5 of fine-tuning" in ours
    assert "CPU cores" in ours
    assert "not run" in lines["| Other, CIFAR-10"]
    assert "| Tiny, CIFAR-10 | elsewhere | 91.50 | +0.25 |  | 40 % | published |" in out
    main(["--out", str(tmp_path), "--table"], (ROW, other))
    assert out.endswith(capsys.readouterr().out)


def test_a_network_from_a_file_is_taken_as_it_is(job: Job, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    stages.run(ROW, replace(job, recipe=replace(job.recipe, epochs=1)), 0, trained, silent)
    given = replace(ROW, name="given", build=None)
    with pytest.raises(SystemExit, match="--given"):
        stages.run(given, job, 0, tmp_path / "given", silent)
    file = replace(job, baseline=trained / "baseline.onnx")
    results = stages.run(given, file, 0, tmp_path / "given", silent)
    assert results[0]["top1"] == json.loads((trained / "baseline.json").read_text())["top1"]
    assert results[0]["seconds"] == 0.0


def test_images_without_labels_or_without_colours_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="no labels"):
        load_images(tmp_path / "bare.npz", CPU)
    np.savez(tmp_path / "float.npz", images=np.zeros((4, 8, 8, 3), np.float32), labels=np.zeros(4, np.int64))
    with pytest.raises(DataError, match="not RGB images"):
        load_images(tmp_path / "float.npz", CPU)
