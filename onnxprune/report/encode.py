"""Reports as JSON: plain, strict (no NaN), stable in order."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import numpy as np

from onnxprune.report.schema import SCHEMA_VERSION, Report
from onnxprune.version import package_version


def report_dict(report: Report) -> dict[str, Any]:
    """The report as plain values, headed by the schema's and the package's versions.

    Fields that are None are left out; numbers that aren't finite become None.
    """
    head = {"schema": SCHEMA_VERSION, "onnxprune": package_version()}
    return {**head, **_plain(report)}


def report_json(report: Report) -> str:
    """The report as indented JSON with a newline at its end."""
    return json.dumps(report_dict(report), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((item.name, getattr(value, item.name)) for item in dataclasses.fields(value))
        return {name: _plain(content) for name, content in items if content is not None}
    if isinstance(value, Mapping):
        return {str(name): _plain(content) for name, content in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, PathLike):
        return fspath(value)
    return str(value)
