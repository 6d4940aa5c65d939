"""Errors say a way out, all of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from onnxprune import errors
from onnxprune.errors import OnnxPruneError

ROOT = Path(__file__).resolve().parent.parent
TYPES = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, OnnxPruneError)
}


def without_hint(source: str) -> list[int]:
    """The lines on which an error is made without a hint."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Name)
        and call.func.id in TYPES
        and not any(keyword.arg == "hint" for keyword in call.keywords)
    ]


def test_one_without_a_hint_is_found() -> None:
    assert without_hint("raise UsageError('a', hint='b')\nraise PlanError('a')\nraise ValueError('a')") == [2]


@pytest.mark.parametrize("folder", ["onnxprune", "cli"])
def test_every_error_has_a_hint(folder: str) -> None:
    found = {path: without_hint(path.read_text(encoding="utf-8")) for path in (ROOT / folder).rglob("*.py")}
    assert len(found) > 5
    assert {str(path): lines for path, lines in found.items() if lines} == {}
