"""How far a training run is, and the learning rate there."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

WARM_UP = 0.03
"""Share of the run over which the rate rises from zero."""


@dataclass(frozen=True)
class Horizon:
    """The end of a run: after ``steps`` steps or ``seconds`` seconds, the first to come; None: no bound."""

    steps: int | None
    seconds: float | None

    def progress(self, step: int, elapsed: float) -> float:
        """Share of the run that is done, 0 to 1: the larger of what steps and time say."""
        by_steps = step / self.steps if self.steps else float(self.steps == 0)
        by_time = elapsed / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_steps, by_time))


class Clock:
    """Seconds of training, ``before`` of them before an interruption."""

    def __init__(self, before: float) -> None:
        self._before, self._start = before, time.monotonic()

    def elapsed(self) -> float:
        """Seconds until now."""
        return self._before + time.monotonic() - self._start


def learning_rate(peak: float, progress: float) -> float:
    """A linear rise to ``peak``, then half a cosine down to zero (Loshchilov and Hutter, 2017)."""
    if progress < WARM_UP:
        return peak * progress / WARM_UP
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def ema_decay(decay: float, step: int) -> float:
    """Decay of the average of the weights after ``step`` steps: the first steps forget the start sooner."""
    return min(decay, (1 + step) / (10 + step))
