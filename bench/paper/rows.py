"""The rows: networks, budgets, and the figures that were published for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from bench.paper.models import VGG, DenseNet, GoogLeNet, ResNet


@dataclass(frozen=True)
class Published:
    """A published result in percent: top-1, its change in points, and what was removed; None: not stated."""

    method: str
    top1: float | None = None
    change: float | None = None
    params: float | None = None
    macs: float | None = None


@dataclass(frozen=True)
class Row:
    """A network on a data set, and the shares of its multiply-accumulates and parameters to keep.

    ``build`` makes the untrained network for a number of classes; None: it is loaded from a file.
    """

    name: str
    title: str
    build: Callable[[int], nn.Module] | None
    macs: float | None
    params: float | None
    published: tuple[Published, ...] = ()
    data: str = "cifar10"
    classes: int = 10


def hrank(top1: float, macs: float) -> Published:
    return Published("HRank (CVPR 2020)", top1, macs=macs)


CIFAR10 = (
    Row(
        "vgg16", "VGG16", VGG, 0.39, 0.15,
        (
            Published("structured lasso (arXiv 2502.09125)", 94.10, 0.14, 85, 61),
            Published("APIB (ICCV 2023)", None, 0.40, 76, 60),
        ),
    ),
    Row(
        "resnet56", "ResNet-56", None, 0.47, None,
        (
            Published("DepGraph (CVPR 2023)", 93.77, 0.24, None, 53),
            hrank(93.17, 50),
        ),
    ),
    Row("resnet110", "ResNet-110", ResNet, 0.62, None, (hrank(94.23, 38),)),
    Row("googlenet", "GoogLeNet", GoogLeNet, 0.30, None, (hrank(94.07, 70),)),
    Row("densenet40", "DenseNet-40", DenseNet, 0.59, None, (hrank(94.24, 41),)),
)  # fmt: skip

ROWS = (
    *CIFAR10,
    *(
        replace(row, name=f"{row.name}-cifar100", data="cifar100", classes=100, published=())
        for row in CIFAR10
        if row.build is not None
    ),
)
