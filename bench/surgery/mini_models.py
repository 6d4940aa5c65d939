"""Small torch networks of the families that people export: as their authors write them, only narrow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Conv, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def head(channels: int) -> nn.Sequential:
    """Global pooling and a classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def vgg() -> nn.Module:
    """Convolutions, a flatten over positions, dense layers."""
    layers = [block(3, 16), block(16, 16), nn.MaxPool2d(2), block(16, 32), block(32, 32), nn.MaxPool2d(2)]
    dense = [nn.Flatten(), nn.Linear(32 * 64, 48), nn.ReLU(), nn.Dropout(), nn.Linear(48, CLASSES)]
    return nn.Sequential(*layers, *dense)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut, projected where it must be."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            block(inputs, inner, 1), block(inner, inner, 3, stride),
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        projected = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else projected

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet() -> nn.Module:
    """Residual joins."""
    return nn.Sequential(
        block(3, 16), Bottleneck(16, 8, 32, 1), Bottleneck(32, 8, 32, 1), Bottleneck(32, 16, 48, 2),
        Bottleneck(48, 16, 48, 1), head(48),
    )  # fmt: skip


class Inverted(nn.Module):
    """MobileNetV3: expand, depthwise, squeeze and excite, project."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden))
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, hidden // 4, 1), nn.Conv2d(hidden // 4, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm(self.depthwise(F.hardswish(self.expand(x)))))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.project(y * gate)


def mobilenet() -> nn.Module:
    """Gates and depthwise convolutions."""
    return nn.Sequential(block(3, 16, stride=2), Inverted(16, 48), Inverted(16, 64), head(16))


class Dense(nn.Module):
    """A dense layer: norm, ReLU, 1x1, norm, ReLU, 3x3, put beside its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.body = nn.Sequential(block(inputs, 2 * growth, 1), nn.Conv2d(2 * growth, growth, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(F.relu(self.norm(x)))], 1)


def densenet() -> nn.Module:
    """Concatenations of concatenations."""
    return nn.Sequential(
        block(3, 16), Dense(16, 8), Dense(24, 8), Dense(32, 8), block(40, 20, 1), nn.AvgPool2d(2),
        Dense(20, 8), Dense(28, 8), head(36),
    )  # fmt: skip


