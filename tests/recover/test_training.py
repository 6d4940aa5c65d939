"""The parts of fine-tuning against plain restatements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from onnxprune.evaluate.datasets import load_dataset
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.plan import keep_all
from onnxprune.graph.rewrite import rewrite
from onnxprune.profile.spec import TensorSpec
from onnxprune.recover.executor import Executor
from onnxprune.recover.training.augment import Augmentation, image_augmentation
from onnxprune.recover.training.checkpoint import load_checkpoint, save_checkpoint
from onnxprune.recover.training.distill import Join, divergence, residual_joins
from onnxprune.recover.training.schedule import WARM_UP, Horizon, ema_decay, learning_rate
from onnxprune.recover.training.state import Check
from tests.recover.test_finetune import net


def test_the_rate_rises_then_falls_to_zero() -> None:
    assert learning_rate(2.0, WARM_UP) == pytest.approx(2.0)
    assert learning_rate(2.0, WARM_UP / 2) == pytest.approx(1.0)
    assert learning_rate(2.0, (1 + WARM_UP) / 2) == pytest.approx(1.0)
    assert learning_rate(2.0, 1.0) == pytest.approx(0.0)


def test_the_first_bound_met_ends_the_run() -> None:
    both = Horizon(100, 10.0)
    assert both.progress(50, 1.0) == 0.5
    assert both.progress(50, 7.0) == 0.7
    assert both.progress(200, 1.0) == 1.0
    assert Horizon(None, None).progress(10**6, 1e9) == 0.0
    assert [ema_decay(0.99, step) for step in (0, 10**6)] == [0.1, 0.99]


def test_every_image_is_a_flip_and_a_shift_with_zeros() -> None:
    images = np.random.default_rng(0).standard_normal((40, 2, 16, 24)).astype(np.float32)
    changed = Augmentation(2, 3)(images, np.random.default_rng(1))
    seen = set()
    for before, after in zip(images, changed, strict=True):
        found = []
        for flip in (False, True):
            source = before[:, :, ::-1] if flip else before
            for down in range(-2, 3):
                for right in range(-3, 4):
                    padded = np.pad(source, ((0, 0), (4, 4), (4, 4)))
                    if np.array_equal(padded[:, 4 - down : 20 - down, 4 - right : 28 - right], after):
                        found.append((flip, down, right))
        assert len(found) == 1
        seen.add(found[0])
    assert len({flip for flip, _, _ in seen}) == 2
    assert {down for _, down, _ in seen} == set(range(-2, 3))
    assert {right for _, _, right in seen} == set(range(-3, 4))


def test_channels_last_images_are_changed_on_their_own_axes() -> None:
    images = np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32)
    first = Augmentation(2, 3)(images, np.random.default_rng(1))
    last = Augmentation(1, 2)(images.transpose(0, 2, 3, 1), np.random.default_rng(1))
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), first)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((None, 3, 16, 16), (2, 3)), ((None, 16, 16, 3), (1, 2)), ((None, 7, 16, 16), None), ((None, 20), None)],
)
def test_only_images_are_augmented(shape: tuple[int | None, ...], axes: tuple[int, int] | None) -> None:
    spec = TensorSpec("x", np.dtype(np.float32), shape)
    dataset = load_dataset(np.zeros((2, *shape[1:]), np.float32), spec)
    found = image_augmentation(dataset)
    assert found == (None if axes is None else Augmentation(*axes))


def test_the_divergence_is_the_sum_written_out() -> None:
    random = np.random.default_rng(0)
    z, y = random.standard_normal((2, 5, 3))
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (y, z))
    want = (p * np.log(p / q)).sum(1).mean()
    assert float(divergence(torch.from_numpy(z), torch.from_numpy(y))) == pytest.approx(want)


def test_joins_are_compared_on_the_channels_that_stay() -> None:
    graph = analyze_graph(net())
    add = next(node.output[0] for node in graph.model.graph.node if node.op_type == "Add")
    (whole,) = residual_joins(graph, keep_all(graph))
    assert whole == Join(add, (None,) * 4)
    units = graph.axes[add][1]
    assert units is not None
    keep = keep_all(graph).keep.copy()
    keep[units[[1, 4]]] = False
    plan = replace(keep_all(graph), keep=keep)
    (join,) = residual_joins(graph, plan)
    inputs = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before, after = (
        Executor(model, outputs=[add])(inputs)[add] for model in (graph.model, rewrite(graph, plan))
    )
    assert torch.equal(join.common(before), before[:, [0, 2, 3, 5]])
    assert join.common(before).shape == after.shape
    assert residual_joins(graph, plan, 0) == ()


def test_a_checkpoint_comes_back_and_a_partial_write_is_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    tensors = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3)}
    save_checkpoint(tmp_path / "new", tensors, {"step": 4})
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["finetune.safetensors"]
    loaded = load_checkpoint(tmp_path / "new")
    assert loaded is not None
    assert loaded[1] == {"step": 4}
    assert all(torch.equal(loaded[0][name], value) for name, value in tensors.items())


def test_a_look_is_better_by_agreement_and_within_its_error_by_divergence() -> None:
    def look(agreement: float, kl: float) -> Check:
        return Check(1, 0.1, 1.0, 1e-3, agreement, kl, 400)

    start = look(90.0, 0.5)  # its standard error is 1.5 points
    assert look(92.0, 0.5).beats(start, start)
    assert not look(92.0, 0.6).beats(start, start)
    assert not look(91.0, 0.6).beats(start, start)
    assert look(90.0, 0.4).beats(start, start)
    assert not look(89.5, 0.1).beats(start, start)
    assert look(91.0, 0.1).beats(look(92.0, 0.2), start)
    assert not look(90.0, 0.1).beats(look(92.0, 0.2), start)
