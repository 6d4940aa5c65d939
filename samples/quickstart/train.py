"""Makes the files of this sample: trains a small residual network on scikit-learn's digits.

``python train.py`` writes, beside itself,

* digits.onnx: the network, with BatchNorm as nodes of its own and a free batch size;
* digits.npz: ``images`` uint8 (N, 8, 8, 1) in 0..255 and ``labels`` (N,): the half of the digits that
  the training did not see.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
EPOCHS = 30
BATCH = 64


class ConvNorm(nn.Sequential):
    """A convolution with its BatchNorm."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )


class DigitNet(nn.Module):
    """Stem, one residual block, a strided convolution, global pooling, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 32)
        self.inner = ConvNorm(32, 48)
        self.outer = ConvNorm(48, 32)
        self.down = ConvNorm(32, 64, stride=2)
        self.wide = ConvNorm(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, 10) of images (N, 1, 8, 8) scaled to 0..1."""
        trunk = self.stem(images).relu()
        trunk = (trunk + self.outer(self.inner(trunk).relu())).relu()
        trunk = self.wide(self.down(trunk).relu()).relu()
        logits: torch.Tensor = self.head(trunk.mean((2, 3)))
        return logits


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The batch, moved by up to one pixel each way."""
    down, right = (int(torch.randint(-1, 2, (), generator=generator)) for _ in range(2))
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]


def train(images: torch.Tensor, labels: torch.Tensor) -> DigitNet:
    """A network fitted to images (N, 1, 8, 8) and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    net = DigitNet().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(net(shifted(images[chosen], generator)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    seen, unseen = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=0)

    def tensors(index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(images[index]).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels[index])

    net = train(*tensors(seen))
    with torch.no_grad():
        inputs, truth = tensors(unseen)
        print(
            f"accuracy on {len(unseen)} unseen digits: {(net(inputs).argmax(1) == truth).float().mean():.2%}"
        )

    torch.onnx.export(
        net,
        (torch.zeros(1, 1, 8, 8),),
        HERE / "digits.onnx",
        dynamo=False,
        opset_version=17,
        # In training mode the exporter does not fold BatchNorm into the convolutions; the network
        # itself is in evaluation mode, which its nodes keep.
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
    )
    np.savez_compressed(HERE / "digits.npz", images=images[unseen], labels=labels[unseen])


if __name__ == "__main__":
    main()
