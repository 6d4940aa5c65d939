"""Half precision where the hardware computes it faster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

_CPU_FEATURES = ("avx512_bf16", "amx_bf16", "sve_bf16")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 by itself, rather than through single precision."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # older releases of torch have none
    known: Mapping[str, object] = {} if capabilities is None else capabilities()
    return any(bool(known.get(name)) for name in _CPU_FEATURES)


@contextmanager
def mixed_precision(device: torch.device, enabled: bool) -> Iterator[None]:
    """Layers in bfloat16, which needs no scaling of the loss as float16 would; weights stay in single."""
    # torch's cache of converted weights is shared by all threads, and is emptied by the first to leave.
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False):
        yield
