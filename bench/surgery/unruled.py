"""Standard ops without a channel rule: what reaches them is pinned, and the report names them.

``python -m bench.surgery unruled`` prints every op of the installed onnx package's default domain that has no
rule at the newest opset that is read. Channels that reach such an op stay; the model is pruned around it.
Ops of other domains have no rule unless the last line names them.
"""

from __future__ import annotations

import argparse

from onnx import defs

from bench.surgery.common import Say
from onnxprune.graph.ops.registry import find_rule, ruled_ops
from onnxprune.io.limits import MAX_OPSET
from onnxprune.io.load import REFUSED_OPS

MEANING = {
    "pinned": "channels that reach them stay, with the op's name as the reason",
    "refused": "the model is refused, with the way out",
    "too new": f"the model is refused: they came after opset {MAX_OPSET}",
    "no input": "nothing reaches them",
}


def unruled() -> dict[str, list[str]]:
    """Ops without a rule, by what happens to a model that has them; see `MEANING`."""
    found: dict[str, list[str]] = {kind: [] for kind in MEANING}
    for name in sorted({schema.name for schema in defs.get_all_schemas() if schema.domain == ""}):
        if find_rule("", name, MAX_OPSET) is not None:
            continue
        if name in REFUSED_OPS:
            kind = "refused"
        elif not defs.has(name, MAX_OPSET, ""):
            kind = "too new"
        else:
            kind = "pinned" if defs.get_schema(name, MAX_OPSET, "").max_input else "no input"
        found[kind].append(name)
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    del parser  # it has none


def run(options: argparse.Namespace, say: Say) -> int:
    del options
    for kind, names in unruled().items():
        if not names:
            continue
        say(f"{len(names)} ops, {MEANING[kind]}:")
        say("")
        say(", ".join(names))
        say("")
    others = [f"{domain}.{op}" for domain, op in ruled_ops() if domain]
    standard = len(ruled_ops()) - len(others)
    say(f"{standard} standard ops have a rule; of other domains: {', '.join(others) or 'none'}")
    return 0
