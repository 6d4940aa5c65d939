"""The baselines of the paper's table: their published sizes, their files, the images that they learn from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bench.paper.data import PAD, Images, augmented, normalised, training_batches
from bench.paper.export import to_onnx
from bench.paper.models import POOL, VGG, DenseNet, GoogLeNet, ResNet, initialise
from onnxprune.evaluate.preprocess import preprocess_of
from onnxprune.graph.analysis import analyze_graph
from onnxprune.profile.session import open_session

SMALL = {
    "vgg": lambda: VGG(4, (4, POOL, 6, 6)),
    "resnet": lambda: ResNet(4, depth=8, width=4),
    "googlenet": lambda: GoogLeNet(4, 6, ((4, 4, 5, 3, 4, 3), POOL, (4, 3, 4, 3, 3, 3))),
    "densenet": lambda: DenseNet(4, depth=10, growth=3),
}


def layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def macs(model: nn.Module) -> int:
    """Multiply-accumulates of Convs and layers for one 32 x 32 image."""
    total = 0

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        total += output[0].numel() * weight[0].numel()

    for module in layers(model):
        module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return total


@pytest.mark.parametrize(
    ("network", "millions", "mega"),
    [(VGG, 14.98, 313.7), (ResNet, 1.72, 252.9), (GoogLeNet, 6.15, 1521), (DenseNet, 1.04, 282.0)],
)
def test_sizes_are_those_that_the_literature_states(
    network: type[nn.Module], millions: float, mega: float
) -> None:
    model = network(10)
    assert sum(layer.weight.numel() for layer in layers(model)) / 1e6 == pytest.approx(millions, rel=0.004)
    assert macs(model) / 1e6 == pytest.approx(mega, rel=0.004)


@pytest.mark.parametrize("name", SMALL)
def test_files_keep_batch_norm_take_any_batch_and_can_be_pruned(name: str) -> None:
    torch.manual_seed(0)
    model = initialise(SMALL[name]())
    inputs = torch.randn(5, 3, 16, 16)
    model.train()(inputs)  # statistics that are not those of the start
    norms = sum(isinstance(each, nn.BatchNorm2d | nn.BatchNorm1d) for each in model.modules())
    exported = to_onnx(model, 16)
    onnx.checker.check_model(exported, full_check=True)
    assert Counter(node.op_type for node in exported.graph.node)["BatchNormalization"] == norms
    found = open_session(exported, provider="cpu").run({"images": inputs.numpy()})["scores"]
    with torch.no_grad():
        np.testing.assert_allclose(found, model.eval()(inputs).numpy(), rtol=1e-4, atol=1e-5)
    recorded = preprocess_of(exported)
    assert recorded is not None and recorded.mean is not None
    graph = analyze_graph(exported)
    assert sum(len(group.units) for group in graph.groups) > 10


def test_every_image_is_a_crop_of_itself_mirrored_or_not() -> None:
    pixels = torch.randint(0, 256, (60, 3, 6, 9), dtype=torch.uint8)
    changed = augmented(pixels, torch.Generator().manual_seed(1))
    seen = set()
    for before, after in zip(pixels.numpy(), changed.numpy(), strict=True):
        places = []
        for mirrored in (False, True):
            padded = np.pad(before, ((0, 0), (PAD, PAD), (PAD, PAD)))
            for top in range(2 * PAD + 1):
                for left in range(2 * PAD + 1):
                    crop = padded[:, top : top + 6, left : left + 9]
                    if np.array_equal(crop[:, :, ::-1] if mirrored else crop, after):
                        places.append((mirrored, top, left))
        assert len(places) == 1
        seen.add(places[0])
    assert {mirrored for mirrored, _, _ in seen} == {False, True}
    assert len({top for _, top, _ in seen}) == len({left for _, _, left in seen}) == 2 * PAD + 1


def test_an_epoch_is_drawn_from_its_number_and_shows_every_image_once() -> None:
    pixels = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 3, 12, 12).contiguous()
    images = Images(pixels, torch.arange(20))
    epochs = [list(training_batches(images, 5, 3, epoch)) for epoch in (0, 0, 1)]
    labels = [torch.cat([label for _, label in epoch]) for epoch in epochs]
    assert sorted(labels[0].tolist()) == list(range(20))
    assert torch.equal(labels[0], labels[1]) and not torch.equal(labels[0], labels[2])
    inputs, numbers = epochs[0][0]
    middle = normalised(images.pixels[numbers])[:, :, 6, 6]
    assert torch.equal(inputs[:, :, 6, 6], middle)
