"""Too little memory, which every library says in its own way, as one typed error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from onnxprune.errors import ModelError


def is_too_little_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; torch's allocator for CPUs has no type of its own."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise ModelError where memory runs out in the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_too_little_memory(error):
            raise
        raise ModelError(
            "there is too little memory for this model and its data",
            hint="give fewer calibration samples, or take --provider cpu where the memory of a GPU ran out",
        ) from error
