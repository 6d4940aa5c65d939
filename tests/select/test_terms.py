"""The data terms against their definitions, with the whole design matrix built."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxprune.errors import UsageError
from onnxprune.select import hsic
from onnxprune.select.contribution import contribution_term, pooled_contribution_term
from onnxprune.select.hsic import hsic_statistics
from onnxprune.select.penalties import L1
from onnxprune.select.problem import term_value
from onnxprune.select.solver import solve


def naive_design(features: np.ndarray, blocks: list[np.ndarray]) -> np.ndarray:
    """Centred, normalised kernels as columns (sum of n_b^2, p)."""
    samples, units = features.shape[:2]
    columns = []
    for k in range(units):
        x = features[:, k].reshape(samples, -1)
        distances = ((x[:, None] - x[None]) ** 2).sum(axis=2)
        pairs = np.sort(distances[np.triu_indices(samples, 1)])
        width = pairs[(len(pairs) - 1) // 2]
        kernel = np.exp(-distances / (2 * width))
        parts = []
        for block in blocks:
            centre = np.eye(len(block)) - 1 / len(block)
            parts.append((centre @ kernel[np.ix_(block, block)] @ centre).ravel())
        column = np.concatenate(parts)
        columns.append(column / np.linalg.norm(column))
    return np.stack(columns, axis=1)


def naive_response(labels: np.ndarray, cls: int, outside: float, blocks: list[np.ndarray]) -> np.ndarray:
    weight = np.where(labels == cls, 1.0, outside)
    kernel = weight[:, None] * (labels[:, None] == labels) * weight
    parts = []
    for block in blocks:
        centre = np.eye(len(block)) - 1 / len(block)
        parts.append((centre @ kernel[np.ix_(block, block)] @ centre).ravel())
    column = np.concatenate(parts)
    return column / np.linalg.norm(column)


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 41)
    features = rng.standard_normal((41, 6, 4)) + 0.8 * labels[:, None, None] * rng.standard_normal((6, 1))
    return features, labels


@pytest.mark.parametrize("outside", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("pooled", [False, True])
def test_hsic_is_the_kernel_regression(
    sample: tuple[np.ndarray, np.ndarray], outside: float, pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = sample
    features = features[:, :, 0] if pooled else features
    # Many small chunks, the last one ragged.
    monkeypatch.setattr(hsic, "_CHUNK", 6 * 41 * 7)
    everything = [np.arange(41)]
    design = naive_design(features, everything)
    responses = np.stack([naive_response(labels, c, outside, everything) for c in range(3)], axis=1)
    term = hsic_statistics(features, labels, 3).classwise(outside=outside)
    np.testing.assert_allclose(term.quadratic.numpy(), design.T @ design, atol=1e-12)
    np.testing.assert_allclose(term.linear.numpy(), design.T @ responses, atol=1e-12)
    b = np.abs(np.random.default_rng(1).standard_normal((6, 3)))
    expected = 0.5 * ((responses - design @ b) ** 2).sum()
    assert term_value(term, torch.as_tensor(b)) == pytest.approx(expected, rel=1e-12)


def test_hsic_in_blocks_and_shards(sample: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = sample
    order = np.argsort(labels, kind="stable")
    blocks = [np.sort(order[part::4]) for part in range(4)]
    design = naive_design(features, blocks)
    statistics = hsic_statistics(features, labels, 3, block=11)
    term = statistics.classwise()
    np.testing.assert_allclose(term.quadratic.numpy(), design.T @ design, atol=1e-12)
    responses = np.stack([naive_response(labels, c, 0.0, blocks) for c in range(3)], axis=1)
    np.testing.assert_allclose(term.linear.numpy(), design.T @ responses, atol=1e-12)
    doubled = (statistics + statistics).classwise()
    torch.testing.assert_close(doubled.linear, term.linear)
    torch.testing.assert_close(doubled.quadratic, term.quadratic)


def test_hsic_one_response_is_the_label_kernel(sample: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = sample
    everything = [np.arange(41)]
    design = naive_design(features, everything)
    response = naive_response(labels, 0, 1.0, everything)
    term = hsic_statistics(features, labels, 3).pooled()
    np.testing.assert_allclose(term.linear.numpy()[:, 0], design.T @ response, atol=1e-12)
    assert term.constant == 0.5


def test_hsic_with_dead_units_absent_classes_and_mostly_zero_features() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 30)
    features = rng.standard_normal((30, 4))
    features[:, 1] = 3.0
    features[:, 2] = np.where(np.arange(30) < 4, rng.random(30), 0.0)
    term = hsic_statistics(features, labels, 5).classwise()
    np.testing.assert_allclose(term.quadratic.diagonal().numpy(), [1, 0, 1, 1], atol=1e-12)
    assert bool((term.quadratic[1] == 0).all())
    assert bool((term.linear[1] == 0).all())
    assert bool((term.linear[:, 2:] == 0).all())
    assert term.constant == 1.0
    lonely = hsic_statistics(features, np.zeros(30, int), 1)
    assert lonely.pooled().constant == 0.0
    assert bool((lonely.pooled().linear == 0).all())


def test_hsic_does_not_depend_on_the_order_of_samples(sample: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = sample
    order = np.random.default_rng(3).permutation(41)
    one = hsic_statistics(features, labels, 3).classwise()
    two = hsic_statistics(features[order], labels[order], 3).classwise()
    torch.testing.assert_close(one.quadratic, two.quadratic)
    torch.testing.assert_close(one.linear, two.linear)


def test_hsic_in_single_precision_is_close(sample: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = sample
    one = hsic_statistics(features + 50, labels, 3).classwise()
    two = hsic_statistics(features + 50, labels, 3, dtype=torch.float32).classwise()
    assert two.linear.dtype == torch.float32
    np.testing.assert_allclose(two.quadratic.numpy(), one.quadratic.numpy(), atol=1e-3)


def test_hsic_refuses_what_does_not_fit() -> None:
    x = np.zeros((5, 2))
    for labels, classes in ((np.zeros(4, int), 2), (np.full(5, 2), 2), (np.full(5, -1), 2)):
        with pytest.raises(UsageError):
            hsic_statistics(x, labels, classes)
    with pytest.raises(UsageError):
        hsic_statistics(np.full((5, 2), np.nan), np.zeros(5, int), 2)
    with pytest.raises(UsageError):
        hsic_statistics(x, np.zeros(5, int), 2, block=1)
    with pytest.raises(UsageError):
        hsic_statistics(x, np.zeros(5, int), 2).classwise(outside=2.0)


def contributions(seed: int = 0) -> np.ndarray:
    """Z (C, samples * outputs, p): what each unit contributes, class by class."""
    return np.random.default_rng(seed).standard_normal((3, 50, 5)) + 0.5


def test_contribution_is_the_reconstruction() -> None:
    z = contributions()
    gram = np.einsum("csk,csl->ckl", z, z)
    y = z.sum(axis=2)
    b = np.random.default_rng(1).standard_normal((5, 3))
    errors = [((y[c] - z[c] @ b[:, c]) ** 2).sum() / (y[c] ** 2).sum() for c in range(3)]
    term = contribution_term(gram)
    assert term_value(term, torch.as_tensor(b)) == pytest.approx(0.5 * sum(errors), rel=1e-12)
    weights = np.array([1.0, 2.0, 0.5])
    weighted = contribution_term(gram, class_weights=weights)
    assert term_value(weighted, torch.as_tensor(b)) == pytest.approx(0.5 * weights @ errors, rel=1e-12)
    assert term_value(term, torch.ones(5, 3, dtype=torch.float64)) == pytest.approx(0.0, abs=1e-12)
    nearly = solve(term, L1(), 1e-9, tolerance=1e-10).coefficients
    torch.testing.assert_close(nearly, torch.ones_like(nearly), rtol=0, atol=1e-5)


def test_contribution_towards_another_target() -> None:
    z = contributions(2)
    y = np.random.default_rng(3).standard_normal((3, 50))
    gram = np.einsum("csk,csl->ckl", z, z)
    term = contribution_term(gram, cross=np.einsum("csk,cs->kc", z, y), energy=(y**2).sum(axis=1))
    b = np.random.default_rng(4).standard_normal((5, 3))
    expected = 0.5 * sum(((y[c] - z[c] @ b[:, c]) ** 2).sum() / (y[c] ** 2).sum() for c in range(3))
    assert term_value(term, torch.as_tensor(b)) == pytest.approx(expected, rel=1e-12)


def test_contribution_with_one_response() -> None:
    z = contributions(5)
    gram = np.einsum("csk,csl->ckl", z, z)
    flat = z.reshape(150, 5)
    b = np.random.default_rng(6).standard_normal(5)
    expected = 0.5 * ((flat.sum(axis=1) - flat @ b) ** 2).sum() / (flat.sum(axis=1) ** 2).sum()
    term = pooled_contribution_term(gram)
    assert term.classes == 1
    assert term_value(term, torch.as_tensor(b[:, None])) == pytest.approx(expected, rel=1e-12)


def test_contribution_of_absent_and_cancelling_classes() -> None:
    z = contributions(7)
    z[1] = 0.0
    z[2, :, 0] = -z[2, :, 1:].sum(axis=1)
    gram = np.einsum("csk,csl->ckl", z, z)
    term = contribution_term(gram)
    assert bool(torch.isfinite(term.quadratic).all())
    assert bool((term.quadratic[1] == 0).all())
    assert float(term.quadratic[2].abs().max()) <= 2e6
    nothing = pooled_contribution_term(np.zeros((2, 3, 3)))
    assert bool((nothing.linear == 0).all())
    with pytest.raises(UsageError):
        contribution_term(np.zeros((3, 3)))
    with pytest.raises(UsageError):
        contribution_term(gram, cross=np.zeros((3, 5)))
