"""Ridge regression against its closed form in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxprune.recover.fit import RIDGES, Sums, fit_matrix
from tests.plain import Array


def make(
    rows: int, size: int, outputs: int, *, groups: int = 1, noise: float = 0.0, seed: int = 0
) -> tuple[Array, Array, Array]:
    """(x (r, G, d), y (r, G, O), the matrix (G, d, O) that gave y)."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, groups, size)) @ random.uniform(-1, 1, (size, size))
    truth = random.standard_normal((groups, size, outputs))
    y = np.einsum("rgd,gdo->rgo", x, truth) + noise * random.standard_normal((rows, groups, outputs))
    return x, y, truth


def sums(x: Array, y: Array) -> Sums:
    total = Sums.zeros(x.shape[1], x.shape[2], y.shape[2], torch.device("cpu"))
    for part in np.array_split(np.arange(len(x)), 3):
        total.add(*(torch.from_numpy(value[part]).transpose(0, 1) for value in (x, y)))
    return total


def ridge(x: Array, y: Array, old: Array, strength: float, *, constant: bool) -> Array:
    """min |x w - y|^2 / r + s |w - old|^2 without the constant's row, group by group, by augmented rows."""
    found = []
    for group in range(x.shape[1]):
        a, b, size = x[:, group], y[:, group], x.shape[2]
        shrunk = size - 1 if constant else size
        weight = np.sqrt(len(a) * strength * np.mean((a[:, :shrunk] ** 2).mean(0)))
        extra = weight * np.eye(size)[:shrunk]
        found.append(
            np.linalg.lstsq(np.vstack([a, extra]), np.vstack([b, extra @ old[group]]), rcond=None)[0]
        )
    return np.stack(found)


def with_ones(x: Array) -> Array:
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)


@pytest.mark.parametrize("constant", (False, True))
@pytest.mark.parametrize("groups", (1, 3))
def test_the_fit_is_ridge_regression_on_the_rows_to_fit(constant: bool, groups: int) -> None:
    x, y, _truth = make(200, 6, 4, groups=groups, noise=0.5)
    if constant:
        x, y = with_ones(x), y + 3.0
    old = np.random.default_rng(1).standard_normal((groups, x.shape[2], 4))
    fit = fit_matrix(sums(x[:160], y[:160]), sums(x[160:], y[160:]), torch.from_numpy(old), constant=constant)
    assert fit.ridge in RIDGES
    wanted = ridge(x[:160], y[:160], old, fit.ridge, constant=constant)
    assert np.allclose(fit.matrix.numpy(), wanted, atol=1e-6)


def test_the_ridge_is_the_best_on_what_is_held_out() -> None:
    for noise, close in ((0.0, 1.0), (3.0, 0.02)):
        x, y, truth = make(60, 12, 3, noise=noise)
        old = truth + close * np.random.default_rng(1).standard_normal(truth.shape)
        train, test = slice(0, 45), slice(45, 60)
        fit = fit_matrix(
            sums(x[train], y[train]), sums(x[test], y[test]), torch.from_numpy(old), constant=False
        )
        errors = {}
        for strength in RIDGES:
            matrix = ridge(x[train], y[train], old, strength, constant=False)
            errors[strength] = float(((x[test, 0] @ matrix[0] - y[test, 0]) ** 2).mean(0).sum())
        assert fit.ridge == min(errors, key=errors.__getitem__)
        assert np.isclose(fit.error_after, errors[fit.ridge], rtol=1e-6, atol=1e-9)
        assert np.isclose(fit.error_before, ((x[test, 0] @ old[0] - y[test, 0]) ** 2).mean(0).sum())
        assert fit.helps == (fit.error_after < fit.error_before)


def test_weights_decide_which_outputs_count() -> None:
    x, y, truth = make(100, 5, 2, noise=0.1)
    old = truth.copy()
    old[..., 1] += 1.0  # the second output is wrong, the first as good as can be
    first, second = (torch.tensor([pair], dtype=torch.float64) for pair in ((4.0, 0.0), (0.0, 1.0)))
    pair = sums(x[:80], y[:80]), sums(x[80:], y[80:])
    start = torch.from_numpy(old)
    before = ((x[80:, 0] @ old[0] - y[80:, 0]) ** 2).mean(0)
    assert np.isclose(fit_matrix(*pair, start, constant=False, weights=first).error_before, 4 * before[0])
    assert np.isclose(fit_matrix(*pair, start, constant=False, weights=second).error_before, before[1])
    assert fit_matrix(*pair, start, constant=False, weights=second).helps
    assert not fit_matrix(*pair, start, constant=False, weights=0 * first).helps


def test_the_constant_is_not_shrunk() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 1, 3))
    x -= x.mean(0)
    y = np.full((300, 1, 2), 50.0)
    old = torch.zeros(1, 4, 2, dtype=torch.float64)
    everything = sums(with_ones(x), y)
    fit = fit_matrix(everything, everything, old, constant=True)
    assert np.allclose(fit.matrix[0, -1].numpy(), 50.0, atol=1e-6)


def test_dead_inputs_keep_their_weights() -> None:
    x, y, truth = make(100, 5, 2)
    x[:, :, 2] = 0.0
    y = np.einsum("rgd,gdo->rgo", x, truth)
    old = torch.full((1, 5, 2), 0.7, dtype=torch.float64)
    fit = fit_matrix(sums(x[:80], y[:80]), sums(x[80:], y[80:]), old, constant=False)
    assert fit.helps
    assert np.allclose(fit.matrix[0, 2].numpy(), 0.7, atol=1e-6)
    assert np.allclose(fit.matrix[0, [0, 1, 3, 4]].numpy(), truth[0, [0, 1, 3, 4]], atol=1e-2)


@pytest.mark.parametrize("constant", (False, True))
def test_nothing_but_dead_inputs(constant: bool) -> None:
    x = np.zeros((50, 2, 4))
    x = with_ones(x) if constant else x
    y = np.random.default_rng(0).standard_normal((50, 2, 3))
    old = torch.ones(2, x.shape[2], 3, dtype=torch.float64)
    fit = fit_matrix(sums(x[:40], y[:40]), sums(x[40:], y[40:]), old, constant=constant)
    assert np.allclose(fit.matrix[:, :4].numpy(), 1.0)


def test_repeated_inputs_are_no_obstacle() -> None:
    x, y, _ = make(40, 5, 2)
    x = np.concatenate([x, x, x], axis=2)
    fit = fit_matrix(
        sums(x[:30], y[:30]), sums(x[30:], y[30:]), torch.zeros(1, 15, 2).double(), constant=False
    )
    assert np.allclose(x[:, 0] @ fit.matrix[0].numpy(), y[:, 0], atol=1e-2 * np.abs(y).max())


def test_values_that_are_not_finite_never_help() -> None:
    x, y, truth = make(50, 4, 2)
    x[3, 0, 1] = np.nan
    fit = fit_matrix(sums(x, y), sums(x, y), torch.from_numpy(truth), constant=False)
    assert not fit.helps


def test_without_held_out_rows_nothing_helps() -> None:
    x, y, _ = make(20, 4, 2)
    fit = fit_matrix(
        sums(x, y), Sums.zeros(1, 4, 2, torch.device("cpu")), torch.zeros(1, 4, 2).double(), constant=False
    )
    assert not fit.helps
