"""Images for training: all of them on the device as uint8, changed there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.errors import DataError
from onnxprune.evaluate.datasets import open_source
from onnxprune.evaluate.preprocess import Preprocess

PREPROCESS = Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
"""Of the baselines that are trained here; written into their files."""

PAD = 4
"""Pixels of zeros around an image before it is cropped back to its size."""

_READ = 1000


@dataclass(frozen=True)
class Images:
    """``pixels`` (n, 3, H, W) uint8 and ``labels`` (n,) int64 on one device."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


def load_images(path: Path, device: torch.device) -> Images:
    """Read a labelled set of RGB images of one size, such as a Parquet file.

    Raises DataError where it has no labels, or holds anything else.
    """
    source = open_source(path)
    if source.labels is None:
        raise DataError(f"{path} has no labels", hint="training a baseline needs them")
    parts = []
    for start in range(0, len(source), _READ):
        read = source.read(np.arange(start, min(start + _READ, len(source))))
        parts.append(
            np.stack(
                [np.asarray(image if isinstance(image, np.ndarray) else image.decode()) for image in read]
            )
        )
    pixels = np.concatenate(parts)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise DataError(f"{path} holds {pixels.dtype} {pixels.shape[1:]}, not RGB images")
    return Images(
        torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(device),
        torch.from_numpy(np.asarray(source.labels, np.int64)).to(device),
    )


def normalised(pixels: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 as the network's input, channels innermost in memory."""
    mean, std = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1)
        for values in (PREPROCESS.mean, PREPROCESS.std)
    )
    return ((pixels.float() / 255.0 - mean) / std).contiguous(memory_format=torch.channels_last)


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored or not, and cropped at random from itself with `PAD` pixels around it."""
    count, _, height, width = pixels.shape
    device = pixels.device
    offsets = torch.randint(0, 2 * PAD + 1, (2, count, 1), generator=generator, device=device)
    mirrored = torch.rand(count, 1, generator=generator, device=device) < 0.5
    rows = torch.arange(height, device=device) + offsets[0]
    columns = torch.arange(width, device=device).expand(count, -1)
    columns = torch.where(mirrored, columns.flip(1), columns) + offsets[1]
    padded = F.pad(pixels, (PAD,) * 4)
    each = torch.arange(count, device=device).view(-1, 1, 1)
    # Indices beside a slice put the sliced axis last: (n, H, W, 3).
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def training_batches(images: Images, size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, changed, normalised batches of one epoch; the last, smaller one is left out.

    All randomness comes from ``seed`` and ``epoch``, so that a resumed run needs no generator's state.
    """
    generator = torch.Generator(images.pixels.device).manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(len(images), generator=generator, device=images.pixels.device)
    size = min(size, len(images))
    for start in range(0, len(images) - size + 1, size):
        chosen = order[start : start + size]
        yield normalised(augmented(images.pixels[chosen], generator)), images.labels[chosen]
