"""Proofs of the surgery: ``python -m bench.surgery PROOF [options] [--out FILE.md]``.

Each prints a table and ends with status 1 where anything failed. ``--out`` records the table with the
command, the date, the time it took and the versions it ran on. ``PROOF --help`` lists a proof's options.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import platform
import resource
import sys
import time
from pathlib import Path

PROOFS = (
    "rules", "unruled", "random_graphs", "node_cases", "classics", "minis", "composition", "performance",
)  # fmt: skip
VERSIONS = ("onnxprune", "onnx", "onnxruntime-gpu", "numpy", "torch", "onnxscript")


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in PROOFS:
        print(f"{__doc__}\nPROOF is one of {', '.join(PROOFS)}.")
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    name, arguments = sys.argv[1], sys.argv[2:]
    module = importlib.import_module(f"bench.surgery.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.surgery {name}", description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="record the table here")
    module.add_options(parser)
    options = parser.parse_args(arguments)
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    start = time.perf_counter()
    failures = module.run(options, say)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    processor = sum(usage.ru_utime + usage.ru_stime for usage in used)
    say("")
    say(f"{failures} failures, {processor:.0f} s of CPU, {time.perf_counter() - start:.0f} s of wall time")
    if options.out is not None:
        if "--out" in arguments:
            position = arguments.index("--out")
            del arguments[position : position + 2]
        title = (module.__doc__ or "").splitlines()[0]
        head = f"# {title}\n\n`{' '.join(['python -m bench.surgery', name, *arguments])}`, {versions()}\n\n"
        options.out.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failures else 0


def versions() -> str:
    """The date, and on what it ran."""
    found = [datetime.date.today().isoformat(), f"python {platform.python_version()}"]
    for package in VERSIONS:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
