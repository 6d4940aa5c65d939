"""Several processes that train together, started with torchrun: gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among ``world`` ones, number ``rank`` from 0."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def average(self, values: Iterable[Tensor]) -> None:
        """Replace tensors by their mean over all processes, in one message."""
        if self.world == 1:
            return
        tensors = list(values)
        flat = torch.cat([value.reshape(-1) for value in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        start = 0
        for value in tensors:
            value.copy_(flat[start : start + value.numel()].view(value.shape))
            start += value.numel()

    def share(self, values: Iterable[Tensor]) -> None:
        """Replace tensors by those of the main process."""
        if self.world > 1:
            for value in values:
                dist.broadcast(value, 0)

    def shared(self, value: bytes) -> bytes:
        """The main process's bytes, in every process."""
        if self.world == 1:
            return value
        boxed = [value]
        dist.broadcast_object_list(boxed, 0)
        return boxed[0]

    def agreed(self, number: float) -> float:
        """The main process's number, in every process: clocks differ, decisions must not."""
        if self.world == 1:
            return number
        value = torch.tensor([number], dtype=torch.float64, device=self.device)
        dist.broadcast(value, 0)
        return float(value)


def join_processes(device: torch.device) -> Processes:
    """This process's place, with ``device``: alone, or in the group that torchrun's environment describes."""
    if not dist.is_available():
        return Processes(0, 1, device)
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
            return Processes(0, 1, device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # The others wait while the first one selects and recovers, however long that takes.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=7))
        atexit.register(_leave)
    return Processes(dist.get_rank(), dist.get_world_size(), device)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process is alone or the first of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0
