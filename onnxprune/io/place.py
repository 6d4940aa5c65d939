"""Where a model may be written: links are followed, devices and what else is no file are left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from onnxprune.errors import UsageError

_SYSTEM = (Path("/dev"), Path("/proc"))
"""Folders whose entries stand for devices and open files."""

_MAX_LINKS = 40
_HINT = "choose another output path with -o"


def resolved(path: Path) -> Path:
    """The file that ``path`` leads to where it is a link; ``path`` itself elsewhere."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def check_place(path: Path) -> None:
    """Raise UsageError where no file can be made at ``path``, or something else than a file is there."""
    if not os.path.isdir(path.parent):
        raise UsageError(
            f"no such folder: {path.parent}", hint="create it, or choose another output path with -o"
        )
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # a name that this file system, or any, can't have
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"can't write {path}: {reason}", hint=_HINT) from error
    if any(_is_system(hop) for hop in _hops(path)):
        raise UsageError(f"{path} stands for a device or an open file", hint=_HINT)
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} exists and is not a file", hint=_HINT)


def _hops(path: Path) -> Iterator[Path]:
    """``path`` and all that its links lead through, each in its real folder."""
    hop = path
    for _ in range(_MAX_LINKS):
        hop = Path(os.path.realpath(hop.parent), hop.name)
        yield hop
        if not hop.is_symlink():
            return
        hop = hop.parent / os.readlink(hop)
    raise UsageError(f"{path} is a link that leads to no file", hint=_HINT)


def _is_system(path: Path) -> bool:
    """Whether it is an entry of a system folder; what is mounted below one, as /dev/shm is, holds files."""
    folder = path.parent
    return any(
        (root == folder or root in folder.parents)
        and folder.is_dir()
        and folder.stat().st_dev == root.stat().st_dev
        for root in _SYSTEM
    )
