"""Training a baseline: the standard recipe for CIFAR, resumed from its last epoch when it was interrupted."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.paper.data import Images, normalised, training_batches
from bench.paper.models import initialise
from onnxprune.recover.training.precision import has_bfloat16, mixed_precision

CHECKPOINT = "training.safetensors"
_KEY = "bench.paper"
_TEST_BATCH = 500


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum; the rate rises for ``warm_up`` epochs, then follows half a cosine to zero.

    ``smoothing`` is that of the labels; scales and shifts of BatchNorm and biases don't decay.
    """

    epochs: int = 200
    batch_size: int = 128
    rate: float = 0.1
    warm_up: int = 5
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.0


@dataclass(frozen=True)
class Trained:
    """How training went: mean loss of the last epoch, seconds in all, interruptions left out."""

    loss: float
    seconds: float


def train(
    build: Callable[[], nn.Module],
    images: Images,
    recipe: Recipe,
    seed: int,
    folder: Path,
    log: Callable[[str], None],
) -> tuple[nn.Module, Trained]:
    """Train a network on ``images``, saved in ``folder`` after every epoch and gone on with from there."""
    device = images.pixels.device
    torch.manual_seed(seed)
    model = initialise(build()).to(device, memory_format=torch.channels_last)
    optimizer = _optimizer(model, recipe)
    first, done = _restored(model, optimizer, recipe, seed, folder)
    half = has_bfloat16(device)
    begin = time.monotonic() - done.seconds
    model.train()
    for epoch in range(first, recipe.epochs):
        losses = []
        steps = max(1, len(images) // recipe.batch_size)
        for step, (inputs, labels) in enumerate(training_batches(images, recipe.batch_size, seed, epoch)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, epoch + step / steps)
            with mixed_precision(device, half):
                scores = model(inputs)
            loss = F.cross_entropy(scores.float(), labels, label_smoothing=recipe.smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        done = Trained(float(torch.stack(losses).mean()), time.monotonic() - begin)
        _save(model, optimizer, recipe, seed, folder, epoch + 1, done)
        left = done.seconds / (epoch + 1) * (recipe.epochs - epoch - 1)
        log(f"epoch {epoch + 1}/{recipe.epochs}: loss {done.loss:.4f}, {left:.0f} s left")
    return model.eval(), done


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The rate after ``epoch`` epochs."""
    warm_up = min(recipe.warm_up, recipe.epochs / 10)
    if epoch < warm_up:
        return recipe.rate * max(epoch, 0.01) / warm_up
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * (epoch - warm_up) / (recipe.epochs - warm_up)))


def accuracy(model: nn.Module, images: Images) -> float:
    """Top-1 in percent, in single precision."""
    correct = 0
    with torch.no_grad():
        for start in range(0, len(images), _TEST_BATCH):
            part = slice(start, start + _TEST_BATCH)
            scores = model(normalised(images.pixels[part]))
            correct += int((scores.argmax(1) == images.labels[part]).sum())
    return 100.0 * correct / len(images)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    weights = [value for value in model.parameters() if value.dim() > 1]
    vectors = [value for value in model.parameters() if value.dim() <= 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": vectors}]
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum, nesterov=True)


def _save(
    model: nn.Module,
    optimizer: torch.optim.SGD,
    recipe: Recipe,
    seed: int,
    folder: Path,
    epoch: int,
    done: Trained,
) -> None:
    """Replace the checkpoint, at once."""
    tensors: dict[str, Tensor] = {f"model/{name}": value for name, value in model.state_dict().items()}
    for name, value in model.named_parameters():
        tensors[f"momentum/{name}"] = optimizer.state[value]["momentum_buffer"]
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    record = {"recipe": asdict(recipe), "seed": seed, "epoch": epoch, "trained": asdict(done)}
    partial = folder / f"{CHECKPOINT}.partial"
    save_file(own, partial, {_KEY: json.dumps(record)})
    os.replace(partial, folder / CHECKPOINT)


def _restored(
    model: nn.Module, optimizer: torch.optim.SGD, recipe: Recipe, seed: int, folder: Path
) -> tuple[int, Trained]:
    """The epoch to go on with, and how training went until there; the model and optimizer brought to it."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return 0, Trained(math.nan, 0.0)
    with safe_open(path, "pt") as stored:
        record: dict[str, Any] = json.loads(stored.metadata()[_KEY])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no mapping
    if record["recipe"] != asdict(recipe) or record["seed"] != seed:
        raise SystemExit(f"{path} is of another run: choose another folder, or remove it")
    model.load_state_dict({
        name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")
    })  # fmt: skip
    for name, value in model.named_parameters():
        moment = torch.empty_like(value).copy_(tensors[f"momentum/{name}"])
        optimizer.state[value]["momentum_buffer"] = moment.detach()
    return record["epoch"], Trained(**record["trained"])
