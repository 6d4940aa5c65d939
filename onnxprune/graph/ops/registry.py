"""The table of op rules, keyed by domain and op, each with its range of opsets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxprune.graph.ops.context import Context

Rule = Callable[["Context"], None]

_LATEST = 2**31
_RULES: dict[tuple[str, str], list[tuple[int, int, Rule]]] = {}


class NoRule(Exception):
    """This node can't be followed; all channels that reach it are pinned for the reason given."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def rule(*ops: str, domain: str = "", since: int = 1, until: int = _LATEST) -> Callable[[Rule], Rule]:
    """Register a rule for ``ops`` of ``domain`` in the opsets since <= opset < until."""

    def register(function: Rule) -> Rule:
        for op in ops:
            _RULES.setdefault((domain, op), []).append((since, until, function))
        return function

    return register


def find_rule(domain: str, op: str, opset: int) -> Rule | None:
    """The rule for an op of that opset, or None."""
    domain = "" if domain == "ai.onnx" else domain
    for since, until, function in _RULES.get((domain, op), ()):
        if since <= opset < until:
            return function
    return None


def ruled_ops() -> tuple[tuple[str, str], ...]:
    """All (domain, op) that have a rule, sorted."""
    return tuple(sorted(_RULES))
