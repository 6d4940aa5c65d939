"""All checks of the project: ``python -m tests``. Stops at the first that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy", "--strict", "onnxprune", "cli"),
    ("pytest", "-n", "2"),
)


def main() -> int:
    for check in CHECKS:
        print("$", *check, flush=True)
        status = subprocess.run((sys.executable, "-m", *check), cwd=ROOT, check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
