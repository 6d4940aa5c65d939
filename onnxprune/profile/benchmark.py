"""Benchmark: latency, throughput, memory and file size of one model, or of two side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxprune.config import CompressConfig
from onnxprune.errors import UsageError
from onnxprune.io.load import LoadedModel, ModelSource, load
from onnxprune.io.save import save
from onnxprune.profile.latency import checked_runs, random_inputs, time_sessions
from onnxprune.profile.memory import peak_memory
from onnxprune.profile.session import Session, open_session
from onnxprune.progress import Progress, SilentProgress
from onnxprune.report.evaluation import model_files
from onnxprune.report.inspection import file_bytes
from onnxprune.report.schema import BenchmarkReport, Latency, ModelBenchmark
from onnxprune.values import parse_shape, whole


def benchmark(
    models: ModelSource | Sequence[ModelSource],
    *,
    batch: int | None = None,
    runs: int = 50,
    shape: str | Sequence[int] | None = None,
    provider: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> BenchmarkReport:
    """Measure one model, or several in turns, on random inputs; see `measure_latency` for ``shape``.

    ``batch`` is 1 where nothing is said; a ``shape``, which may be a text such as ``1x3x224x224``, states
    its own. ``ratio`` of the report is the second model over the first. Raises UsageError for options that
    make no sense, ModelError for a model that is refused.
    """
    runs = checked_runs(runs)
    batch, shape = _batch_and_shape(batch, shape)
    several = models if isinstance(models, list | tuple) else (models,)
    if not several:
        raise UsageError("no model to measure", hint="give a model, or a list of them")
    for model in several:
        CompressConfig.of(model, {"provider": provider, "threads": threads})
    progress = progress or SilentProgress()
    loaded = [load(model) for model in several]
    sessions = [open_session(item.model, provider=provider, threads=threads, exact=False) for item in loaded]
    latencies = time_sessions(sessions, batch=batch, runs=runs, shape=shape, progress=progress)
    results = []
    with progress.stage("measure memory", len(loaded)) as stage:
        for item, session, latency in zip(loaded, sessions, latencies, strict=True):
            results.append(_result(item, session, latency, batch, shape, threads))
            stage.advance()
    return BenchmarkReport(
        models=tuple(results),
        provider=sessions[0].provider,
        threads=threads,
        batch=batch,
        ratio=_ratio(*results) if len(results) == 2 else {},
    )


def _batch_and_shape(
    batch: int | None, shape: str | Sequence[int] | None
) -> tuple[int, tuple[int, ...] | None]:
    """Samples in a run, and the shape where one is given; UsageError where these contradict each other."""
    stated = None if batch is None else whole("batch", batch, 1)
    if shape is None:
        return stated or 1, None
    sizes = parse_shape(shape)
    if stated not in (None, sizes[0]):
        raise UsageError(
            f"--batch {stated} contradicts --shape {'x'.join(map(str, sizes))}, which starts with the batch",
            hint=f"leave out --batch, or write --shape {'x'.join(map(str, (stated, *sizes[1:])))}",
        )
    return sizes[0], sizes


def _result(
    item: LoadedModel,
    session: Session,
    latency: Latency,
    batch: int,
    shape: Sequence[int] | None,
    threads: int | None,
) -> ModelBenchmark:
    inputs = random_inputs(session.inputs, batch=batch, shape=shape)
    with _stored(item) as path:
        memory = peak_memory(
            path,
            inputs={name: (array.shape, array.dtype.name) for name, array in inputs.items()},
            provider=session.provider,
            threads=threads,
        )
    return ModelBenchmark(
        model=model_files(item),
        latency=latency,
        throughput=batch * 1e3 / latency.mean_ms,
        memory_bytes=memory,
        bytes=file_bytes(item),
    )


@contextmanager
def _stored(item: LoadedModel) -> Iterator[Path]:
    """The model's file, for the time of the block where it came from memory."""
    if item.path is not None:
        yield item.path
        return
    with TemporaryDirectory() as folder:
        yield save(item.model, Path(folder, "model.onnx"))[0]


def _ratio(first: ModelBenchmark, second: ModelBenchmark) -> dict[str, float]:
    pairs = {
        "latency_median": (first.latency.median_ms, second.latency.median_ms),
        "latency_p90": (first.latency.p90_ms, second.latency.p90_ms),
        "throughput": (first.throughput, second.throughput),
        "bytes": (float(first.bytes), float(second.bytes)),
    }
    if first.memory_bytes and second.memory_bytes is not None:
        pairs["memory_bytes"] = (float(first.memory_bytes), float(second.memory_bytes))
    return {name: after / before for name, (before, after) in pairs.items() if before}