class Inception(nn.Module):
    """Branches of four kinds side by side."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one = block(inputs, 8, 1)
        self.three = nn.Sequential(block(inputs, 8, 1), block(8, 16, 3))
        self.five = nn.Sequential(block(inputs, 4, 1), block(4, 8, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), block(inputs, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


def inception() -> nn.Module:
    """Concatenated branches."""
    return nn.Sequential(block(3, 16), Inception(16), nn.MaxPool2d(2), Inception(40), head(40))


class UNet(nn.Module):
    """Down and up again with skips: once by ConvTranspose, once by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = block(3, 12), block(12, 24), block(24, 32)
        self.up = nn.ConvTranspose2d(32, 24, 2, 2)
        self.d, self.e = block(48, 16), block(28, 12)
        self.last = nn.Conv2d(12, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up(c), b], 1))
        wide = F.interpolate(d, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(self.e(torch.cat([wide, a], 1)))


class Csp(nn.Module):
    """C2f: split, a chain of blocks on one half, everything side by side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.last = block(inputs, outputs, 1), block(2 * outputs, outputs, 1)
        self.chain = nn.ModuleList([block(outputs // 2, outputs // 2) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for entry in self.chain:
            parts.append(parts[-1] + entry(parts[-1]))
        return self.last(torch.cat(parts, 1))


def csp() -> nn.Module:
    """Splits and concatenations."""
    return nn.Sequential(block(3, 16, stride=2), Csp(16, 24), block(24, 32, stride=2), Csp(32, 32), head(32))


class Shuffle(nn.Module):
    """ShuffleNetV2: half passes, half is transformed, then channels are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        depthwise = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.body = nn.Sequential(block(half, half, 1), depthwise, nn.BatchNorm2d(half), block(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([left, self.body(right)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shuffle() -> nn.Module:
    """Channel shuffles."""
    return nn.Sequential(
        block(3, 16), Shuffle(16), Shuffle(16), block(16, 32, 1), nn.MaxPool2d(2), Shuffle(32), Shuffle(32),
        block(32, 40, 1), head(40),
    )  # fmt: skip


class ConvNext(nn.Module):
    """Depthwise 7x7, LayerNorm over the last axis, two dense layers, a scale for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """Channels last between transposes; only the hidden width can go."""
    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), ConvNext(16), ConvNext(16), head(16))


class Attention(nn.Module):
    """Multi-head attention from one projection of queries, keys and values."""

    def __init__(self, width: int, heads: int, *, fused: bool, positions: int = 0) -> None:
        super().__init__()
        self.heads, self.size, self.fused = heads, width // heads, fused
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(heads, positions, positions)) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q * self.size**-0.5) @ k.transpose(-2, -1)
            y = (scores if self.bias is None else scores + self.bias).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, c))


class Encoder(nn.Module):
    """Attention and a feed-forward part, each normalised before and added."""

    def __init__(self, width: int, heads: int, *, fused: bool, positions: int = 0) -> None:
        super().__init__()
        self.attention = Attention(width, heads, fused=fused, positions=positions)
        self.a, self.b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.a(x))
        return x + self.feed(self.b(x))


class ViT(nn.Module):
    """Patches, a class token, positions, encoders."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token, self.place = (
            nn.Parameter(torch.randn(1, 1, width)),
            nn.Parameter(torch.randn(1, 17, width)),
        )
        self.layers = nn.Sequential(Encoder(width, 4, fused=True), Encoder(width, 4, fused=True))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1) + self.place
        return self.last(self.norm(self.layers(y))[:, 0])


class Window(nn.Module):
    """Swin: attention inside windows of 4 x 4, shifted where asked, with a bias for each position."""

    def __init__(self, width: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.encoder = Encoder(width, 4, fused=False, positions=16)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        y = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        y = self.encoder(y).view(n, h // 4, w // 4, 4, 4, c)
        x = y.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class Swin(nn.Module):
    """Windows, and a merge of 2 x 2 patches between two stages."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.first = nn.Sequential(Window(width, 0), Window(width, 2))
        self.merge = nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False))
        self.second = Window(2 * width, 0)
        self.norm, self.last = nn.LayerNorm(2 * width), nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.patches(x).permute(0, 2, 3, 1))
        corners = [y[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        y = self.second(self.merge(torch.cat(corners, -1)))
        return self.last(self.norm(y).mean((1, 2)))


class Bert(nn.Module):
    """Token and position embeddings, separate projections, norms after the joins."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.words, self.places = nn.Embedding(50, width), nn.Embedding(12, width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.pool, self.last = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def split(self, x: Tensor) -> Tensor:
        """Heads on axis 1."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norms[0](self.words(ids) + self.places(torch.arange(ids.shape[1])))
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        weights = (q @ k.transpose(-1, -2) / (q.shape[-1] ** 0.5)).softmax(-1)
        context = (weights @ v).permute(0, 2, 1, 3).contiguous()
        x = self.norms[1](x + self.o(context.view(x.shape)))
        x = self.norms[2](x + self.down(F.gelu(self.up(x))))
        return self.last(torch.tanh(self.pool(x[:, 0])))


@dataclass(frozen=True)
class Mini:
    """A network, its input, the share of its MACs that it is pruned to, and the opset that it needs."""

    make: Callable[[], nn.Module]
    macs: float = 0.5
    tokens: bool = False
    least_opset: int = 11

    def build(self) -> tuple[nn.Module, Tensor]:
        """The network with random weights and statistics, and an input."""
        torch.manual_seed(0)
        model = self.make().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.normal_(module.running_mean, 0.0, 0.3)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
        return model, torch.randint(0, 50, (1, 12)) if self.tokens else torch.randn(1, 3, 32, 32)


MINIS = {
    "vgg": Mini(vgg),
    "resnet": Mini(resnet),
    "mobilenetv3": Mini(mobilenet),
    "densenet": Mini(densenet),
    "inception": Mini(inception),
    "unet": Mini(UNet),
    "csp": Mini(csp),
    "shuffle": Mini(shuffle),
    "convnext": Mini(convnext),
    "vit": Mini(ViT, 0.6, least_opset=14),
    "swin": Mini(Swin, 0.6),
    "bert": Mini(Bert, 0.6, tokens=True),
}
