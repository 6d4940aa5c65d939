"""Fine-tuning as a whole: it helps, it never harms, it resumes bit for bit, it is shared by processes."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.errors import DataError, UsageError
from onnxprune.evaluate.datasets import Dataset, load_dataset
from onnxprune.evaluate.metrics import fidelity
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.plan import keep_all
from onnxprune.profile.session import open_session
from onnxprune.progress import SilentProgress, Stage
from onnxprune.recover.finetune import FinetuneSettings, finetune
from onnxprune.recover.training import schedule
from onnxprune.recover.training.distill import residual_joins
from tests.model_builder import Builder

QUICK = FinetuneSettings(epochs=6, lr=5e-3, batch_size=16, held_out=48, checks=6)


def net(*, softmax: bool = False, batch: int | None = None) -> onnx.ModelProto:
    """A small residual network on (n, 3, 8, 8) with 4 classes."""
    b = Builder(seed=3)
    x = b.relu(b.batch_norm(b.conv(b.input((batch or 1, 3, 8, 8), dynamic=batch is None), 6, 3, bias=False)))
    y = b.conv(b.relu(b.conv(x, 8, 3)), 6, 3)
    z = b.flatten(b.global_pool(b.relu(b.like("Add", x, y))))
    weight, bias = b.weight(4, 6), b.weight(4)
    y = b.shaped(b.node("Gemm", [z, weight, bias], transB=1), batch or 1, 4)
    model = b.model(b.like("Softmax", y, axis=1) if softmax else y)
    features = open_session(model, provider="cpu", outputs=[z]).run_batched(data(model).arrays().inputs)[z]
    # Scores of the size and spread of a trained classifier's, so that every class is predicted.
    spread = b.constants[weight] * 2 / np.std(features @ b.constants[weight].T, axis=0)[:, None]
    new = {weight: spread, bias: -(features @ spread.T).mean(0)}
    for tensor in model.graph.initializer:
        if tensor.name in new:
            tensor.CopyFrom(numpy_helper.from_array(new[tensor.name].astype(np.float32), tensor.name))
    return model


def damaged(model: onnx.ModelProto, amount: float = 0.3) -> onnx.ModelProto:
    """The model with noise on every matrix of weights."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    random = np.random.default_rng(1)
    for tensor in result.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.ndim > 1:
            noisy = value + amount * value.std() * random.standard_normal(value.shape)
            tensor.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    return result


