"""Backward elimination against least squares solved anew for every set of units that stays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch

from onnxprune.select.elimination import OPTIMISM, RIDGE, Compensation, eliminate

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """Rows (r, d + 1) with a one at the end, weights (d + 1, O), and each column's unit (-1: fixed)."""

    rows: Array
    matrix: Array
    columns: npt.NDArray[np.int64]
    weight: float

    def state(self) -> Compensation:
        gram = torch.from_numpy(self.rows.T @ self.rows)
        return Compensation(gram, torch.from_numpy(self.matrix), self.columns, len(self.rows), self.weight)

    def metric(self) -> Array:
        """Second moments in which errors are measured: covariances shrunk by d / (d + r), and the ridge."""
        inputs, count = self.rows[:, :-1], len(self.rows)
        size = inputs.shape[1]
        mean = inputs.mean(0)
        covariance = np.cov(inputs.T, bias=True)
        shrunk = np.where(np.eye(size) > 0, covariance, covariance * count / (count + size))
        result = np.zeros((size + 1, size + 1))
        result[:-1, :-1] = shrunk + np.outer(mean, mean)
        result[:-1, -1] = result[-1, :-1] = mean
        result[:-1, :-1] += RIDGE * np.mean((inputs**2).mean(0)) * np.eye(size)
        result[-1, -1] = 1
        return result

    def loss(self, gone: Sequence[int]) -> float:
        """Least error when the columns of some units are zero and all other weights are free."""
        metric = self.metric()
        dead = np.append(np.isin(self.columns, gone), False)
        root = np.linalg.cholesky(metric).T  # |root (w - w0)|^2 is the error of weights w
        target = root @ self.matrix
        fitted = np.linalg.lstsq(root[:, ~dead], target, rcond=None)[0]
        return self.weight * float(((root[:, ~dead] @ fitted - target) ** 2).sum())


def problem(
    seed: int, columns: Sequence[int], outputs: int = 3, rows: int = 400, weight: float = 0.7
) -> Problem:
    random = np.random.default_rng(seed)
    size = len(columns)
    inputs = random.standard_normal((rows, size)) @ random.normal(size=(size, size)) + random.normal(
        size=size
    )
    return Problem(
        np.column_stack([inputs, np.ones(rows)]),
        random.standard_normal((size + 1, outputs)),
        np.array(columns, dtype=np.int64),
        weight,
    )


UNEVEN = [7, 7, -1, 3, 11, 11, 11, 4, -1, 3, 5]
"""Units 3, 4, 5, 7 and 11 have 2, 1, 1, 2 and 3 columns; two columns are fixed."""


@pytest.mark.parametrize("rows", (400, 9))
def test_losses_are_those_of_a_refit(rows: int) -> None:
    given = problem(0, UNEVEN, rows=rows)
    units = np.array([11, 3, 4, 5, 7])
    losses = given.state().losses(units)
    assert np.allclose(losses, [given.loss([unit]) for unit in units], rtol=1e-6)
    assert given.state().losses(np.array([99, 3]))[0] == 0.0  # a unit that the layer does not read


def test_what_few_independent_rows_show_is_dearer_elsewhere() -> None:
    """Losses grow by OPTIMISM for each unit that is refitted and each independent row."""
    given = problem(4, UNEVEN)
    gram, matrix = torch.from_numpy(given.rows.T @ given.rows), torch.from_numpy(given.matrix)
    priced = Compensation(gram, matrix, given.columns, 400, given.weight, independent=40.0)
    plain = given.state()
    units = np.array([3, 4, 5, 7, 11])
    assert np.allclose(priced.losses(units), (1 + 5 * OPTIMISM / 40) * plain.losses(units), rtol=1e-9)
    first = np.array([11, 4])
    assert np.isclose(priced.remove(first), (1 + 5 * OPTIMISM / 40) * plain.remove(first), rtol=1e-9)
    assert np.allclose(priced.losses(units), (1 + 3 * OPTIMISM / 40) * plain.losses(units), rtol=1e-9)


@pytest.mark.parametrize("rows", (400, 9))
def test_removing_one_after_another_is_removing_all_at_once(rows: int) -> None:
    given = problem(1, UNEVEN, rows=rows)
    state = given.state()
    gone: list[int] = []
    total = 0.0
    for chosen in ([4], [7, 3], [11]):
        total += state.remove(np.array(chosen))
        gone += chosen
        assert np.isclose(total, given.loss(gone), rtol=1e-6)
        left = [unit for unit in (5, 11) if unit not in gone]
        wanted = [given.loss([*gone, unit]) - given.loss(gone) for unit in left]
        assert np.allclose(state.losses(np.array(left, dtype=np.int64)), wanted, rtol=1e-5)
    assert state.remove(np.array([4, 99])) == 0.0


