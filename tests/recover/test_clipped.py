"""Fits behind a clip, against a general-purpose minimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

from onnxprune.graph.joins import Clip
from onnxprune.recover.clipped import fit_clipped
from onnxprune.recover.fit import Fit, Ridge, fit_matrix
from onnxprune.recover.rows import Response, Rows
from tests.plain import Array

CLIPS = {"relu": Clip(lower=0.0), "relu6": Clip(0.0, 6.0), "upper": Clip(upper=0.5)}


def problem(
    clip: Clip, *, groups: int = 2, shortcut: bool = True, rows: int = 240, outputs: int = 3
) -> tuple[Response, list[Rows]]:
    """A response with signed scales, and two parts of rows that no matrix fits exactly."""
    random = np.random.default_rng(0)
    x = random.standard_normal((groups, rows, 5)) + 0.3
    goal = np.einsum("grd,gdo->gro", x, random.standard_normal((groups, 5, outputs)))
    goal = goal + 0.8 * np.abs(goal) * random.standard_normal(goal.shape)
    other = random.standard_normal(goal.shape) if shortcut else None
    scale = random.choice([-1.5, -0.5, 0.7, 2.0], (groups, 1, outputs))
    shift = random.standard_normal((groups, 1, outputs))

    def part(chosen: slice) -> Rows:
        tensors = [torch.from_numpy(v[:, chosen]) if v is not None else None for v in (x, goal, other)]
        assert tensors[0] is not None and tensors[1] is not None
        return Rows(tensors[0], tensors[1], tensors[2])

    dead = torch.zeros(groups, 1, outputs, dtype=torch.bool)
    return Response(torch.from_numpy(scale), torch.from_numpy(shift), dead, clip), [
        part(slice(0, 100)),
        part(slice(100, rows)),
    ]


def at_target(response: Response, rows: Rows, matrix: Array) -> Array:
    values = np.einsum("grd,gdo->gro", rows.inputs.numpy(), matrix)
    values = values * response.scale.numpy() + response.shift.numpy()
    return np.asarray(values if rows.shortcut is None else values + rows.shortcut.numpy())


def clipped_error(response: Response, parts: list[Rows], matrix: Array) -> float:
    """The mean over rows, channels summed, written down plainly in numpy."""
    total, count = 0.0, 0
    for rows in parts:
        values = at_target(response, rows, matrix)
        low, high = response.clip.lower, response.clip.upper
        total += float(((np.clip(values, low, high) - np.clip(rows.goal.numpy(), low, high)) ** 2).sum())
        count += values.shape[1]
    return total / count


def distance(response: Response, parts: list[Rows], matrix: Array) -> float:
    """The mean squared distance to values that look like the goals, written down plainly in numpy."""
    total, count = 0.0, 0
    for rows in parts:
        values = at_target(response, rows, matrix)
        goal, low, high = rows.goal.numpy(), response.clip.lower, response.clip.upper
        alike = ((goal <= low) & (values <= low)) | ((goal >= high) & (values >= high))
        bound = np.clip(goal, low, high)
        total += float((np.where(alike, 0.0, values - bound) ** 2).sum())
        count += values.shape[1]
    return total / count


def fitted(response: Response, parts: list[Rows], held_out: list[Rows] | None = None) -> tuple[Fit, Fit]:
    """(the fit that ignores the clip, the one that goes on from it), on the rows themselves."""
    groups, size, outputs = parts[0].inputs.shape[0], parts[0].inputs.shape[2], parts[0].goal.shape[2]
    held_out = parts if held_out is None else held_out
    sums, held = (response.sums(rows, (groups, size, outputs)) for rows in (parts, held_out))
    old = torch.zeros(groups, size, outputs, dtype=torch.float64)
    linear = fit_matrix(sums, held, old, constant=False)
    return linear, fit_clipped(response, parts, held_out, old, linear)


@pytest.mark.parametrize("shortcut", (False, True))
@pytest.mark.parametrize("name", CLIPS)
def test_many_steps_end_where_a_general_minimiser_does(
    name: str, shortcut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.recover.clipped.STEPS", 1000)
    monkeypatch.setattr("onnxprune.recover.fit.RIDGES", (1e-12,))
    response, parts = problem(CLIPS[name], shortcut=shortcut)
    matrix = fitted(response, parts)[1].matrix.numpy()

    def loss(flat: Array) -> float:
        return distance(response, parts, flat.reshape(matrix.shape))

    start = np.zeros(matrix.size)
    best = optimize.minimize(
        loss, start, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14, "maxfun": 10**6}
    )
    assert np.isclose(loss(matrix.ravel()), best.fun, rtol=1e-6)
    assert np.allclose(matrix.ravel(), best.x, atol=1e-2)


@pytest.mark.parametrize("shortcut", (False, True))
def test_rows_in_blocks_are_the_rows(shortcut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    response, parts = problem(CLIPS["relu6"], shortcut=shortcut)
    matrix = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 5, 3)))
    whole = response.error(parts, matrix), response.pulls(parts, matrix)
    monkeypatch.setattr("onnxprune.recover.rows._BLOCK_BYTES", 17 * 8 * 2 * 3)
    assert [block.count for block in parts[0].blocks()] == [17] * 5 + [15]
    assert np.isclose(response.error(parts, matrix), whole[0], rtol=1e-12)
    torch.testing.assert_close(response.pulls(parts, matrix), whole[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ("relu", "upper"))
def test_few_steps_already_help(name: str) -> None:
    response, parts = problem(CLIPS[name])
    linear, fit = fitted(response, parts)
    assert fit.helps and fit.error_after < 0.99 * response.error(parts, linear.matrix)
    assert np.isclose(fit.error_after, clipped_error(response, parts, fit.matrix.numpy()), rtol=0.02)


def test_the_fit_that_ignores_the_clip_stays_where_it_does_better() -> None:
    # Much noise and a narrow interval: most goals are beyond it, and pulling values far back costs more.
    response, parts = problem(Clip(0.0, 1.5))
    linear, fit = fitted(response, parts)
    assert torch.equal(fit.matrix, linear.matrix)
    assert np.isclose(fit.error_after, response.error(parts, linear.matrix), rtol=1e-3)


def test_errors_are_those_within_the_clip() -> None:
    response, parts = problem(CLIPS["relu6"])
    matrix = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 5, 3)))
    assert np.isclose(
        response.error(parts, matrix), clipped_error(response, parts, matrix.numpy()), rtol=1e-12
    )


def test_dead_channels_count_nowhere() -> None:
    response, parts = problem(Clip(lower=0.0))
    dead = torch.zeros_like(response.dead)
    dead[1] = True
    blind = Response(response.scale, response.shift, dead, response.clip)
    matrix = torch.zeros(2, 5, 3, dtype=torch.float64)
    alone = [Rows(part.inputs[:1], part.goal[:1], _first(part.shortcut)) for part in parts]
    first = Response(response.scale[:1], response.shift[:1], response.dead[:1], response.clip)
    assert np.isclose(blind.error(parts, matrix), first.error(alone, matrix[:1]), rtol=1e-12)


def _first(values: torch.Tensor | None) -> torch.Tensor | None:
    return None if values is None else values[:1]


@pytest.mark.parametrize("name", CLIPS)
def test_the_nearest_values_look_alike_and_are_no_farther_than_the_goal(name: str) -> None:
    response, (rows, _) = problem(CLIPS[name])
    values = response.at_target(rows, torch.from_numpy(np.random.default_rng(2).standard_normal((2, 5, 3))))
    nearest = response.nearest(rows, values)
    low, high = CLIPS[name].lower, CLIPS[name].upper
    assert torch.equal(nearest.clamp(low, high), rows.goal.clamp(low, high))
    assert bool(((values - nearest).abs() <= (values - rows.goal).abs()).all())
    assert not torch.equal(nearest, rows.goal)


def test_what_is_wanted_gives_the_goal() -> None:
    response, (rows, _) = problem(Clip(lower=0.0))
    wanted = response.wanted(rows, rows.goal)
    assert rows.shortcut is not None
    assert torch.allclose(wanted * response.scale + response.shift + rows.shortcut, rows.goal, rtol=1e-12)


def test_without_anything_clipped_the_steps_stay_at_least_squares() -> None:
    response, parts = problem(Clip(lower=-1e6))
    linear, fit = fitted(response, parts)
    assert torch.allclose(linear.matrix, fit.matrix, rtol=1e-8, atol=1e-10)


def test_a_ridge_is_factored_once_for_many_right_sides() -> None:
    response, parts = problem(Clip(lower=0.0), groups=1)
    sums = response.sums(parts, (1, 5, 3))
    old = torch.from_numpy(np.random.default_rng(3).standard_normal((1, 5, 3)))
    solver = Ridge(sums, old, 0.1, False)
    for targets in (sums.rows_targets, 2 * sums.rows_targets):
        left = sums.rows_rows[0].numpy() / sums.count
        strength = 0.1 * np.diag(left).mean()
        expected = np.linalg.solve(
            left + strength * np.eye(5), targets[0].numpy() / sums.count + strength * old[0].numpy()
        )
        assert np.allclose(solver.solve(targets)[0].numpy(), expected, rtol=1e-7)