def colours(n: int, seed: int = 0) -> Any:
    """Noisy images (n, 8, 8, 3) of one colour each."""
    random = np.random.default_rng(seed)
    noisy = random.uniform(0, 255, (n, 1, 1, 3)) + random.normal(0, 40, (n, 8, 8, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def data(model: onnx.ModelProto, n: int = 240, seed: int = 0) -> Dataset:
    images = colours(n, seed)
    spec = open_session(model, provider="cpu").input
    return load_dataset(images, spec)


class Interrupted(Exception):
    pass


class StopAfter(SilentProgress):
    """Progress that kills the run after some steps of it."""

    def __init__(self, notes: int) -> None:
        self.left = notes

    def stage(self, name: str, total: int) -> StopAfter:
        return self

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def advance(self, steps: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted


@pytest.mark.parametrize("form", ["plain", "softmax", "fixed batch"])
def test_a_damaged_model_comes_closer_to_the_original(form: str) -> None:
    model = net(softmax=form == "softmax", batch=4 if form == "fixed batch" else None)
    start = damaged(model)
    settings = replace(QUICK, epochs=2) if form == "fixed batch" else QUICK
    result = finetune(model, start, data(model), settings, provider="cpu", threads=1)
    fresh = data(model, seed=9)
    before, after = (fidelity(m, model, fresh, provider="cpu") for m in (start, result.model))
    assert result.kept and not result.reason
    assert after.kl < 0.7 * before.kl
    assert list(result.model.graph.node) == list(start.graph.node)
    assert result.best.agreement >= result.start.agreement
    assert [check.step for check in result.history] == sorted({check.step for check in result.history})


def test_harmful_steps_are_thrown_away_bit_for_bit() -> None:
    model = net()
    result = finetune(model, model, data(model), replace(QUICK, lr=1.0, epochs=1), provider="cpu", threads=1)
    assert not result.kept
    assert "stay as they were" in result.reason
    assert result.model.SerializeToString() == model.SerializeToString()
    assert result.start.agreement == 100.0


def test_an_interrupted_run_ends_bit_identical(tmp_path: Path) -> None:
    model = net()
    start = damaged(model)
    samples = data(model)
    whole = finetune(model, start, samples, QUICK, provider="cpu", threads=1)
    for steps in (20, 31):
        with pytest.raises(Interrupted):
            finetune(
                model, start, samples, QUICK, checkpoint=tmp_path, provider="cpu", threads=1,
                progress=StopAfter(steps),
            )  # fmt: skip
    resumed = finetune(model, start, samples, QUICK, checkpoint=tmp_path, provider="cpu", threads=1)
    assert resumed.model.SerializeToString() == whole.model.SerializeToString()
    assert resumed.history == whole.history
    assert resumed.model.SerializeToString() != start.SerializeToString()


def test_checkpoints_of_other_runs_and_other_files_are_refused(tmp_path: Path) -> None:
    model = net()
    short = replace(QUICK, epochs=1)
    finetune(model, damaged(model), data(model), short, checkpoint=tmp_path, provider="cpu", threads=1)
    with pytest.raises(UsageError, match="of another run"):
        finetune(
            model, damaged(model, 0.2), data(model), short, checkpoint=tmp_path, provider="cpu", threads=1
        )
    with pytest.raises(UsageError, match="of another run"):
        finetune(
            model, damaged(model), data(model, seed=1), short, checkpoint=tmp_path, provider="cpu", threads=1
        )
    next(tmp_path.iterdir()).write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="not a checkpoint"):
        finetune(model, damaged(model), data(model), short, checkpoint=tmp_path, provider="cpu", threads=1)


def test_a_run_goes_on_where_no_gradient_reaches_a_weight(tmp_path: Path) -> None:
    b = Builder(seed=1)
    x = b.input((1, 8), dynamic=True)
    y = b.shaped(b.node("Gemm", [x, b.weight(8, 4), b.weight(4)]), 1, 4)
    gate = b.shaped(b.node("Gemm", [x, b.weight(8, 4), b.weight(4)]), 1, 4)
    chosen = b.node("Cast", [b.node("ArgMax", [gate], axis=1, keepdims=1)], to=1)
    model = b.model(b.like("Add", y, chosen))
    samples = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    dataset = load_dataset((samples, np.arange(100) % 4), open_session(model, provider="cpu").input)
    short = replace(QUICK, epochs=1)
    runs = [
        finetune(model, damaged(model), dataset, short, checkpoint=tmp_path, provider="cpu", threads=1)
        for _ in range(2)
    ]
    assert runs[0].model.SerializeToString() == runs[1].model.SerializeToString()
    assert [run.steps for run in runs] == [runs[0].steps] * 2


def test_runs_repeat_and_differ_by_seed() -> None:
    model = net()
    start = damaged(model)
    short = replace(QUICK, epochs=1, lr="auto")
    runs = [
        finetune(model, start, data(model), short, provider="cpu", threads=2, seed=seed) for seed in (0, 0, 1)
    ]
    first, again, other = (run.model.SerializeToString() for run in runs)
    assert first == again
    assert first != other
    assert runs[0].lr == runs[1].lr


class Filled(SilentProgress):
    """Progress that notes how much of each stage was done: (announced, done) by name."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int, int]] = {}

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        done = 0

        class Counting(SilentProgress):
            def advance(self, steps: int = 1) -> None:
                nonlocal done
                done += steps

            def note(self, text: str) -> None:
                pass

        yield Counting()
        self.stages[name] = (total, done)


def test_every_stage_is_filled_whichever_rate_is_taken() -> None:
    model, progress = net(), Filled()
    finetune(
        model, damaged(model), data(model), replace(QUICK, epochs=1, lr="auto"),
        provider="cpu", threads=1, progress=progress,
    )  # fmt: skip
    assert set(progress.stages) == {"learning rate", "fine-tune"}
    assert all(total == done for total, done in progress.stages.values()), progress.stages


def test_a_time_limit_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: 0.25 * next(ticks)))
    model = net()
    limited = replace(QUICK, epochs=None, time_limit_s=10.0)
    result = finetune(model, damaged(model), data(model), limited, provider="cpu", threads=1)
    # The clock is read for every step, and once more for every look.
    assert 10.0 <= result.seconds <= 11.0
    assert 20 <= result.steps <= 40
    assert result.history[-1].rate < 1e-3


def test_patience_ends_a_run_that_gains_nothing() -> None:
    model = net()
    hopeless = replace(QUICK, epochs=50, lr=1.0, checks=50, patience=3)
    result = finetune(model, model, data(model), hopeless, provider="cpu", threads=1)
    *earlier, before, last, end = result.history
    assert 3 < len(result.history) < 50
    assert min(before.kl, last.kl, end.kl) >= min(check.kl for check in earlier)
    assert not result.kept


def test_labels_and_joins_take_part() -> None:
    model = net()
    start, samples = damaged(model), data(model)
    labelled = samples.with_labels(np.arange(len(samples)) % 4)
    short = replace(QUICK, epochs=1, patience=99)
    plain = finetune(model, start, samples, short, provider="cpu", threads=1)
    with_labels = finetune(model, start, labelled, replace(short, labels=5.0), provider="cpu", threads=1)
    graph = analyze_graph(model)
    joins = residual_joins(graph, keep_all(graph))
    with_joins = finetune(
        model, start, samples, replace(short, joins=1.0), joins=joins, provider="cpu", threads=1
    )
    assert len({round(run.history[0].loss, 6) for run in (plain, with_labels, with_joins)}) == 3


def test_settings_and_data_that_make_no_sense_are_refused() -> None:
    for wrong in ({"epochs": 0}, {"lr": -1.0}, {"lr": "fast"}, {"ema": 1.0}, {"batch_size": 0}):
        with pytest.raises(UsageError):
            FinetuneSettings(**wrong)
    model = net()
    with pytest.raises(DataError, match="too few"):
        finetune(model, model, data(model, 3), QUICK, provider="cpu")


WORKER = """
import os, sys
import onnx
from tests.recover.test_finetune import QUICK, damaged, data, net
from dataclasses import replace
from onnxprune.recover.finetune import finetune
model = net()
short = replace(QUICK, epochs=2, batch_size=8)
result = finetune(model, damaged(model), data(model), short, provider="cpu", threads=1)
onnx.save(result.model, f"{sys.argv[1]}/{os.environ['RANK']}.onnx")
"""

DIVIDED = """
import os, sys
from dataclasses import replace
import onnx
from onnxprune import compression, pipeline
from onnxprune.recover import finetune
from tests.recover.test_finetune import data, net
second = os.environ["RANK"] == "1"
allocate = compression.Run._allocate
def less(run, ranking, goals):
    return allocate(run, ranking, tuple(replace(goal, limit=0.7 * goal.limit) for goal in goals))
if second:
    compression.Run._allocate = less
    finetune._Run._judged = lambda run: (0.0, 100.0)
model = net()
result = pipeline.compress(
    model, data=data(model), macs=0.7, method="l1", recover="finetune", epochs=4, lr=1e-3, threads=1,
    calibration=60, provider="cpu",
)
onnx.save(result.model, f"{sys.argv[1]}/{os.environ['RANK']}.onnx")
result.save_plan(f"{sys.argv[1]}/{os.environ['RANK']}.json")
"""


def in_two_processes(script: str, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    workers = []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root),
        }  # fmt: skip
        workers.append(
            subprocess.Popen([sys.executable, "-c", script, str(folder)], env=environment, cwd=root)
        )
    try:
        assert [worker.wait(120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    in_two_processes(WORKER, tmp_path)
    first, second = (onnx.load(tmp_path / f"{rank}.onnx") for rank in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    model = net()
    fresh = data(model, seed=9)
    before, after = (fidelity(m, model, fresh, provider="cpu") for m in (damaged(model), first))
    assert after.kl < before.kl


def test_the_first_process_decides_for_all(tmp_path: Path) -> None:
    """The second one has another plan and would end early, as other clocks and roundings may have it."""
    in_two_processes(DIVIDED, tmp_path)
    first, second = ((tmp_path / f"{rank}.onnx").read_bytes() for rank in range(2))
    assert first == second
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