def test_redundant_units_are_free() -> None:
    given = problem(2, [0, 1, 2, 3], rows=20_000)
    rows = given.rows.copy()
    rows[:, 3] = rows[:, 0] - 2 * rows[:, 1] + 3  # exactly made up for by the others and the constant
    given = Problem(rows, given.matrix, given.columns, 1.0)
    alone = float((np.outer(rows[:, 3], given.matrix[3]) ** 2).sum(1).mean())
    assert given.state().losses(np.arange(4))[3] < 5e-3 * alone


def test_dead_inputs_are_free() -> None:
    given = problem(3, [0, 1, 2, 3])
    rows = given.rows.copy()
    rows[:, 1] = 0
    losses = Problem(rows, given.matrix, given.columns, 1.0).state().losses(np.arange(4))
    assert losses[1] < 1e-2 * losses.max() and np.isfinite(losses).all()
    everything = np.column_stack([np.zeros((50, 4)), np.ones(50)])
    assert np.isfinite(
        Problem(everything, given.matrix, given.columns, 1.0).state().losses(np.arange(4))
    ).all()


def greedy(problems: Sequence[Problem], units: Sequence[int]) -> tuple[list[int], list[float]]:
    """Backward elimination by brute force: positions in ``units``, and the total loss after each."""
    order: list[int] = []
    losses = [0.0]
    while len(order) < len(units):
        costs = {
            index: sum(entry.loss([units[i] for i in (*order, index)]) for entry in problems)
            for index in range(len(units))
            if index not in order
        }
        best = min(costs, key=costs.__getitem__)
        order.append(best)
        losses.append(costs[best])
    return order, losses


@pytest.mark.parametrize("seed", range(3))
def test_the_order_is_brute_force_backward_elimination(seed: int) -> None:
    given = problem(seed, UNEVEN)
    units = np.array([3, 4, 5, 7, 11])
    result = eliminate([given.state()], units, batch=0)
    order, losses = greedy([given], units.tolist())
    assert result.order.tolist() == order
    assert np.allclose(result.loss, losses, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_group_that_several_layers_read(seed: int) -> None:
    """Their losses add up, each at its own weight; one of them reads only some of the units."""
    problems = [
        problem(seed, UNEVEN, weight=2.0),
        problem(seed + 10, [3, 4, 5, 7, 11, -1], outputs=5, weight=0.1),
        problem(seed + 20, [11, 11, 5], outputs=2),
    ]
    units = np.array([11, 3, 4, 5, 7])
    result = eliminate([entry.state() for entry in problems], units, batch=0)
    order, losses = greedy(problems, units.tolist())
    assert result.order.tolist() == order
    assert np.allclose(result.loss, losses, rtol=1e-5)


def test_batches_still_end_at_the_loss_of_what_is_gone() -> None:
    given = problem(4, list(range(12)))
    result = eliminate([given.state()], np.arange(12), batch=0.25)
    assert sorted(result.order.tolist()) == list(range(12))
    assert (np.diff(result.loss) >= 0).all() and result.loss[0] == 0
    assert np.isclose(result.loss[3], given.loss(result.order[:3].tolist()), rtol=1e-5)
    assert np.isclose(result.loss[-1], given.loss(range(12)), rtol=1e-5)


def test_a_priority_limits_who_competes() -> None:
    given = problem(5, list(range(6)))
    priority = np.array([5.0, 3.0, 4.0, 1.0, 0.0, 2.0])
    first = eliminate([given.state()], np.arange(6), priority=priority, shortlist=0.0, batch=0)
    assert first.order.tolist() == [4, 3, 5, 1, 2, 0]  # the priority's order alone
    free = eliminate([given.state()], np.arange(6), priority=priority, shortlist=1.0, batch=0)
    assert free.order.tolist() == eliminate([given.state()], np.arange(6), batch=0).order.tolist()
    half = eliminate([given.state()], np.arange(6), priority=priority, shortlist=0.5, batch=0)
    alive = list(range(6))
    for step, chosen in enumerate(half.order):
        few = sorted(alive, key=lambda unit: priority[unit])[: -(-len(alive) // 2)]
        gone = half.order[:step].tolist()
        assert chosen == min(few, key=lambda unit: given.loss([*gone, unit]))
        alive.remove(int(chosen))


def test_nothing_to_go_by_and_nothing_to_remove() -> None:
    assert eliminate([], np.arange(3)).loss.tolist() == [0, 0, 0, 0]
    empty = eliminate([problem(0, UNEVEN).state()], np.arange(0))
    assert len(empty.order) == 0 and empty.loss.tolist() == [0]


def test_every_pair_is_priced_right() -> None:
    given = problem(6, [0, 0, 1, 2, 2, 3])
    for pair in itertools.combinations(range(4), 2):
        assert np.isclose(given.state().remove(np.array(pair)), given.loss(pair), rtol=1e-6)
