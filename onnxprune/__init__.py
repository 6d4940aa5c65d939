"""Makes trained ONNX classifiers smaller and faster by removing whole channels, from the file alone.

    result = onnxprune.compress("model.onnx", data="photos/", macs=0.5)
    result.save("small.onnx")

Names are imported when they are first used: ``import onnxprune`` itself is instant.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.config import CompressConfig
    from onnxprune.errors import (
        BudgetError,
        DataError,
        ModelError,
        OnnxPruneError,
        PlanError,
        UsageError,
    )
    from onnxprune.evaluate.preprocess import Preprocess
    from onnxprune.graph.plan import Plan
    from onnxprune.graph.structure import PruningGraph
    from onnxprune.pipeline import (
        CompressionResult,
        analyze,
        analyze_graph,
        apply,
        benchmark,
        compress,
        evaluate,
        gather_statistics,
        inspect,
        select,
    )
    from onnxprune.progress import Progress
    from onnxprune.select.budget import Budget, parse_budget

__all__ = [
    "Budget",
    "BudgetError",
    "CompressConfig",
    "CompressionResult",
    "DataError",
    "ModelError",
    "OnnxPruneError",
    "Plan",
    "PlanError",
    "Preprocess",
    "Progress",
    "PruningGraph",
    "UsageError",
    "__version__",
    "analyze",
    "analyze_graph",
    "apply",
    "benchmark",
    "compress",
    "evaluate",
    "gather_statistics",
    "inspect",
    "parse_budget",
    "select",
]

_HOMES = {
    **dict.fromkeys(("Budget", "parse_budget"), "select.budget"),
    **dict.fromkeys(
        ("BudgetError", "DataError", "ModelError", "OnnxPruneError", "PlanError", "UsageError"), "errors"
    ),
    "CompressConfig": "config",
    "Plan": "graph.plan",
    "Preprocess": "evaluate.preprocess",
    "Progress": "progress",
    "PruningGraph": "graph.structure",
    **dict.fromkeys(
        (
            "CompressionResult",
            "analyze",
            "analyze_graph",
            "apply",
            "benchmark",
            "compress",
            "evaluate",
            "gather_statistics",
            "inspect",
            "select",
        ),
        "pipeline",
    ),
}


class _Package(ModuleType):
    """Keeps ``onnxprune.select`` and ``onnxprune.evaluate`` the public functions.

    They share their names with subpackages, which the import system would bind over them. The
    subpackages stay importable as usual: ``from onnxprune.select.budget import Budget``.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from onnxprune.version import package_version

        value: Any = package_version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"onnxprune.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
