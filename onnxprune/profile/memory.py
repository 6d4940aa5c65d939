"""Host memory of a model at work, measured in a fresh process that does nothing else.

``python -m onnxprune.profile.memory`` is that process: it reads a request from standard input and
writes the number of bytes to standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxprune.errors import ModelError

_TIMEOUT_S = 600


def peak_memory(
    path: Path, *, inputs: Mapping[str, tuple[tuple[int, ...], str]], provider: str, threads: int | None
) -> int | None:
    """Growth of resident memory in bytes, from before ``path`` is loaded to the peak of a few runs.

    ``inputs`` gives each input's shape and numpy dtype. Device memory is not counted. None on
    systems that don't say how much memory a process has. ModelError where the run fails.
    """
    request = {
        "path": os.fspath(path.resolve()),
        "inputs": {name: [list(shape), dtype] for name, (shape, dtype) in inputs.items()},
        "provider": provider,
        "threads": threads,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"measuring the memory of {path} took over {_TIMEOUT_S} s",
            hint="measure a smaller batch or shape, or give more --threads",
        ) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"the process ended with status {done.returncode}"
        raise ModelError(
            f"measuring the memory of {path} failed: {reason}",
            hint="a smaller batch or shape may fit into memory; --provider cpu needs no GPU",
        )
    value = json.loads(done.stdout)
    return None if value is None else int(value)


def _environment() -> dict[str, str]:
    """This process's environment, with the package importable as it is here."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": root if not path else os.pathsep.join((root, path))}


def _measure(request: Mapping[str, Any]) -> int | None:
    import numpy as np
    import onnxruntime as ort

    from onnxprune.profile.providers import check_provider, choose_provider, execution_providers

    options = ort.SessionOptions()
    options.log_severity_level = 4
    if request["threads"] is not None:
        options.intra_op_num_threads = request["threads"]
    provider = choose_provider(request["provider"])
    providers = execution_providers(provider, exact=False)
    arrays = {name: np.zeros(shape, np.dtype(dtype)) for name, (shape, dtype) in request["inputs"].items()}
    _forget_peak()
    before = _status("VmRSS")
    if before is None:
        return None
    session = ort.InferenceSession(request["path"], options, providers=providers, enable_fallback=0)
    check_provider(provider, session)
    for _ in range(3):
        session.run(None, arrays)
    peak = _status("VmHWM")
    return None if peak is None else max(peak - before, 0)


def _forget_peak() -> None:
    """Let the peak start from here rather than from the imports, on systems that allow it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(field: str) -> int | None:
    """A figure of this process in bytes; getrusage's peak would include the parent's, from before exec."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None


if __name__ == "__main__":
    json.dump(_measure(json.load(sys.stdin)), sys.stdout)
