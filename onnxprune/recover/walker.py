"""Walking a model from its inputs to its outputs, a segment at a time, over all samples.

Sequential recovery needs, layer after layer, activations that depend on the weights already
changed. A walker keeps the tensors alive at the current cut for all samples, and runs only the
segment between two cuts: in total each node runs about once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from onnxprune.graph.extract import extract
from onnxprune.graph.fold import captured
from onnxprune.profile.providers import algebra_device, choose_provider
from onnxprune.profile.session import Session, open_session

Array = npt.NDArray[np.generic]

_HALF_ABOVE = 256 << 20
"""Bytes above which an activation is kept in half precision, where its values fit."""

_HALF_MAX = 65_504.0
"""The largest number in half precision."""

_BATCH_BYTES = 128 << 20


@dataclass(frozen=True)
class Mark:
    """A cut at which a walker stood: how many nodes had run, and the activations alive there."""

    done: int
    alive: Mapping[str, Array]


class Walker:
    """Activations of one model at a moving cut, for all samples at once.

    The model may change behind the cut while walking: weights of nodes that have not run yet. Only
    tensors whose first axis counts the samples (or so many rows for each) can be kept; what holds
    all samples of a batch jointly, such as its shape, is computed anew for each batch.
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

        ``batch`` is the batch size that the model insists on; n must be its multiple.
        """
        self.model = model
        self._shapes = shapes
        self._provider, self._threads = provider, threads
        self._weights = {tensor.name for tensor in model.graph.initializer}
        data = next(value.name for value in model.graph.input if value.name not in self._weights)
        self._alive: dict[str, Array] = {data: inputs}
        self._types = {data: inputs.dtype}
        self._joint: set[str] = set()
        self._stored, self._batch = len(inputs), batch
        self._chosen: npt.NDArray[np.int64] | None = None
        self._done = 0

    @property
    def samples(self) -> int:
        """Number of samples that walk."""
        return self._stored if self._chosen is None else len(self._chosen)

    @property
    def device(self) -> torch.device:
        """Where the algebra on this walker's activations should run."""
        return algebra_device(choose_provider(self._provider))

    def advance(self, name: str) -> None:
        """Run every node before the one of that name; keep what it and later nodes read.

        Not for a walker with some samples alone.
        """
        assert self._chosen is None
        nodes = self.model.graph.node
        cut = next(index for index, node in enumerate(nodes) if node.name == name)
        if cut <= self._done:
            return
        while True:
            kept = self._kept_at(cut)
            wanted = [name for name in kept if name not in self._alive]
            session = self._open(wanted)
            joint = self._joint_among(session)
            if not joint:
                break
            self._joint |= joint
        values = {**self._alive, **self._gather(session, wanted)}
        self._alive = {name: values[name] for name in kept}
        self._done = cut

    def mark(self) -> Mark:
        """Where the walker stands, to come back to."""
        return Mark(self._done, dict(self._alive))

    def rewind(self, mark: Mark) -> None:
        """Go back to where the walker stood; what lay between is run anew, with the weights of the moment."""
        self._done, self._alive = mark.done, dict(mark.alive)

    @property
    def takes_single_samples(self) -> bool:
        """Whether the model doesn't insist on several samples at a time."""
        return self._batch in (None, 1)

    def only(self, samples: npt.NDArray[np.int64]) -> Walker:
        """A view of the walker at its cut, with some samples alone; the model has to take single ones."""
        other = copy.copy(self)
        other._joint, other._types = set(self._joint), dict(self._types)
        other._chosen = samples if self._chosen is None else self._chosen[samples]
        return other

    def segment(self, outputs: Sequence[str]) -> onnx.ModelProto:
        """A model of its own from the tensors alive to ``outputs``."""
        return extract(self.model, outputs, [*map(self._stated, self._alive)])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor for one sample."""
        return tuple(self._shapes[name])

    def bytes_of(self, name: str) -> int:
        """Bytes of a tensor for one sample, in single precision."""
        return 4 * int(np.prod(self._shapes[name]))

    def compute(self, names: Sequence[str]) -> dict[str, Array]:
        """Values (n, ...) of tensors at the cut or after it, for all samples; the cut stays."""
        missing = [name for name in names if name not in self._alive]
        found = self._gather(self._open(missing), missing)
        every = slice(0, self.samples)
        return {name: found[name] if name in found else self._part(name, every) for name in names}

    def stream(self, names: Sequence[str], size: int) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Values of tensors at the cut or after it, ``size`` samples at a time, floats as float32."""
        missing = [name for name in names if name not in self._alive]
        for samples, values in self._run(self._open(missing), size):
            known = {name: self._part(name, samples) for name in names if name in self._alive}
            yield (
                samples,
                {name: _as_tensor(value) for name, value in {**known, **values}.items()},
            )

    def batch_size(self, names: Sequence[str]) -> int:
        """Samples at a time that keep what a segment up to ``names`` reads and writes under 128 MiB."""
        used = {*names, *self._alive}
        each = sum(self.bytes_of(name) for name in used if name in self._shapes)
        return self._batch or max(1, min(256, _BATCH_BYTES // max(1, each)))

    def _kept_at(self, cut: int) -> list[str]:
        """Tensors to keep at a cut: what later nodes read, or what that is computed from if it is joint."""
        nodes = self.model.graph.node
        made = {name: node for node in nodes[:cut] for name in node.output if name}
        pending = [name for node in nodes[cut:] for name in _reads(node)]
        found: dict[str, None] = {}
        seen: set[str] = set()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self._joint:
                pending.extend(_reads(made[name]))
            elif name in made or name in self._alive:
                found[name] = None
        return sorted(found)

    def _open(self, wanted: Sequence[str]) -> Session | None:
        """A session from the tensors alive to ``wanted``; None where nothing has to run."""
        if not wanted:
            return None
        return open_session(self.segment(wanted), provider=self._provider, threads=self._threads)

    def _stated(self, name: str) -> onnx.ValueInfoProto:
        """Type and shape of a tensor that is alive, as a segment's input."""
        value = self._alive[name]
        rows = len(value) * self._batch // self._stored if self._batch else None
        kind = onnx.helper.np_dtype_to_tensor_dtype(self._types[name])
        return onnx.helper.make_tensor_value_info(name, kind, [rows, *value.shape[1:]])

    def _part(self, name: str, samples: slice) -> Array:
        value = self._alive[name]
        if self._chosen is None:
            start, stop = (len(value) * edge // self._stored for edge in (samples.start, samples.stop))
            return value[start:stop]
        shape = value.shape[1:]
        return value.reshape(self._stored, -1, *shape)[self._chosen[samples]].reshape(-1, *shape)

    def _feed(self, session: Session, samples: slice) -> dict[str, Array]:
        return {
            spec.name: _widened(self._part(spec.name, samples)).astype(spec.dtype, copy=False)
            for spec in session.inputs
        }

    def _run(self, session: Session | None, size: int) -> Iterator[tuple[slice, dict[str, Array]]]:
        for start in range(0, self.samples, size):
            samples = slice(start, min(start + size, self.samples))
            yield samples, {} if session is None else session.run(self._feed(session, samples))

    def _gather(self, session: Session | None, names: Sequence[str]) -> dict[str, Array]:
        """The outputs of a session for all samples; their types are noted."""
        found: dict[str, Array] = {}
        for samples, values in self._run(session, self.batch_size(names)):
            for name, value in values.items():
                self._types[name] = value.dtype
                if name not in found:
                    found[name] = self._room(value, samples.stop - samples.start)
                found[name] = _stored(found[name], samples, self.samples, value)
        return found

    def _room(self, value: Array, samples: int) -> Array:
        """Room for all samples' values, like ``value``, which holds those of ``samples``."""
        shape = (len(value) * self.samples // samples, *value.shape[1:])
        half = value.dtype == np.float32 and 4 * int(np.prod(shape)) > _HALF_ABOVE
        return np.empty(shape, np.float16 if half else value.dtype)

    def _joint_among(self, session: Session | None) -> set[str]:
        """Outputs of which a batch of two samples does not hold the first one's rows, then the second's.

        With a batch size that the model insists on, all that has an axis can be cut between batches.
        """
        if session is None:
            return set()
        first = slice(0, self._batch or 1)
        alone = [session.run(self._feed(session, first))]
        if self._batch is None and self.samples > 1:
            alone.append(session.run(self._feed(session, slice(1, 2))))
        together = session.run(self._feed(session, slice(0, len(alone)))) if len(alone) > 1 else alone[0]
        return {
            name
            for name, value in together.items()
            if not value.ndim or not _same(value, [part[name] for part in alone])
        }


def _reads(node: onnx.NodeProto) -> list[str]:
    """Every tensor that a node reads, also from inside its bodies."""
    return [name for name in (*node.input, *captured(node)) if name]


def _same(value: Array, parts: Sequence[Array]) -> bool:
    """Whether a batch's rows are its samples' rows, up to rounding that depends on the batch."""
    if any(part.shape[1:] != value.shape[1:] for part in parts) or sum(map(len, parts)) != len(value):
        return False
    joined = _joined(list(parts))
    if not np.issubdtype(value.dtype, np.floating):
        return bool(np.array_equal(value, joined))
    size = float(np.max(np.abs(joined), initial=0.0, where=np.isfinite(joined)))
    return bool(np.allclose(value, joined, rtol=0.0, atol=1e-2 * size, equal_nan=True))


def _stored(room: Array, samples: slice, count: int, value: Array) -> Array:
    """``room`` with the values of some of ``count`` samples; in single precision where they don't fit."""
    start, stop = (len(room) * edge // count for edge in (samples.start, samples.stop))
    if room.dtype == np.float16 and value.dtype == np.float32:
        single = torch.from_numpy(value)
        low, high = torch.aminmax(single)
        if -_HALF_MAX <= float(low) <= float(high) <= _HALF_MAX:  # not so where any is no number
            torch.from_numpy(room[start:stop]).copy_(single)  # many times faster than numpy
            return room
        room = _widened(room)
    room[start:stop] = value
    return room


def _widened(value: Array) -> Array:
    """Half precision as single, anything else as it is."""
    if value.dtype != np.float16:
        return value
    return torch.from_numpy(np.ascontiguousarray(value)).float().numpy()


def _as_tensor(value: Array) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(value))
    return tensor.float() if tensor.is_floating_point() else tensor


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
