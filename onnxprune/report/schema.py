"""The reports, as frozen values: what the JSON of schema version 1 says, name by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelFiles:
    """The files of a run, None where a model came from memory or nothing was written.

    ``sha256`` maps ``input`` and ``output`` to hexadecimal digests of the serialized models.
    """

    input: str | None
    output: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fidelity:
    """How closely a model follows another on the same samples.

    ``agreement`` is the share of samples with the same top-1 class, in percent; ``kl`` the mean
    Kullback-Leibler divergence of the model's class probabilities from the other's, in nats.
    """

    agreement: float
    kl: float


@dataclass(frozen=True)
class Figures:
    """What one model costs and scores.

    ``macs`` are multiply-accumulates at batch 1, ``bytes`` the size of the serialized file with its
    external data. ``metrics`` (``top1``, ``top5``) are in percent.
    """

    macs: int
    params: int
    bytes: int
    latency_ms: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    fidelity: Fidelity | None = None


@dataclass(frozen=True)
class GroupChange:
    """One group of units: how many channels it had and keeps, and the nodes that they pass."""

    name: str
    channels_before: int
    channels_after: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class SkippedGroup:
    """Channels that can't be pruned, and why."""

    name: str
    reason: str
    channels: int | None = None


@dataclass(frozen=True)
class ClassMerge:
    """An inner node of the class tree: the nodes it joins, and its height in 0..1."""

    children: tuple[int, ...]
    height: float


@dataclass(frozen=True)
class ClassEdge:
    """An edge of the class graph, with the signed correlation of its two classes."""

    first: int
    second: int
    correlation: float


@dataclass(frozen=True)
class ClassStructure:
    """What selection knew about the classes: what their responses' correlation was made into.

    ``names`` (C,) number the classes. ``merges`` are the tree, children first: its ``i``-th is node
    ``C + i``, the classes themselves being nodes 0 to ``C - 1``. ``edges`` are the graph.
    """

    names: tuple[str, ...]
    merges: tuple[ClassMerge, ...] = ()
    edges: tuple[ClassEdge, ...] = ()


@dataclass(frozen=True)
class CompressionReport:
    """Everything that one compression did and measured."""

    model: ModelFiles
    before: Figures
    after: Figures
    method: Mapping[str, Any]
    data: Mapping[str, Any]
    groups: tuple[GroupChange, ...]
    skipped: tuple[SkippedGroup, ...]
    timings_s: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    classes: ClassStructure | None = None


@dataclass(frozen=True)
class LayerCost:
    """One layer with weights: its cost and its channel counts.

    ``prunable_in`` and ``prunable_out`` count the channels on each side that belong to a group.
    """

    name: str
    op: str
    macs: int
    params: int
    channels_in: int
    channels_out: int
    prunable_in: int
    prunable_out: int


@dataclass(frozen=True)
class GroupInfo:
    """A group that can be pruned: the number of its units and the nodes around them."""

    name: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Coverage:
    """Shares (0..1) of the model's cost that would go if every prunable channel went."""

    macs: float
    params: float


@dataclass(frozen=True)
class Obstacle:
    """A reason why channels stay, at all the ``places`` (nodes, or values) that have it.

    ``macs`` is the share (0..1) of the model's MACs in the nodes that read or give such channels,
    ``macs_kept`` what of it would stay there if every prunable channel went. A node may have several
    reasons, so shares overlap; of several reasons for one channel the first counts.
    """

    reason: str
    places: tuple[str, ...]
    macs: float
    macs_kept: float


@dataclass(frozen=True)
class InspectReport:
    """What a model costs, what can be pruned and why the rest can't."""

    model: ModelFiles
    format: Mapping[str, Any]
    """``ir_version``, ``opsets`` (by domain), ``producer``, ``inputs`` and ``outputs`` with their shapes."""
    cost: Figures
    coverage: Coverage
    layers: tuple[LayerCost, ...]
    groups: tuple[GroupInfo, ...]
    skipped: tuple[SkippedGroup, ...]
    warnings: tuple[str, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    """What stands in the way of pruning, that which keeps most MACs first."""


@dataclass(frozen=True)
class SensitivityPoint:
    """What taking ``removed`` (0..1) of one group's units, and nothing else, does to the output."""

    removed: float
    fidelity: Fidelity
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupSensitivity:
    """One group's sensitivity curve, points in rising order of ``removed``."""

    name: str
    channels: int
    points: tuple[SensitivityPoint, ...]


@dataclass(frozen=True)
class AnalysisReport:
    """How much each group can lose."""

    model: ModelFiles
    data: Mapping[str, Any]
    metrics: Mapping[str, float]
    groups: tuple[GroupSensitivity, ...]
    skipped: tuple[SkippedGroup, ...]
    timings_s: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    classes: ClassStructure | None = None


@dataclass(frozen=True)
class Comparison:
    """A second model, scored on the same samples, and how far the first one follows it."""

    model: ModelFiles
    metrics: Mapping[str, float]
    fidelity: Fidelity


@dataclass(frozen=True)
class EvaluationReport:
    """Accuracy of one model, and its fidelity to another one where that is given."""

    model: ModelFiles
    data: Mapping[str, Any]
    metrics: Mapping[str, float]
    samples: int
    against: Comparison | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latency:
    """Times of single runs in milliseconds, over ``runs`` measured ones."""

    median_ms: float
    p90_ms: float
    mean_ms: float
    runs: int


@dataclass(frozen=True)
class ModelBenchmark:
    """How fast and how large one model is here.

    ``throughput`` is in samples a second, ``memory_bytes`` the growth of a fresh process's peak
    resident memory from before the model is loaded to after its runs.
    """

    model: ModelFiles
    latency: Latency
    throughput: float
    memory_bytes: int | None
    bytes: int


@dataclass(frozen=True)
class BenchmarkReport:
    """Models side by side; where there are two, ``ratio`` is the second over the first, name by name."""

    models: tuple[ModelBenchmark, ...]
    provider: str
    threads: int | None
    batch: int
    ratio: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


Report = CompressionReport | InspectReport | AnalysisReport | EvaluationReport | BenchmarkReport
