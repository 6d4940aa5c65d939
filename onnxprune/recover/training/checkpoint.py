"""Checkpoints: tensors and a small record in one safetensors file, replaced as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onnxprune.errors import UsageError

FILE: Final = "finetune.safetensors"
_KEY: Final = "onnxprune"


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write ``tensors`` and the JSON-ready ``record`` into ``folder``, in place of what was there, at once.

    Raises UsageError where the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{FILE}.{os.getpid()}.partial"
        own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        save_file(own, partial, {_KEY: json.dumps(record)})
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, folder / FILE)
    except OSError as error:
        raise UsageError(
            f"can't write a checkpoint to {folder}: {error.strerror or error}", hint="choose another folder"
        ) from error


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the record of the last checkpoint in ``folder``, or None where there is none.

    Raises UsageError for a file that is no checkpoint.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as stored:
            record = json.loads((stored.metadata() or {})[_KEY])
            return {name: stored.get_tensor(name) for name in stored.keys()}, record  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path} is not a checkpoint of fine-tuning", hint="remove it to start anew"
        ) from error
