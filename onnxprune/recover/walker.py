"""Walking a model from its inputs to its outputs, a segment at a time, over all samples.

Sequential recovery needs, layer after layer, activations that depend on the weights already
changed. A walker keeps the tensors alive at the current cut for all samples, and runs only the
segment between two cuts: in total each node runs about once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from onnxprune.profile.providers import choose_provider
from onnxprune.profile.session import open_session

Array = npt.NDArray[np.generic]

_HALF_ABOVE = 256 << 20
"""Bytes above which an activation is kept in half precision, where its values fit."""

_BATCH_BYTES = 128 << 20


class Walker:
    """Activations of one model at a moving cut, for all samples at once.

    The model may change behind the cut while walking: weights of nodes that have not run yet.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: Array,
        shapes: Mapping[str, Sequence[int]],
        *,
        batch: int | None = None,
        provider: str = "auto",
        threads: int | None = None,
    ) -> None:
        """Start at the model's input, with ``inputs`` (n, ...); ``shapes`` give tensors' sizes at batch 1.

        ``batch`` is the batch size that the model insists on; its multiple must be ``n``.
        """
        self.model = model
        self._shapes = shapes
        self._provider, self._threads = provider, threads
        self._weights = {tensor.name for tensor in model.graph.initializer}
        data = next(value.name for value in model.graph.input if value.name not in self._weights)
        self._alive: dict[str, Array] = {data: inputs}
        self._samples, self._batch = len(inputs), batch
        self._outputs = {value.name for value in model.graph.output}
        self._done = 0

    @property
    def samples(self) -> int:
        """Number of samples that walk."""
        return self._samples

    @property
    def device(self) -> torch.device:
        """Where the algebra on this walker's activations should run."""
        return torch.device("cuda" if choose_provider(self._provider) == "cuda" else "cpu")

    def advance(self, name: str) -> None:
        """Run every node before the one of that name; keep what it and later nodes read."""
        nodes = self.model.graph.node
        node = next(index for index, entry in enumerate(nodes) if entry.name == name)
        if node <= self._done:
            return
        made = {name for entry in nodes[self._done : node] for name in entry.output}
        needed = {name for entry in nodes[node:] for name in _reads(entry)} | self._outputs
        wanted = sorted(made & needed)
        fresh = self.compute(wanted)
        self._alive = {name: value for name, value in {**self._alive, **fresh}.items() if name in needed}
        self._done = node

    def compute(self, names: Sequence[str]) -> dict[str, Array]:
        """Values (n, ...) of tensors at or behind the cut, for all samples; the cut stays."""
        found = {name: self._alive[name] for name in names if name in self._alive}
        missing = [name for name in names if name not in found]
        if not missing:
            return found
        parts: dict[str, list[Array]] = {name: [] for name in missing}
        for _, values in self._run(missing, self.batch_size(missing)):
            for name, value in values.items():
                parts[name].append(_compact(value, self._samples))
        return found | {name: _joined(values) for name, values in parts.items()}

    def stream(self, names: Sequence[str], size: int) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Values of tensors at or behind the cut, ``size`` samples at a time, as float32 tensors."""
        missing = [name for name in names if name not in self._alive]
        for samples, values in self._run(missing, size):
            known = {name: self._alive[name][samples] for name in names if name in self._alive}
            yield (
                samples,
                {
                    name: torch.from_numpy(np.ascontiguousarray(value)).float()
                    for name, value in {**known, **values}.items()
                },
            )

    def batch_size(self, names: Sequence[str]) -> int:
        """Samples at a time that keep what a segment up to ``names`` reads and writes under 128 MiB."""
        used = {*names, *self._alive}
        each = 4 * sum(int(np.prod(self._shapes[name])) for name in used if name in self._shapes)
        return self._batch or max(1, min(256, _BATCH_BYTES // max(1, each)))

    def _run(self, missing: Sequence[str], size: int) -> Iterator[tuple[slice, dict[str, Array]]]:
        slices = [slice(start, min(start + size, self._samples)) for start in range(0, self._samples, size)]
        if not missing:
            yield from ((samples, {}) for samples in slices)
            return
        segment = cut_between(self.model, list(self._alive), missing, self._shapes, self._batch)
        session = open_session(segment, provider=self._provider, threads=self._threads)
        for samples in slices:
            feeds = {
                spec.name: self._alive[spec.name][samples].astype(spec.dtype, copy=False)
                for spec in session.inputs
            }
            yield samples, session.run(feeds)


def cut_between(
    model: onnx.ModelProto,
    sources: Sequence[str],
    wanted: Sequence[str],
    shapes: Mapping[str, Sequence[int]],
    batch: int | None = None,
) -> onnx.ModelProto:
    """The part of ``model`` that computes ``wanted`` from ``sources``, its batch axis free or ``batch``."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    types = _types(model)
    made = {name: node for node in model.graph.node for name in node.output}
    reached: set[str] = set()
    chosen: set[int] = set()
    pending = list(wanted)
    known = set(sources)
    while pending:
        name = pending.pop()
        if name in reached or not name:
            continue
        reached.add(name)
        if name in known or name in weights:
            continue
        node = made[name]
        if id(node) not in chosen:
            chosen.add(id(node))
            pending.extend(_reads(node))
    nodes = [
        node
        for node in model.graph.node
        if any(made.get(name) is node and id(node) in chosen for name in node.output)
    ]
    inputs = [name for name in sources if name in reached]
    graph = onnx.helper.make_graph(
        [],
        "segment",
        [_value(name, types, shapes, batch) for name in inputs],
        [
            onnx.helper.make_tensor_value_info(name, types.get(name, onnx.TensorProto.FLOAT), None)
            for name in wanted
        ],
    )
    graph.node.extend(nodes)
    graph.initializer.extend(weights[name] for name in sorted(reached & set(weights)))
    segment = onnx.helper.make_model(
        graph, opset_imports=list(model.opset_import), ir_version=model.ir_version
    )
    segment.functions.extend(model.functions)
    return segment


def _value(
    name: str, types: Mapping[str, int], shapes: Mapping[str, Sequence[int]], batch: int | None
) -> onnx.ValueInfoProto:
    shape = shapes.get(name)
    dims = None if not shape else [batch or "batch", *shape[1:]]
    return onnx.helper.make_tensor_value_info(name, types.get(name, onnx.TensorProto.FLOAT), dims)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    entries = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in entries}


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
            for inner in graph.node:
                yield from _reads(inner)


def _compact(value: Array, samples: int) -> Array:
    if value.dtype != np.float32 or value.nbytes // max(1, len(value)) * samples <= _HALF_ABOVE:
        return value
    half = value.astype(np.float16)
    return half if np.isfinite(half).all() else value


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
