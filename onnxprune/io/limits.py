"""What a file may claim: sizes are checked against bytes that exist before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import Message
from onnx import TensorProto

from onnxprune.errors import ModelError

MIN_OPSET, MAX_OPSET = 7, 26
"""Versions of the default operator set that are read (the newest is what onnxruntime 1.31 runs)."""

MIN_IR, MAX_IR = 3, 13
"""Versions of the ONNX file format that are read."""

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes that one protobuf message may hold; larger models keep their weights in a file of their own."""

INLINE_LIMIT = 2_000_000_000
"""Bytes of weights up to which they are written into the model file itself; the rest is the graph's."""

_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT16: 16,
    TensorProto.INT16: 16,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.FLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32,
    TensorProto.UINT64: 64,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8,
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.FLOAT4E2M1: 4,
}
_BITS |= {24: 8, 25: 2, 26: 2}  # FLOAT8E8M0, UINT2, INT2: not named in every onnx release that is supported

_TYPED_FIELD: dict[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
}


_DAMAGED = "the file is damaged: export or download it again"


def memory_limit() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's if that is less."""
    limit = 2**63 - 1
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        text = "max"
    return min(limit, int(text)) if text.isdigit() else limit


def tensor_bytes(tensor: TensorProto) -> int:
    """Bytes that the stated shape and type of ``tensor`` need; ModelError if they make no sense."""
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} states a negative size: {list(tensor.dims)}", hint=_DAMAGED)
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        raise ModelError(
            f"tensor {tensor.name!r} has the unsupported element type {tensor.data_type}",
            hint="convert the model's weights to float32 or float16",
        )
    return -(-_elements(tensor) * bits // 8)


def weight_bytes(initializers: Iterable[TensorProto]) -> int:
    """Bytes of the initializers' raw data; protobuf's own count would serialize them."""
    return sum(len(tensor.raw_data) for tensor in initializers)


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """``graph`` and every graph nested in its nodes' attributes."""
    yield graph
    for node in graph.node:
        yield from _nested_graphs(node)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graph, of its subgraphs and of the model's functions."""
    for graph in all_graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        for node in function.node:
            yield node
            for graph in _nested_graphs(node):
                yield from graph.node


def all_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every constant of the model: initializers and tensor attributes, subgraphs and functions included."""
    for graph in all_graphs(model.graph):
        yield from graph.initializer
    for function in model.functions:
        for node in function.node:
            for graph in _nested_graphs(node):
                yield from graph.initializer
    for node in all_nodes(model):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def check_text(model: onnx.ModelProto) -> None:
    """ModelError unless every string of the model is UTF-8: protobuf gives bytes for one that is not."""
    if not _is_text(model):
        raise ModelError("the model holds names that are not text", hint=_DAMAGED)


def check_tensors(model: onnx.ModelProto, folder: Path | None, limit: int) -> tuple[Path, ...]:
    """Check every tensor's claims against the bytes that are there; nothing is allocated.

    ``folder`` holds the external data (None where there can be none); ``limit`` bounds the sum of
    all tensors in bytes. Returns the external files; ModelError on the first claim that is wrong.
    """
    total = 0
    files: dict[Path, None] = {}
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            files[_check_external(tensor, folder)] = None
            total += tensor_bytes(tensor)
        elif tensor.data_type == TensorProto.STRING:
            _check_count(tensor, len(tensor.string_data), _elements(tensor))
        else:
            need = tensor_bytes(tensor)
            total += need
            if tensor.HasField("raw_data"):
                if len(tensor.raw_data) != need:
                    raise ModelError(
                        f"tensor {tensor.name!r} states shape {list(tensor.dims)} ({need} bytes) "
                        f"but holds {len(tensor.raw_data)} bytes",
                        hint=_DAMAGED,
                    )
            else:
                _check_typed(tensor)
    if total > limit:
        raise ModelError(
            f"the weights need {total} bytes and the memory limit is {limit}",
            hint="run on a machine with more memory",
        )
    return tuple(files)


def _is_text(message: Message) -> bool:
    if isinstance(message, TensorProto):  # its fields are not listed: that would copy the weights
        pairs = (*message.external_data, *message.metadata_props)
        texts = [
            message.name,
            message.doc_string,
            *(text for pair in pairs for text in (pair.key, pair.value)),
        ]
        return all(isinstance(text, str) for text in texts)
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for item in [value] if isinstance(value, (Message, str, bytes)) else value:
            if not (_is_text(item) if isinstance(item, Message) else isinstance(item, str)):
                return False
    return True


def _elements(tensor: TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= int(dim)
    return count


def _nested_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield from all_graphs(attribute.g)
        for graph in attribute.graphs:
            yield from all_graphs(graph)


def _check_typed(tensor: TensorProto) -> None:
    count = _elements(tensor)
    bits = _BITS[tensor.data_type]
    field, per_element = _TYPED_FIELD.get(tensor.data_type, ("int32_data", 1))
    need = -(-count * bits // 8) if bits < 8 else count * per_element
    _check_count(tensor, len(getattr(tensor, field)), need)


def _check_count(tensor: TensorProto, held: int, need: int) -> None:
    if held != need:
        raise ModelError(
            f"tensor {tensor.name!r} states shape {list(tensor.dims)} but holds {held} values, not {need}",
            hint=_DAMAGED,
        )


def _check_external(tensor: TensorProto, folder: Path | None) -> Path:
    """The file that ``tensor`` reads, after checking that it lies in ``folder`` and is long enough."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(
            f"tensor {tensor.name!r} keeps its data in the file {location!r}, which a model in memory hasn't",
            hint="give the path of the model, so that its data file is found beside it",
        )
    path = _contained(folder, location, tensor.name)
    need = tensor_bytes(tensor)
    offset, length = _integer(entries, "offset", 0, tensor), _integer(entries, "length", need, tensor)
    size = path.stat().st_size
    if length != need:
        raise ModelError(
            f"tensor {tensor.name!r} states shape {list(tensor.dims)} ({need} bytes) "
            f"but {length} bytes of external data",
            hint=_DAMAGED,
        )
    if offset + length > size:
        raise ModelError(
            f"tensor {tensor.name!r} ends at byte {offset + length} of {location!r}, which has {size}",
            hint="the data file is incomplete: copy or download it again",
        )
    return path


def _contained(folder: Path, location: str, name: str) -> Path:
    outside = ModelError(
        f"tensor {name!r} keeps its data at {location!r}, which is not a plain file in the model's folder",
        hint="a model may only read files beside it; if you trust it, copy the data file there",
    )
    parts: Sequence[str] = PurePosixPath(location).parts
    if not location or "\0" in location or "\\" in location or ".." in parts or Path(location).is_absolute():
        raise outside
    path = folder / location
    if not path.exists():
        raise ModelError(
            f"the model's data file {location!r} is missing",
            hint="copy it from where the model came from, into the model's folder",
        )
    # Resolved on both sides: neither the file nor a folder on the way may be a link that leads out.
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise outside
    return path


def _integer(entries: dict[str, str], key: str, default: int, tensor: TensorProto) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise ModelError(
            f"tensor {tensor.name!r} states the external {key} {text[:40]!r}, not a number", hint=_DAMAGED
        )
    return int(text)
