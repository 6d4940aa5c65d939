"""Writing text files that users asked for: whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from onnxprune.errors import UsageError


def save_text(path: Path, text: str, what: str) -> None:
    """Write ``text`` to ``path``, in place of what is there; ``what`` names the option that asks for it.

    The bytes of file names that are no UTF-8 are written as escapes, which JSON reads back.
    Raises UsageError where that fails; the file is then as it was.
    """
    try:
        if path.exists() and not path.is_file():  # a device or a pipe
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return
        target = Path(os.path.realpath(path))  # a link stays one
        with tempfile.TemporaryDirectory(prefix=".onnxprune.", dir=target.parent) as scratch:
            unfinished = Path(scratch) / "unfinished"
            unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
            if target.exists():
                shutil.copymode(target, unfinished)
            os.replace(unfinished, target)
    except (OSError, ValueError) as error:  # ValueError: a name that no path can have
        raise UsageError(
            f"{what}: can't write {path}: {getattr(error, 'strerror', None) or error}",
            hint="choose another file, or make room for this one",
        ) from error
