"""The CIFAR networks of the pruning literature, in the variants that it counts.

At their full sizes they have the parameters and multiply-accumulates of HRank (Lin et al., CVPR 2020);
smaller ones serve the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOL = "M"
VGG16 = (64, 64, POOL, 128, 128, POOL, *[256] * 3, POOL, *[512] * 3, POOL, *[512] * 3)


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Conv of stride 1 that keeps the size, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def pooled(x: Tensor) -> Tensor:
    """Mean over all positions: (n, C, H, W) -> (n, C)."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


class VGG(nn.Module):
    """VGG with BatchNorm; before the scores, one hidden layer as wide as the last Conv."""

    def __init__(self, classes: int, layers: Sequence[int | str] = VGG16) -> None:
        """``layers`` are output channels, or `POOL`."""
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for entry in layers:
            if isinstance(entry, str):
                stages.append(nn.MaxPool2d(2))
            else:
                stages.append(conv_norm_relu(channels, entry))
                channels = entry
        self.features = nn.Sequential(*stages)
        self.hidden = nn.Sequential(
            nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.ReLU(inplace=True)
        )
        self.scores = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, classes)."""
        return self.scores(self.hidden(pooled(self.features(x))))


class _Residual(nn.Module):
    """Two Convs beside a shortcut without weights (option A: every second pixel, zeros for new channels)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        if self.more:
            before = self.more // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.more - before))
        return F.relu(x + y)


class ResNet(nn.Module):
    """The residual networks of He et al. (2016) for CIFAR: 6 n + 2 layers in three stages of n blocks."""

    def __init__(self, classes: int, depth: int = 110, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        blocks = []
        channels = width
        for stage in range(3):
            for index in range((depth - 2) // 6):
                outputs = width * 2**stage
                blocks.append(_Residual(channels, outputs, 2 if stage and not index else 1))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.scores = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, classes)."""
        return self.scores(pooled(self.blocks(F.relu(self.stem_norm(self.stem(x))))))


class _Inception(nn.Module):
    """Four branches side by side; the 5 x 5 one is two Convs of 3 x 3."""

    def __init__(self, inputs: int, one: int, red3: int, three: int, red5: int, five: int, pool: int) -> None:
        super().__init__()
        self.one = conv_norm_relu(inputs, one, 1)
        self.three = nn.Sequential(conv_norm_relu(inputs, red3, 1), conv_norm_relu(red3, three))
        self.five = nn.Sequential(
            conv_norm_relu(inputs, red5, 1), conv_norm_relu(red5, five), conv_norm_relu(five, five)
        )
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm_relu(inputs, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


GOOGLENET = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    POOL,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    POOL,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
"""For each block the channels of: 1 x 1, reduction and 3 x 3, reduction and 5 x 5, 1 x 1 behind the pool."""


class GoogLeNet(nn.Module):
    """GoogLeNet for CIFAR: one 3 x 3 Conv, then inception blocks with BatchNorm."""

    def __init__(
        self, classes: int, stem: int = 192, layers: Sequence[tuple[int, ...] | str] = GOOGLENET
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = [conv_norm_relu(3, stem)]
        channels = stem
        for entry in layers:
            if isinstance(entry, str):
                stages.append(nn.MaxPool2d(3, 2, 1))
            else:
                one, red3, three, red5, five, pool = entry
                stages.append(_Inception(channels, one, red3, three, red5, five, pool))
                channels = one + three + five + pool
        self.features = nn.Sequential(*stages)
        self.scores = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, classes)."""
        return self.scores(pooled(self.features(x)))


class _Grown(nn.Module):
    """BatchNorm, ReLU, Conv; the result is appended to the input, or replaces it and is halved in size."""

    def __init__(self, inputs: int, outputs: int, *, transition: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        kernel = 1 if transition else 3
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.transition = transition

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.relu(self.norm(x)))
        return F.avg_pool2d(y, 2) if self.transition else torch.cat([x, y], 1)


class DenseNet(nn.Module):
    """DenseNet (Huang et al., 2017) in three blocks, without bottlenecks; transitions keep all channels."""

    def __init__(self, classes: int, depth: int = 40, growth: int = 12) -> None:
        super().__init__()
        channels = 2 * growth
        stages: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for block in range(3):
            for _ in range((depth - 4) // 3):
                stages.append(_Grown(channels, growth))
                channels += growth
            if block < 2:
                stages.append(_Grown(channels, channels, transition=True))
        self.features = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.scores = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, classes)."""
        return self.scores(pooled(F.relu(self.norm(self.features(x)))))


def initialise(model: nn.Module) -> nn.Module:
    """Weights of Convs and layers drawn as He et al. (2015) do; from torch's global generator."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
