"""One way to compress a model, and keeping it in a folder for a run that goes on.

Selection and recovery take minutes, and on a GPU differ from run to run in the last bits, while a checkpoint
of fine-tuning serves one start alone. So that start is kept beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnxprune.calibration import Calibration
from onnxprune.config import CompressConfig
from onnxprune.errors import UsageError
from onnxprune.evaluate.metrics import Evaluation
from onnxprune.goals import Latencies
from onnxprune.graph.plan import Plan
from onnxprune.io import wire
from onnxprune.io.text import save_text
from onnxprune.io.validate import without_initializers
from onnxprune.recover.closed_form import LayerFit
from onnxprune.recover.finetune import Finetuned
from onnxprune.report.schema import ClassEdge, ClassMerge, ClassStructure

MODEL, RECORD = "start.onnx", "start.json"

_DECIDING = (
    "budgets", "max_drop", "method", "data_term", "depth_weight", "recover", "keep", "only", "round_to",
    "max_group_ratio", "seed",
)  # fmt: skip
"""Options that decide on the start, beside the model, the calibration samples and a plan of the user's."""


@dataclass(frozen=True)
class Candidate:
    """A plan, the model it leads to, what recovery did to its layers, and what it scores once that is known.

    ``depth_weight`` is that of the losses it was chosen by, None for a plan of the user's own.
    """

    plan: Plan
    model: onnx.ModelProto
    fits: tuple[LayerFit, ...]
    depth_weight: float | None = None
    evaluation: Evaluation | None = None
    tuning: Finetuned | None = None
    classes: ClassStructure | None = None
    latencies: Latencies | None = None


def run_digest(config: CompressConfig, model_sha256: str, plan: str, data: Calibration) -> str:
    """What tells one start from another; ``plan`` is the text of the user's own."""
    options = {name: repr(getattr(config, name)) for name in _DECIDING}
    digest = hashlib.sha256(json.dumps([options, plan, model_sha256]).encode())
    digest.update(data.samples.arrays().inputs.tobytes())
    digest.update(data.classes.tobytes() + repr(data.names).encode())
    return digest.hexdigest()


def keep_start(folder: Path, candidate: Candidate, run: str) -> None:
    """Write a recovered candidate of the ``run`` into ``folder``; UsageError where that fails."""
    record = {
        "run": run,
        "units": len(candidate.plan.keep),
        "removed": np.flatnonzero(~candidate.plan.keep).tolist(),
        "fits": [asdict(fit) for fit in candidate.fits],
        "depth_weight": candidate.depth_weight,
        "classes": None if candidate.classes is None else asdict(candidate.classes),
    }
    model, partial = candidate.model, folder / f"{MODEL}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            wire.write_model(stream, without_initializers(model), list(model.graph.initializer))
        os.replace(partial, folder / MODEL)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(
            f"can't write a checkpoint to {folder}: {error.strerror or error}", hint="choose another folder"
        ) from error
    save_text(folder / RECORD, json.dumps(record), "--checkpoint")


def kept_start(folder: Path, run: str) -> Candidate | None:
    """The candidate that `keep_start` wrote, None where there is none; UsageError for another run's."""
    if not (folder / RECORD).is_file():
        return None
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["run"] != run:
            raise UsageError(
                f"the checkpoint in {folder} is of another run: model, data or settings differ",
                hint="choose another folder, or remove it",
            )
        with (folder / MODEL).open("rb") as stream:
            model, _ = wire.read_model(stream)
        if not model.graph.output:
            raise ValueError("no model")
        keep = np.ones(record["units"], dtype=np.bool_)
        keep[record["removed"]] = False
        fits = tuple(LayerFit(**fit) for fit in record["fits"])
        return Candidate(Plan(keep), model, fits, record["depth_weight"], classes=_classes(record["classes"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError, DecodeError) as error:
        raise UsageError(
            f"{folder / RECORD} is not a start of fine-tuning", hint="remove the folder to start anew"
        ) from error


def _classes(record: dict[str, Any] | None) -> ClassStructure | None:
    if record is None:
        return None
    merges = (ClassMerge(tuple(merge["children"]), merge["height"]) for merge in record["merges"])
    return ClassStructure(
        tuple(record["names"]), tuple(merges), tuple(ClassEdge(**edge) for edge in record["edges"])
    )
