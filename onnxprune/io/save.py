"""Writing models: whole or not at all, never over the input."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import onnx
from onnx import TensorProto

from onnxprune.errors import UsageError
from onnxprune.io import limits, wire
from onnxprune.io.place import check_place, resolved
from onnxprune.io.share import shared_parts

_ALIGNMENT = 4096  # bytes; lets a runtime map each weight straight from the file
_SMALL = 1024  # bytes; smaller tensors stay in the model file


def save(
    model: onnx.ModelProto,
    path: str | Path,
    *,
    external_data: bool = False,
    overwrite: bool = False,
    protect: Path | Iterable[Path] | None = None,
) -> tuple[Path, ...]:
    """Write ``model`` to ``path`` and return the files written, the model's first.

    The files appear complete or not at all. ``external_data`` (implied when the model has over
    2 GB) puts the weights into ``<name>.data`` beside the model. A link at ``path`` stays one: the model
    goes where it leads. ``protect`` names files that are never overwritten (those of the input).
    UsageError for a target that must not or can't be written.
    """
    shell, initializers = shared_parts(model)
    external = _is_external(initializers, external_data)
    targets = check_save(path, external_data=external, overwrite=overwrite, protect=protect)
    target = targets[0]
    try:
        # The prefix is short whatever the target's name, which may be as long as names can be.
        scratch = Path(tempfile.mkdtemp(prefix=".onnxprune.", dir=target.parent))
    except OSError as error:
        raise UsageError(
            f"can't write into {target.parent}: {error.strerror}", hint="choose another output path with -o"
        ) from error
    try:
        files = [scratch / name for name, _ in zip(("model", "data"), targets, strict=False)]
        if external:
            with files[1].open("wb") as stream:
                initializers = _externalise(initializers, stream, targets[1].name)
                stream.flush()
                os.fsync(stream.fileno())
        _write(files[0], shell, initializers)
        _move(files, targets, scratch)
    except OSError as error:
        raise UsageError(f"can't write {target}: {error.strerror}", hint="is the disk full?") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return tuple(targets)


def check_save(
    path: str | Path,
    *,
    external_data: bool,
    overwrite: bool,
    protect: Path | Iterable[Path] | None = None,
) -> list[Path]:
    """The files that `save` would write, the model's first; UsageError where it would refuse to."""
    target = resolved(Path(path))
    targets = [target, target.with_name(data_name(target))] if external_data else [target]
    for item in (Path(path), *targets):
        check_place(item)
    for item in targets:
        if item.exists() and any(other.exists() and other.samefile(item) for other in _paths(protect)):
            raise UsageError(
                f"{item} is the input, which is never overwritten",
                hint="choose another output path with -o",
            )
        if os.path.lexists(item) and not overwrite:
            raise UsageError(f"{item} exists", hint="choose another path, or overwrite it with --force")
    return targets


def _paths(protect: Path | Iterable[Path] | None) -> list[Path]:
    if protect is None:
        return []
    return [protect] if isinstance(protect, Path) else list(protect)


def model_bytes(model: onnx.ModelProto, target: Path | None = None, *, external_data: bool = False) -> int:
    """Bytes of the files that `save` would write for ``target`` (by default a name of usual length)."""
    shell, initializers = shared_parts(model)
    if not _is_external(initializers, external_data):
        return wire.encoded_size(shell, initializers)
    data = _Tally()
    stored = _externalise(initializers, data, data_name(target or Path("model.pruned.onnx")))
    return wire.encoded_size(shell, stored) + data.tell()


def data_name(target: Path) -> str:
    """The name of the file beside ``target`` that takes its weights."""
    return f"{target.name}.data"


def _is_external(initializers: Sequence[TensorProto], asked: bool) -> bool:
    return asked or limits.weight_bytes(initializers) > limits.INLINE_LIMIT


class _Sink(Protocol):
    """What `_externalise` writes to."""

    def tell(self) -> int: ...

    def write(self, data: bytes, /) -> int: ...


class _Tally:
    """A file of which only the length is kept."""

    def __init__(self) -> None:
        self._length = 0

    def tell(self) -> int:
        return self._length

    def write(self, data: bytes, /) -> int:
        self._length += len(data)
        return len(data)


def _externalise(initializers: Sequence[TensorProto], stream: _Sink, name: str) -> list[TensorProto]:
    """Write large initializers to ``stream``; those returned refer to them in the file ``name``."""
    stored: list[TensorProto] = []
    for tensor in initializers:
        raw = tensor.raw_data  # each look at it makes a copy
        if len(raw) < _SMALL:
            stored.append(tensor)
            continue
        stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
        reference = TensorProto(name=tensor.name, data_type=tensor.data_type)
        stored.append(reference)
        if tensor.doc_string:
            reference.doc_string = tensor.doc_string
        reference.dims.extend(tensor.dims)
        reference.metadata_props.extend(tensor.metadata_props)
        reference.data_location = TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", str(stream.tell())), ("length", str(len(raw)))):
            reference.external_data.add(key=key, value=value)
        stream.write(raw)
    return stored


def _write(path: Path, shell: onnx.ModelProto, initializers: Sequence[TensorProto]) -> None:
    with path.open("wb") as stream:
        wire.write_model(stream, shell, initializers)
        stream.flush()
        os.fsync(stream.fileno())


def _move(files: list[Path], targets: list[Path], scratch: Path) -> None:
    """Put the files in place, data first; if one step fails, what was there before is put back."""
    undo: list[tuple[Path | None, Path]] = []
    try:
        for position in reversed(range(len(files))):
            target, backup = targets[position], None
            if position and os.path.lexists(target):
                backup = scratch / "before"
                os.replace(target, backup)
            undo.append((backup, target))
            os.replace(files[position], target)
    except BaseException:
        for backup, target in undo:
            if backup is not None:
                os.replace(backup, target)
            elif target != targets[0]:
                target.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError, AttributeError):  # not every platform can sync a folder
        descriptor = os.open(targets[0].parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
