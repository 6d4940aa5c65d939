"""A second device for tests without one: tensors that say they lie elsewhere, and refuse to meet the others.

They hold their values on the CPU, under the device's name ``meta``. As on a GPU, an op that gets tensors of
both devices raises; only indices, copies and tensors of one number may come from the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")

_MIXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "copy_")
"""Ops that take indices or values from the CPU on a GPU too."""


class Elsewhere(Tensor):
    """A tensor on the second device."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Elsewhere:
        """Wrap ``values``."""
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # torch leaves it untyped
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, device=DEVICE,
        )  # fmt: skip
        made.values = values
        return made

    def tolist(self) -> Any:
        """The values, as a copy to the host gives them."""
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run on the values."""
        return _dispatch(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(function, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Make tensors on `DEVICE` such ones, for as long as this lasts."""
    plain = torch.tensor

    def tensor(*args: Any, device: Any = None, **options: Any) -> Tensor:
        made = plain(*args, **options)
        return made if device is None else made.to(device)

    torch.tensor = tensor
    try:
        with _Mode():
            yield DEVICE
    finally:
        torch.tensor = plain


def home(value: Tensor) -> Tensor:
    """The tensor on the CPU."""
    return value.values if isinstance(value, Elsewhere) else value


def _dispatch(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    name = function._schema.name.removeprefix("aten::")  # type: ignore[attr-defined]  # torch leaves it untyped
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    away = any(isinstance(value, Elsewhere) for value in tensors)
    here = [value for value in tensors if not isinstance(value, Elsewhere) and value.dim() > 0]
    if away and here and name not in _MIXED and name != "_to_copy":
        raise RuntimeError(f"{name} of tensors on two devices: {[tuple(value.shape) for value in here]}")
    wanted = kwargs.get("device")
    if wanted is not None:
        away = torch.device(wanted) == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = function(*tree_map(home, args, is_leaf=_is_tensor), **tree_map(home, kwargs, is_leaf=_is_tensor))
    owner = {id(value.values): value for value in tensors if isinstance(value, Elsewhere)}
    if not away:
        return result
    return tree_map(lambda value: _wrapped(value, owner), result)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _wrapped(value: Any, owner: dict[int, Elsewhere]) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, Elsewhere):
        return value
    return owner.get(id(value)) or Elsewhere(value)
