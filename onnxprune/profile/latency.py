"""Latency: what one run of a model takes here, measured so that two models can be compared."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import UsageError
from onnxprune.io.limits import memory_limit
from onnxprune.io.load import ModelSource
from onnxprune.profile.session import Session, open_session
from onnxprune.profile.spec import TensorSpec
from onnxprune.progress import Progress, SilentProgress
from onnxprune.report.schema import Latency
from onnxprune.values import whole

_WARM_UP_RUNS = 5
_WARM_UP_SECONDS = 0.2
"""Both are reached before anything counts: caches fill and processors leave their idle clock."""

MAX_RUNS = 10_000_000
"""Each is remembered, and more say nothing new."""

Array = npt.NDArray[Any]


def measure_latency(
    models: Sequence[ModelSource],
    *,
    batch: int = 1,
    runs: int = 50,
    shape: Sequence[int] | None = None,
    provider: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Latency, ...]:
    """Time ``runs`` runs of each model on one random batch; results in the order of ``models``.

    The models take turns, run by run, so that a machine that slows down or speeds up meanwhile does
    so for all of them. ``shape`` (with the batch first) is needed where a model leaves sizes other
    than the batch free. On a GPU, times include the copies to and from the device.
    UsageError where the model's own batch size is another one, or a size is not known.
    """
    batch, runs = whole("batch", batch, 1), checked_runs(runs)
    sessions = [open_session(model, provider=provider, threads=threads, exact=False) for model in models]
    return time_sessions(sessions, batch=batch, runs=runs, shape=shape, progress=progress)


def time_sessions(
    sessions: Sequence[Session],
    *,
    batch: int = 1,
    runs: int = 50,
    shape: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> tuple[Latency, ...]:
    """As `measure_latency`, for models that are loaded already."""
    inputs = [random_inputs(session.inputs, batch=batch, shape=shape) for session in sessions]
    for session, values in zip(sessions, inputs, strict=True):
        _warm_up(session, values)
    seconds = np.zeros((len(sessions), runs))
    with (progress or SilentProgress()).stage("measure latency", runs) as stage:
        for run in range(runs):
            for index, (session, values) in enumerate(zip(sessions, inputs, strict=True)):
                start = time.perf_counter()
                session.run(values)
                seconds[index, run] = time.perf_counter() - start
            stage.advance()
    return tuple(_summary(row) for row in seconds)


def checked_runs(runs: object) -> int:
    """A number of runs; UsageError where it makes no sense."""
    count = whole("runs", runs, 1)
    if count > MAX_RUNS:
        raise UsageError(f"--runs {count} is more than {MAX_RUNS:,}", hint="some hundreds tell models apart")
    return count


def random_inputs(
    specs: Sequence[TensorSpec], *, batch: int = 1, shape: Sequence[int] | None = None
) -> dict[str, Array]:
    """Arrays that fit a model's inputs: standard normal floats, zeros for everything else.

    ``shape`` is for models with one input. UsageError where a size is free and not given, or where they
    are larger than the memory.
    """
    if shape is not None and len(specs) != 1:
        raise UsageError(
            f"--shape is for models with one input; this one has {len(specs)}",
            hint="leave out --shape, and export the model with fixed sizes where it leaves any free",
        )
    random = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for spec in specs:
        sizes = _sizes(spec, batch, shape)
        # Beyond the memory there are sizes that numpy refuses in other ways than by a MemoryError.
        if math.prod(sizes) * spec.dtype.itemsize > memory_limit():
            raise _too_large(spec, sizes)
        try:
            if spec.dtype.kind == "f":
                arrays[spec.name] = random.standard_normal(sizes).astype(spec.dtype)
            else:
                arrays[spec.name] = np.zeros(sizes, spec.dtype)
        except MemoryError as error:
            raise _too_large(spec, sizes) from error
    return arrays


def _too_large(spec: TensorSpec, sizes: Sequence[int]) -> UsageError:
    return UsageError(
        f"an input '{spec.name}' of {'x'.join(map(str, sizes))} does not fit into the memory",
        hint="measure a smaller --batch or --shape",
    )


def _sizes(spec: TensorSpec, batch: int, shape: Sequence[int] | None) -> tuple[int, ...]:
    if shape is not None:
        sizes = tuple(shape)
        if not spec.accepts(sizes, any_batch=False):
            raise UsageError(
                f"--shape {'x'.join(map(str, sizes))} does not fit the model's input '{spec.name}', "
                f"which wants {spec.describe()}",
                hint=f"write it like {_example(spec, batch)}",
            )
        return sizes
    if spec.shape and spec.shape[0] not in (None, batch):
        raise UsageError(
            f"the model's input '{spec.name}' insists on a batch of {spec.shape[0]}",
            hint=f"measure it with --batch {spec.shape[0]}",
        )
    known = [size for size in spec.shape[1:] if size is not None]
    if len(known) < len(spec.shape) - 1:
        raise UsageError(
            f"the model's input '{spec.name}' leaves sizes free: {spec.describe()}",
            hint=f"say what to measure with --shape, such as {_example(spec, batch)}",
        )
    return (batch, *known) if spec.shape else ()


def _example(spec: TensorSpec, batch: int) -> str:
    return "x".join([str(batch), *("224" if size is None else str(size) for size in spec.shape[1:])])


def _warm_up(session: Session, inputs: Mapping[str, Array]) -> None:
    start, runs = time.perf_counter(), 0
    while runs < _WARM_UP_RUNS or time.perf_counter() - start < _WARM_UP_SECONDS:
        session.run(inputs)
        runs += 1


def _summary(seconds: npt.NDArray[np.float64]) -> Latency:
    milliseconds = 1e3 * seconds
    return Latency(
        median_ms=float(np.median(milliseconds)),
        p90_ms=float(np.percentile(milliseconds, 90)),
        mean_ms=float(milliseconds.mean()),
        runs=len(milliseconds),
    )
