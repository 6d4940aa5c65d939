"""Batches from the user's own code: ``module:function``, a callable, or an iterable."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError
from onnxprune.evaluate.formats.arrays import ArraySource, from_arrays, take_arrays
from onnxprune.evaluate.formats.base import Source, join_labels, user_code

MAX_SAMPLES: Final = 100_000
MAX_BYTES: Final = 4 << 30
_REFERENCE = re.compile(r"(?P<module>[A-Za-z_][\w.]*|.+\.py):(?P<function>[A-Za-z_][\w.]*)")


def parse_reference(text: str) -> tuple[str, str] | None:
    """``module:function`` or ``file.py:function`` taken apart; None where ``text`` is neither."""
    match = _REFERENCE.fullmatch(text)
    return None if match is None else (match["module"], match["function"])


def open_reference(text: str, split: str | None) -> Source:
    """The batches of ``module:function``; modules are also looked for in the current folder.

    The function is called without arguments, or with ``split`` where one is asked for.
    Raises DataError where it can't be imported or called.
    """
    reference = parse_reference(text)
    if reference is None:
        raise DataError(f"'{text}' is not module:function", hint="such as mydata:batches")
    module, attribute = reference
    with user_code(f"{text} failed", hint="import and call it in Python to see why"):
        target: Any = _module(module)
        for part in attribute.split("."):
            target = getattr(target, part)
        if callable(target):
            target = target() if split is None else target(split)
    return collect(target, text)


def collect(batches: object, name: str) -> ArraySource:
    """Samples from an iterable of batches, each an array, (array, labels) or a mapping of these.

    Reads at most `MAX_SAMPLES` samples and `MAX_BYTES` bytes, and warns where it stops before the end.
    A callable is called first. Raises DataError.
    """
    if callable(batches):
        with user_code(f"{name} failed", hint="call it in Python to see why"):
            batches = batches()
    if isinstance(batches, np.ndarray | Mapping):
        return from_arrays(batches, name)
    if not isinstance(batches, Iterable):
        raise DataError(
            f"{name} gives {type(batches).__name__}, not batches", hint="yield arrays or (array, labels)"
        )
    samples: list[npt.NDArray[Any]] = []
    labels: list[npt.NDArray[Any]] = []
    count = size = 0
    warnings: tuple[str, ...] = ()
    with user_code(f"{name} failed", hint="iterate over it in Python to see why"):
        for batch in batches:
            part = take_arrays(batch, name)
            if samples and (part.samples.shape[1:], part.samples.dtype) != (
                samples[0].shape[1:],
                samples[0].dtype,
            ):
                raise DataError(f"the batches of {name} differ in shape or type", hint="yield equal ones")
            samples.append(part.samples)
            if part.labels is not None:
                labels.append(part.labels)
            count, size = count + len(part.samples), size + part.samples.nbytes
            if count >= MAX_SAMPLES or size >= MAX_BYTES:
                warnings = (f"{name}: only the first {count} samples were read",)
                break
    if not samples:
        raise DataError(f"{name} yields no batches", hint="yield arrays or (array, labels)")
    if labels and len(labels) != len(samples):
        raise DataError(f"only some batches of {name} have labels", hint="yield labels with all or with none")
    joined = join_labels(labels, name) if labels else None
    return ArraySource(name, "batches", np.concatenate(samples), joined, warnings)


def _module(name: str) -> Any:
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise DataError(f"no such file: {name}", hint="give file.py:function with a path that exists")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise DataError(f"{name} can't be imported", hint="give a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)
