"""What random node cases are drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.surgery.common import Array

Random = np.random.Generator
Drawn = tuple[str, list[Array | None], dict[str, Any], int]
"""An op ("domain.Op" outside the standard domain), its inputs (None: left out), attributes, outputs."""


def floats(random: Random, *shape: int) -> Array:
    """Normally distributed single-precision values."""
    return random.standard_normal(shape).astype(np.float32)


def sizes(random: Random, rank: int | None = None) -> list[int]:
    """A shape of 2 to 4 axes, or of ``rank``, of 2 to 6 entries each."""
    count = int(random.integers(2, 5)) if rank is None else rank
    return [int(size) for size in random.integers(2, 7, count)]
