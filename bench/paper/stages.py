"""The stages of a row: baseline, compression, fine-tuning. Each leaves its product, and is skipped then."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch

from bench.paper.data import load_images
from bench.paper.export import to_onnx
from bench.paper.rows import Row
from bench.paper.told import ToldProgress
from bench.paper.train import Recipe, train
from onnxprune.evaluate.datasets import Dataset, load_dataset
from onnxprune.evaluate.metrics import evaluate_against
from onnxprune.evaluate.preprocess import Preprocess, preprocess_of, record_preprocess
from onnxprune.io.save import save
from onnxprune.pipeline import compress
from onnxprune.profile.session import open_session
from onnxprune.recover.finetune import FinetuneSettings, finetune

STAGES = ("baseline", "pruned", "tuned")
IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What a network that is loaded from a file was trained with, where its file does not say."""

Figures = dict[str, Any]
Log = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What to run a row with: where the images are, on what device, and how long.

    ``train`` and ``test`` are labelled sets of images; ``baseline`` is the file of a network that is not
    trained here.
    """

    train: Path
    test: Path
    device: torch.device
    recipe: Recipe = field(default_factory=Recipe)
    tuning: FinetuneSettings = field(default_factory=lambda: FinetuneSettings(epochs=60))
    calibration: int = 1000
    baseline: Path | None = None
    threads: int | None = None

    @property
    def provider(self) -> str:
        """The device as onnxprune names it."""
        return "cuda" if self.device.type == "cuda" else "cpu"


def run(row: Row, job: Job, seed: int, folder: Path, log: Log) -> list[Figures]:
    """All stages of one row and seed; the figures that each of them left in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    stages = (_baseline, _pruned, _tuned)
    return [
        _product(folder, name, settings, partial(stage, row, job, seed, folder, log), log)
        for name, stage, settings in zip(STAGES, stages, _settings(row, job, seed), strict=True)
    ]


def _settings(row: Row, job: Job, seed: int) -> tuple[Figures, ...]:
    """What each stage's product depends on, its own settings and those before it."""
    first = {"seed": seed, "recipe": asdict(job.recipe) if row.build else None}
    second = {**first, "macs": row.macs, "params": row.params, "calibration": job.calibration}
    return first, second, {**second, "tuning": asdict(job.tuning)}


def _product(folder: Path, name: str, settings: Figures, make: Callable[[], Figures], log: Log) -> Figures:
    """The figures of a stage, from its file where it was run before."""
    path = folder / f"{name}.json"
    if path.is_file():
        stored: Figures = json.loads(path.read_text(encoding="utf-8"))
        if stored["settings"] != settings:
            raise SystemExit(f"{path} was made with other settings: choose another folder, or remove it")
        return stored
    begin = time.monotonic()
    figures = make()
    figures = {"seconds": time.monotonic() - begin, **figures, "settings": settings}
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    log(f"{name}: top-1 {figures['top1']:.2f}, {figures['seconds']:.0f} s")
    return figures


def _baseline(row: Row, job: Job, seed: int, folder: Path, log: Log) -> Figures:
    """Train the network, or take it from its file; write it as ONNX."""
    if row.build is None:
        if job.baseline is None:
            raise SystemExit(f"{row.name} is not trained here: name its file with --{row.name}")
        model = onnx.load(job.baseline)
        if preprocess_of(model) is None:
            record_preprocess(model, IMAGENET)
        seconds = 0.0
    else:
        build, classes = row.build, row.classes
        images = load_images(job.train, job.device)
        network, trained = train(lambda: build(classes), images, job.recipe, seed, folder, log)
        model, seconds = to_onnx(network, images.pixels.shape[-1]), trained.seconds
    save(model, folder / "baseline.onnx", overwrite=True)
    return {"top1": _top1(model, job), "seconds": seconds, "hardware": hardware(job.device)}


def _pruned(row: Row, job: Job, seed: int, folder: Path, log: Log) -> Figures:
    """Compress to the row's budgets, recovered in closed form."""
    result = compress(
        folder / "baseline.onnx", data=job.train, eval_data=job.test, macs=row.macs, params=row.params,
        calibration=job.calibration, provider=job.provider, threads=job.threads, seed=seed,
    )  # fmt: skip
    result.save(folder / "pruned.onnx", force=True)
    before, after = result.report.before, result.report.after
    return {
        "top1": after.metrics["top1"],
        "macs": [before.macs, after.macs],
        "params": [before.params, after.params],
        "hardware": hardware(job.device),
    }


def _tuned(row: Row, job: Job, seed: int, folder: Path, log: Log) -> Figures:
    """Fine-tune on the whole training set, from the last checkpoint where there is one."""
    original, pruned = (onnx.load(folder / f"{name}.onnx") for name in ("baseline", "pruned"))
    images = _dataset(original, job.train, job).in_memory()
    result = finetune(
        original, pruned, images, job.tuning,
        checkpoint=folder / "tuning", provider=job.provider, threads=job.threads, seed=seed,
        progress=ToldProgress(log),
    )  # fmt: skip
    record_preprocess(result.model, preprocess_of(original) or IMAGENET)
    save(result.model, folder / "tuned.onnx", overwrite=True)
    return {
        "top1": _top1(result.model, job),
        "kept": result.kept,
        "rate": result.lr,
        "steps": result.steps,
        "images": len(images),
        "seconds": result.seconds,
        "hardware": hardware(job.device),
    }


def _dataset(model: onnx.ModelProto, path: Path, job: Job) -> Dataset:
    spec = open_session(model, provider=job.provider, threads=job.threads).input
    return load_dataset(path, spec, recorded=preprocess_of(model))


def _top1(model: onnx.ModelProto, job: Job) -> float:
    """Accuracy on the whole test set, in percent."""
    dataset = _dataset(model, job.test, job)
    found = evaluate_against(model, None, dataset, provider=job.provider, threads=job.threads).metrics
    if found is None:
        raise SystemExit(f"{job.test} has no labels")
    return found.top1


def hardware(device: torch.device) -> str:
    """What a stage ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"
