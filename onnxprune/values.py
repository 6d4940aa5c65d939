"""Values of options: from what is written in a text, in TOML or in Python to one type for each option."""

from __future__ import annotations

import difflib
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from onnxprune.errors import UsageError
from onnxprune.select.budget import Budget

if TYPE_CHECKING:
    from onnxprune.evaluate.preprocess import Preprocess

MAX_THREADS = 1024
"""More than this is a slip, and would take the machine down."""

MAX_SEED = 2**63 - 1
"""Largest seed that all random generators in use take."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|)")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def coerced(name: str, value: Any) -> Any:
    """``value`` in the type of the field ``name``, where options and TOML write it more loosely.

    Raises UsageError for what can't be brought into it. Numbers that are not whole are left to later
    checks of their range, so that these can say what the option takes.
    """
    reader = _READERS.get(name)
    return value if reader is None else reader(name.replace("_", "-"), value)


def shown(value: object, limit: int = 60) -> str:
    """``value`` as messages show it: its repr as one line of at most ``limit`` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def whole(option: str, value: object, least: int, most: int | None = None) -> int:
    """A whole number, of Python or of numpy; UsageError for anything else, or one out of bounds."""
    try:
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise UsageError(
            f"--{option} {shown(value)} is not a whole number of at least {least}",
            hint=f"leave out --{option}, or raise it",
        )
    if most is not None and number > most:
        raise UsageError(
            f"--{option} {number} is more than {most:,}", hint=f"leave out --{option}, or lower it"
        )
    return number


def parse_seconds(text: str) -> float:
    """A duration such as ``90``, ``90s``, ``10m`` or ``1.5h`` in seconds; UsageError for anything else."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"{text!r} is no duration", hint="write 90s, 10m or 1.5h")
    return float(match[1]) * _SECONDS[match[2]]


def parse_shape(value: object) -> tuple[int, ...]:
    """A shape, from a text such as ``1x3x224x224`` or from its sizes; UsageError for anything else."""
    parts = value.lower().split("x") if isinstance(value, str) else value
    try:
        if not isinstance(parts, Iterable):
            raise TypeError
        sizes = tuple(int(part) if isinstance(part, str) else operator.index(part) for part in parts)
    except (TypeError, ValueError):
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UsageError(f"--shape {shown(value)} is no shape", hint="write it like 1x3x224x224")
    return sizes


def one_of(option: str, value: object, known: tuple[str, ...]) -> None:
    """Raise UsageError, with the nearest of ``known``, where ``value`` is none of them."""
    if isinstance(value, str) and value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"--{option} {shown(value)} is unknown", hint=f"{hint}known: {', '.join(known)}")


def check_folder(option: str, folder: Path) -> None:
    """Raise UsageError where ``folder`` can be neither written to nor made."""
    place = next((item for item in (folder, *folder.parents) if os.path.lexists(item)), folder)
    if not place.is_dir():
        raise UsageError(f"--{option} {folder}: {place} is not a folder", hint="choose another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"--{option} {folder}: {place} can't be written", hint="choose another folder")


def as_budgets(value: Any) -> tuple[Budget, ...]:
    """Budgets, from one or several."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    budgets = tuple(value) if several else (value,)
    for budget in budgets:
        if not isinstance(budget, Budget):
            raise UsageError(f"{shown(budget)} is no budget", hint="write macs = 0.5, or use parse_budget")
    return budgets


def as_preprocess(table: object) -> Preprocess | None:
    """Preprocessing, from a mapping whose None stand for "not given"; None where nothing is."""
    from onnxprune.evaluate.preprocess import Preprocess  # imports numpy

    if isinstance(table, Preprocess):
        return table
    if not isinstance(table, Mapping):
        raise UsageError(f"the preprocessing is {shown(table)}, not a table", hint="such as {'mean': 0.5}")
    given = {str(name).replace("-", "_"): value for name, value in table.items() if value is not None}
    return Preprocess.from_dict(given) if given else None


def _number(option: str, value: Any) -> Any:
    """Numbers of all kinds, numpy's among them, as floats; all else as it is."""
    del option
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    try:
        return float(value)
    except OverflowError:  # an int that no float holds
        return float("inf")


def _number_or_auto(option: str, value: Any) -> Any:
    if isinstance(value, str) and value != "auto":
        try:
            return float(value)
        except ValueError:
            raise UsageError(f"--{option} takes a number, not {shown(value)}", hint="or auto") from None
    return _number(option, value)


def _seconds(option: str, value: Any) -> Any:
    return parse_seconds(value) if isinstance(value, str) else _number(option, value)


def _path(option: str, value: Any, hint: str = "write it as a text") -> Path:
    if not isinstance(value, str | PathLike):
        raise UsageError(f"--{option} takes a path, not {shown(value)}", hint=hint)
    return Path(value)


def _globs(option: str, value: Any) -> tuple[str, ...]:
    globs = (value,) if isinstance(value, str) else value
    if not (isinstance(globs, Iterable) and all(isinstance(glob, str) and glob for glob in globs)):
        raise UsageError(
            f"--{option} takes globs over node names, not {shown(value)}",
            hint="such as */head/*, or a list of them",
        )
    return tuple(globs)


def _text(option: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"--{option} takes a text, not {shown(value)}", hint="such as train, or :300")
    return value


def _flag(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{option} is true or false, not {shown(value)}", hint="write it without quotes")
    return value


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "budgets": lambda option, value: as_budgets(value),
    "preprocess": lambda option, value: as_preprocess(value),
    "plan": partial(_path, hint="result.save_plan(path) writes the plan to a file, whose path this is"),
    **dict.fromkeys(("output", "save_plan", "checkpoint"), _path),
    **dict.fromkeys(("keep", "only"), _globs),
    **dict.fromkeys(("split", "eval_split"), _text),
    **dict.fromkeys(("dry_run", "verify", "force"), _flag),
    **dict.fromkeys(("max_drop", "max_group_ratio", "epochs"), _number),
    **dict.fromkeys(("lr", "depth_weight"), _number_or_auto),
    "time_limit": _seconds,
    **dict.fromkeys(("calibration", "round_to"), partial(whole, least=1)),
    "threads": partial(whole, least=1, most=MAX_THREADS),
    "seed": partial(whole, least=0, most=MAX_SEED),
}
