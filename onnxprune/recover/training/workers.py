"""Threads that share a batch: each takes some of its samples, and runs its kernels alone.

Kernels that split their own work wait for each other at every op, which costs most where other
programs keep a core busy. Shares of a batch meet once a step.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import Final, Self, TypeVar

import torch

_T = TypeVar("_T")

SMALLEST_SHARE: Final = 8
"""Samples of a share, at least: every share needs room for gradients of its own."""


class Workers:
    """``count`` threads, each with ``kernel_threads`` inside its kernels; used as a context manager."""

    def __init__(self, threads: int | None, batch_size: int) -> None:
        """Make the most of ``threads`` (None: as many as torch takes) for batches of ``batch_size``."""
        total = threads or torch.get_num_threads()
        self.count = max(1, min(total, batch_size // SMALLEST_SHARE))
        self.kernel_threads = max(1, total // self.count)

    def __enter__(self) -> Self:
        """Start the threads."""
        self._before = torch.get_num_threads()
        torch.set_num_threads(self.kernel_threads)  # threads that start from now on inherit it
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="onnxprune-worker")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them."""
        self._pool.shutdown()
        torch.set_num_threads(self._before)

    def over(self, samples: int, work: Callable[[slice], _T]) -> list[_T]:
        """``work`` on shares of as equal size as can be; what they give, in the samples' order."""
        count = max(1, min(self.count, samples // SMALLEST_SHARE))
        edges = [round(index * samples / count) for index in range(count + 1)]
        return list(self._pool.map(work, [slice(*pair) for pair in pairwise(edges)]))
