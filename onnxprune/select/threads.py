"""Small computations run on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(*, when: bool = True) -> Iterator[None]:
    """Run torch on one thread ``when`` a computation is small, and give the threads back.

    Then a parallel region costs more than it saves: its threads have to be woken, and on a busy machine
    each region waits for the slowest to be scheduled. 20 times slower was measured.
    """
    before = torch.get_num_threads()
    if not when or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
