"""Whether the files that options ask for can be written, and over what they must not go."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

from onnxprune.errors import UsageError

from .output import STANDARD_OUTPUT


def check_outputs(
    outputs: Mapping[str, str | Path | None], models: Iterable[object], others: Iterable[object] = ()
) -> None:
    """Raise UsageError, before any work, where a file can't be written that an option asks for.

    ``outputs`` maps options to files, or None where they were not given. None of them may be a file of the
    ``models`` that are read, one of the ``others`` (of the code and the folders that they name too), or
    another output. Devices and pipes are let through; `check_model_output` has more to say on models.
    """
    taken: dict[object, str] = {}
    read = {_identity(path) for path in _paths((*models, *others))}
    for option, name in outputs.items():
        if name is None or (option == "--json" and name == STANDARD_OUTPUT):
            continue
        path = Path(name)
        try:
            if _is_special(path):
                continue
            _check_writable(path, option)
            identity = _identity(path)
            if path.exists():  # only then it can be one of the files that inputs consist of
                read.update(_identity(file) for model in _paths(models) for file in _files(model))
                read.update(_identity(file) for data in _paths(others) for file in _code_files(str(data)))
                _check_outside(path, option, _paths(others))
        except (OSError, ValueError) as error:  # ValueError: a name that no path can have
            raise UsageError(
                f"{option}: can't write {path}: {getattr(error, 'strerror', None) or error}",
                hint="choose another file",
            ) from error
        if identity in read:
            raise UsageError(
                f"{option} {path} is the input, which is never overwritten",
                hint=f"choose another output with {option}",
            )
        if identity in taken:
            raise UsageError(
                f"{taken[identity]} and {option} name the same file: {path}", hint="give each its own"
            )
        taken[identity] = option
        if option == "-o":  # the result may keep its weights beside it
            from onnxprune.io.place import resolved
            from onnxprune.io.save import data_name

            target = resolved(path)
            taken[_identity(target.with_name(data_name(target)))] = option


def check_model_output(target: Path, model: object, *, force: bool) -> None:
    """Raise UsageError, before any work, where the result of pruning ``model`` can't be saved at ``target``.

    It goes over an existing file only with ``force``.
    """
    from onnxprune.io.save import check_save

    files = [file for path in _paths((model,)) for file in _files(path)]
    check_save(target, external_data=len(files) > 1, overwrite=force, protect=files)


def _paths(values: Iterable[object]) -> list[Path]:
    return [Path(value) for value in values if isinstance(value, str | Path) and "\0" not in str(value)]


def _files(model: Path) -> tuple[Path, ...]:
    from onnxprune.io.load import files_of

    return files_of(model)


def _code_files(data: str) -> Iterator[Path]:
    """The files of the code that ``file.py:function`` or ``module:function`` names; nothing is imported."""
    from onnxprune.evaluate.formats.stream import parse_reference

    reference = parse_reference(data)
    if reference is None:
        return
    module = reference[0]
    if module.endswith(".py"):
        yield Path(module)
        return
    found = PathFinder.find_spec(module.partition(".")[0], [os.getcwd(), *sys.path])
    if found is None:
        return
    if found.origin is not None:
        yield Path(found.origin)
    for folder in found.submodule_search_locations or ():
        yield from Path(folder).rglob("*.py")


def _check_outside(path: Path, option: str, inputs: Iterable[Path]) -> None:
    """Raise UsageError where ``path``, or what it links to, is a data file below a folder of ``inputs``."""
    from onnxprune.evaluate.datasets import is_data_file

    places = {Path(os.path.abspath(path)), Path(os.path.realpath(path))}
    for folder in inputs:
        roots = {Path(os.path.abspath(folder)), Path(os.path.realpath(folder))}
        if os.path.isdir(folder) and any(
            root in place.parents and is_data_file(place) for root in roots for place in places
        ):
            raise UsageError(
                f"{option} {path} is a file in {folder}, the data, which is never overwritten",
                hint=f"choose another output with {option}",
            )


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe, which is written to and not replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _check_writable(path: Path, option: str) -> None:
    if str(path) == STANDARD_OUTPUT:
        raise UsageError(f"{option} takes a file, not '-'", hint="name one; --json - writes to stdout")
    path = Path(os.path.realpath(path))  # links are followed
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder", hint="name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: no such folder: {path.parent}", hint="create it first")
    for place in (path.parent, path):
        # Files are written beside their place and moved there, so that both have to allow it.
        if place.exists() and not os.access(place, os.W_OK):
            raise UsageError(f"{option} {path}: {place} can't be written", hint="choose another place")


def _identity(path: Path) -> object:
    """What two paths to the same file have in common, links included."""
    try:
        status = path.stat()
    except OSError:  # there is no such file yet
        return os.path.realpath(path)
    return status.st_dev, status.st_ino
