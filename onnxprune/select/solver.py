"""Minimise f(B) + lambda * P(B): FISTA with adaptive restart on a working set of rows.

Stops on optimality: the distance of -gradient to the subdifferential of lambda * P at B, relative
to |R|_F. Rows outside the working set are zero and are tested on the full gradient before the
solution is handed out, so screening never changes the answer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxprune.errors import UsageError
from onnxprune.select.penalties import Penalty, ProxMemory
from onnxprune.select.problem import QuadraticTerm, class_major, norm, term_value
from onnxprune.select.threads import one_thread

_CURVATURE_START = 0.5
_CURVATURE_DECAY = 0.85
_CURVATURE_GROWTH = 2.0
_PROX_SHARE = 1.0
_TIE_SHARE = 0.3
_SINGLE_THREAD = 2**18
_SINGLE_PRECISION = 2**12
_SINGLE_TOLERANCE = 1e-5


def few_threads(term: QuadraticTerm) -> AbstractContextManager[None]:
    """One thread for a small problem on a CPU."""
    return one_thread(when=term.linear.device.type == "cpu" and term.linear.numel() <= _SINGLE_THREAD)


@dataclass(frozen=True)
class Solution:
    """The minimiser at one lambda.

    ``coefficients`` (p, C); ``gradient`` (p, C) of the data term there; ``optimality`` is the
    distance to the subdifferential relative to |R|_F; ``objective`` = f + level * P. ``memory`` is
    what the penalty's prox carries to the next level.
    """

    coefficients: Tensor
    gradient: Tensor
    level: float
    iterations: int
    optimality: float
    objective: float
    converged: bool
    memory: ProxMemory


def solve(
    term: QuadraticTerm,
    penalty: Penalty,
    level: float,
    *,
    start: Solution | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
) -> Solution:
    """Minimise ``term`` + ``level`` * ``penalty``.

    ``start`` is the solution at another (larger) level of the same problem: it warm-starts the
    iteration, and its rows with those that its gradient pulls past ``level`` are the first working
    set. ``max_iterations`` bounds the gradient steps; past it ``converged`` is false.
    """
    if not level > 0:
        raise UsageError(f"lambda = {level}", hint="the penalty's weight must be positive")
    with few_threads(term):
        return _solve(term, penalty, level, start, tolerance, max_iterations)


def _solve(
    term: QuadraticTerm,
    penalty: Penalty,
    level: float,
    start: Solution | None,
    tolerance: float,
    max_iterations: int,
) -> Solution:
    if start is None:
        zero = torch.zeros_like(term.linear.t()).t()
        coefficients, gradient = zero, -term.linear
    else:
        coefficients, gradient = start.coefficients, start.gradient
    scale = float(norm(term.linear))
    if scale == 0.0:
        zero = torch.zeros_like(term.linear.t()).t()
        return Solution(zero, -term.linear, level, 0, 0.0, term.constant, True, ProxMemory())
    working = (coefficients != 0).any(dim=1)
    working |= _violators(penalty, gradient, level, working)
    iterations, distance = 0, 0.0
    memory = ProxMemory(None if start is None else start.memory.dual)
    while True:
        units = working.nonzero()[:, 0]
        if len(units):
            inner = _Descent(term.restrict(units), penalty, level, tolerance, scale, memory.take(units))
            values = coefficients.t().index_select(1, units).t()
            values = inner.run(values, max_iterations - iterations)
            iterations, distance = iterations + inner.iterations, inner.distance
            memory.put(units, inner.memory, term.units)
            coefficients = torch.zeros_like(term.linear.t()).index_copy_(1, units, values.t()).t()
            product = term.product_from(units, values)
        else:
            coefficients = torch.zeros_like(term.linear.t()).t()
            product = torch.zeros_like(coefficients.t()).t()
        gradient = product - term.linear
        violators = _violators(penalty, gradient, level, working)
        if iterations >= max_iterations or not bool(violators.any()):
            break
        working |= violators
    # Rows outside the working set that are no violators are at distance zero.
    if bool(violators.any()):
        distance = float(norm(penalty.distances(coefficients, gradient, level, memory)))
    optimality = distance / scale
    value = term_value(term, coefficients, product)
    value += level * float(penalty.row_values(coefficients.t().index_select(1, units).t()).sum())
    # Rounding in Q B alone can leave a few ulps per unit.
    slack = 64 * term.units * torch.finfo(gradient.dtype).eps
    return Solution(
        coefficients, gradient, level, iterations, optimality, value, optimality <= tolerance + slack, memory
    )


def _violators(penalty: Penalty, gradient: Tensor, level: float, working: Tensor) -> Tensor:
    """Rows (p,) outside the working set, zero there, that the gradient may pull out of zero."""
    violators = torch.zeros_like(working)
    outside = (~working).nonzero()[:, 0]
    violators[outside] = penalty.may_enter(-gradient.t().index_select(1, outside).t(), level)
    return violators


class _Descent:
    """FISTA on one working set, down to a distance of ``tolerance`` * ``scale``."""

    def __init__(
        self,
        term: QuadraticTerm,
        penalty: Penalty,
        level: float,
        tolerance: float,
        scale: float,
        memory: ProxMemory,
    ) -> None:
        self._term, self._penalty, self._level = term, penalty, level
        self._target = tolerance * scale
        self.memory = memory
        self.iterations = 0
        self.distance = float("inf")
        # Large problems take their steps in single precision; the test and the rest are in double.
        self._rough = (
            term.linear.dtype == torch.float64
            and term.linear.numel() >= _SINGLE_PRECISION
            and tolerance >= _SINGLE_TOLERANCE
        )
        # Along the path of the iterates the curvature is well below its bound; steps test it.
        bound = term.lipschitz()
        self._curvature = max(_CURVATURE_START * bound, torch.finfo(term.linear.dtype).tiny)

    def run(self, start: Tensor, budget: int) -> Tensor:
        """Descend from ``start`` (w, C) for at most ``budget`` steps."""
        target = self._target
        point = class_major(start)
        if self._rough:
            single = self.memory.cast(torch.float32)
            found = self._fista(
                self._term.cast(torch.float32), point.float(), target, single, budget - self.iterations
            )
            point, self.memory = found.to(point.dtype), single.cast(point.dtype)
        while True:
            point = self._fista(self._term, point, target, self.memory, budget - self.iterations)
            tidied = self._penalty.tidy(point, _TIE_SHARE * self._target / self._curvature)
            gradient = self._term.product(tidied) - self._term.linear
            self.distance = float(norm(self._penalty.distances(tidied, gradient, self._level, self.memory)))
            if self.distance <= self._target or self.iterations >= budget:
                return tidied
            # The step's residual bounds the distance only as well as the prox is exact.
            target *= 0.1
            if target < torch.finfo(point.dtype).eps * self._target:
                return tidied

    def _fista(
        self, term: QuadraticTerm, start: Tensor, target: float, memory: ProxMemory, budget: int
    ) -> Tensor:
        penalty, level, linear = self._penalty, self._level, term.linear
        # What rounding alone can bend a step by; without it a step of pure noise is cut forever.
        noise = 16 * torch.finfo(linear.dtype).eps * float(norm(linear))
        current, current_product = start, term.product(start)
        ahead, ahead_product = current, current_product
        inertia = 1.0
        moved = float("inf")
        for _ in range(max(budget, 0)):
            self.iterations += 1
            while True:
                step = 1.0 / self._curvature
                memory.precision = _PROX_SHARE * max(step * target, moved)
                candidate = penalty.prox(ahead - step * (ahead_product - linear), step * level, memory)
                product = term.product(candidate)
                change = candidate - ahead
                bend = product - ahead_product
                length = float(change.square().sum())
                slack = noise * length**0.5
                if float((change * bend).sum()) <= self._curvature * length + slack:
                    break
                self._curvature *= _CURVATURE_GROWTH
            moved = length**0.5
            # An element of the subdifferential of the whole objective at the candidate.
            if float(norm(bend - self._curvature * change)) <= target:
                return candidate
            onward = candidate - current
            if float((change * onward).sum()) < 0:
                inertia = 1.0
                ahead, ahead_product = candidate, product
            else:
                following = 0.5 * (1.0 + (1.0 + 4.0 * inertia**2) ** 0.5)
                weight = (inertia - 1.0) / following
                inertia = following
                ahead = candidate + weight * onward
                ahead_product = product + weight * (product - current_product)
            current, current_product = candidate, product
            self._curvature *= _CURVATURE_DECAY
        return current
