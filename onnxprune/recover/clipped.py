"""Least squares behind an activation that clips: nothing is spent on values that nobody sees.

Where the original is clipped (below zero, for a ReLU), any value beyond the bound is as good: what counts
is the squared distance to the nearest value that looks like the original's. It is convex, and lies above
the error behind the clip. Each step puts those nearest values in the goal's place and solves least
squares, which never raises it (majorisation; compare Zhang et al., TPAMI 2016, section 3). Only the
right-hand side changes, so the Gram matrix is factored once; Nesterov's extrapolation shortens the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from onnxprune.recover.fit import Fit
from onnxprune.recover.rows import Response, Rows

STEPS = 5


def fit_clipped(
    response: Response,
    fit: Sequence[Rows],
    held_out: Sequence[Rows],
    old: Tensor,
    linear: Fit,
    *,
    rounded: Callable[[Tensor], Tensor] | None = None,
) -> Fit:
    """Go on from a fit that ignored the clip, with its ridge; errors are those behind the clip.

    ``linear`` is that fit, of the rows in ``fit``; it stays where its error on the ``held_out`` rows is the
    smaller one. ``rounded`` is as in `fit_matrix`.
    """
    matrix = point = linear.matrix
    momentum = 1.0
    for _ in range(STEPS):
        after = linear.solver.solve(response.pulls(fit, point))
        following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * momentum**2))
        point = after + (momentum - 1.0) / following * (after - matrix)
        matrix, momentum = after, following
    stored = [entry if rounded is None else rounded(entry) for entry in (old, linear.matrix, matrix)]
    before, without, error = (response.error(held_out, entry) for entry in stored)
    if without <= error:
        return replace(linear, error_before=before, error_after=without)
    return Fit(matrix, linear.solver, before, error)
