"""The table of ops that the executor runs, keyed by domain and op, each with its range of opsets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from onnxprune.errors import NoGradientError

Result = Tensor | tuple[Tensor, ...]
Op = Callable[..., Result]
"""Called as ``op(call, *inputs)``; an optional input that is left out is None."""

_F = TypeVar("_F", bound=Op)

_LATEST = 2**31
_OPS: dict[tuple[str, str], list[tuple[int, int, Op]]] = {}


@dataclass(frozen=True)
class Call:
    """What an op knows of its node: attributes, opset, number of outputs, and the precision to compute in.

    ``floating`` is the type that stands for all floating types of at most 32 bits.
    """

    name: str
    op: str
    opset: int
    outputs: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)
    floating: torch.dtype = torch.float32

    def get(self, attribute: str, default: Any = None) -> Any:
        """The value of an attribute, or ``default`` where the node does not state it."""
        return self.attributes.get(attribute, default)

    def number(self, attribute: str, default: float) -> float:
        """A number, or ``default`` where the node does not state it."""
        return float(self.attributes.get(attribute, default))

    def integer(self, attribute: str, default: int = 0) -> int:
        """A whole number, or ``default`` where the node does not state it."""
        return int(self.attributes.get(attribute, default))

    def text(self, attribute: str, default: str = "") -> str:
        """A text, or ``default`` where the node does not state it."""
        return str(self.attributes.get(attribute, default))

    def ints(self, attribute: str, given: Tensor | None = None) -> list[int] | None:
        """A list that is an input (``given``) in some opsets and an attribute in others; None: neither."""
        if given is not None:
            return [int(value) for value in given.reshape(-1).tolist()]
        stated = self.attributes.get(attribute)
        return None if stated is None else [int(value) for value in stated]

    def unsupported(self, what: str) -> NoGradientError:
        """The error for a form of the op that the executor does not run."""
        return NoGradientError(
            f"there are no gradients through {self.op} '{self.name}': {what}",
            hint="use --recover closed-form, which does without where it must",
        )


def op(*names: str, domain: str = "", since: int = 1, until: int = _LATEST) -> Callable[[_F], _F]:
    """Register a function for ops of ``domain`` in the opsets since <= opset < until."""

    def register(function: _F) -> _F:
        for name in names:
            _OPS.setdefault((domain, name), []).append((since, until, function))
        return function

    return register


def find_op(domain: str, name: str, opset: int) -> Op | None:
    """The function for an op of that opset, or None."""
    domain = "" if domain == "ai.onnx" else domain
    for since, until, function in _OPS.get((domain, name), ()):
        if since <= opset < until:
            return function
    return None


def supported_ops() -> tuple[tuple[str, str], ...]:
    """All (domain, op) that the executor runs in some opset, sorted."""
    return tuple(sorted(_OPS))
