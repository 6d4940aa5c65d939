"""Gram matrices of streamed rows, for half of the products: they are symmetric, and BLAS is not told so."""

from __future__ import annotations

from torch import Tensor

_BLOCK = 256
"""Columns multiplied at a time; products of fewer run slower than they save."""


def gram_matrix(rows: Tensor) -> Tensor:
    """X'X (G, d, d) of ``rows`` X (G, r, d), in their own precision."""
    groups, _, size = rows.shape
    total = rows.new_zeros(groups, size, size)
    add_gram(total, rows)
    mirror(total)
    return total


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add X'X of ``rows`` X (G, r, d) to ``total`` (G, d, d), but for what `mirror` fills in."""
    for start in range(0, rows.shape[-1], _BLOCK):
        stop = start + _BLOCK
        total[:, start:stop, start:] += rows[:, :, start:stop].transpose(1, 2) @ rows[:, :, start:]


def mirror(total: Tensor) -> None:
    """Complete a sum of `add_gram`."""
    for start in range(0, total.shape[-1], _BLOCK):
        stop = start + _BLOCK
        total[:, stop:, start:stop] = total[:, start:stop, stop:].transpose(1, 2)
