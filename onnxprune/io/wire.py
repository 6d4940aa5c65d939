"""Models in protobuf's wire format, piece by piece: the weights are never in memory twice.

A message is a sequence of fields in any order, and fields of the same number add up. So a file is read by
parsing each node and each initializer by itself and all else at once, and written likewise
(https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_NODE = onnx.GraphProto.DESCRIPTOR.fields_by_name["node"].number
_LONGEST_VARINT = 10

_BIG = 1 << 20
"""Bytes from which a Constant node's value is read as the initializer that it might as well be."""


def read_model(stream: BinaryIO) -> tuple[onnx.ModelProto, str]:
    """The model in a file and the sha256 of its bytes; DecodeError where it is none."""
    reader = _Reader(stream)
    model = onnx.ModelProto()
    rest = bytearray()
    for number, kind, header in reader.fields(reader.size):
        if (number, kind) == (_GRAPH, _BYTES):
            model.graph.SetInParent()
            _read_graph(reader, model.graph)
        else:
            rest += header + reader.payload(kind)
    model.MergeFromString(bytes(rest))
    return model, reader.digest.hexdigest()


def write_model(stream: BinaryIO, shell: onnx.ModelProto, initializers: Sequence[TensorProto]) -> None:
    """Write ``shell``, whose graph has no initializers, with ``initializers``; equal models, equal bytes."""
    head, graph = _encode_shell(shell)
    length = len(graph) + sum(len(field) for tensor in initializers for field in _field(tensor))
    stream.write(head + _tag(_GRAPH) + _varint(length) + graph)
    for tensor in initializers:
        stream.writelines(_field(tensor))


def encoded_size(shell: onnx.ModelProto, initializers: Sequence[TensorProto]) -> int:
    """Bytes that `write_model` writes."""
    head, graph = _encode_shell(shell)
    length = len(graph) + sum(len(field) for tensor in initializers for field in _field(tensor))
    return len(head) + len(_tag(_GRAPH)) + len(_varint(length)) + length


class _Reader:
    """Bytes of a file in order, with their digest. A length that the file states is checked before use."""

    def __init__(self, stream: BinaryIO) -> None:
        self.size = os.fstat(stream.fileno()).st_size
        self.at = 0
        self.digest = hashlib.sha256()
        self._stream = stream

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        data = self._stream.read(count) if count <= self.size - self.at else b""
        if len(data) != count:
            raise DecodeError("the message is truncated")
        self.digest.update(data)
        self.at += count
        return data

    def varint(self) -> tuple[int, bytes]:
        """A number and the bytes that hold it."""
        value, data = 0, bytearray()
        for position in range(_LONGEST_VARINT):
            data += self.take(1)
            value |= (data[-1] & 0x7F) << (7 * position)
            if data[-1] < 0x80:
                return value, bytes(data)
        raise DecodeError("a number has no end")

    def fields(self, end: int) -> Iterator[tuple[int, int, bytes]]:
        """Number, kind and encoded tag of each field up to byte ``end``; the caller takes what follows."""
        while self.at < end:
            tag, header = self.varint()
            yield tag >> 3, tag & 7, header
        if self.at != end:
            raise DecodeError("a field ends behind its message")

    def payload(self, kind: int) -> bytes:
        """What follows a tag, as it stands in the file."""
        if kind == _VARINT:
            return self.varint()[1]
        if kind == _BYTES:
            length, header = self.varint()
            return header + self.take(length)
        if kind in (_FIXED32, _FIXED64):
            return self.take(4 if kind == _FIXED32 else 8)
        raise DecodeError("a field of no known kind")


def _read_graph(reader: _Reader, graph: onnx.GraphProto) -> None:
    length = reader.varint()[0]
    rest = bytearray()
    for number, kind, header in reader.fields(reader.at + length):
        if (number, kind) == (_INITIALIZER, _BYTES):
            graph.initializer.add().MergeFromString(reader.take(reader.varint()[0]))
        elif (number, kind) == (_NODE, _BYTES):
            _read_node(reader.take(reader.varint()[0]), graph)
        else:
            rest += header + reader.payload(kind)
    graph.MergeFromString(bytes(rest))


def _read_node(data: bytes, graph: onnx.GraphProto) -> None:
    """Add a node; a big Constant becomes an initializer, because nodes are copied freely."""
    if len(data) < _BIG:
        graph.node.add().MergeFromString(data)
        return
    node = onnx.NodeProto.FromString(data)
    values = [item for item in node.attribute if item.name == "value" and item.HasField("t")]
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and values and len(node.output) == 1:
        tensor = graph.initializer.add()
        tensor.CopyFrom(values[0].t)
        tensor.name = node.output[0]
    else:
        graph.node.append(node)


def _encode_shell(shell: onnx.ModelProto) -> tuple[bytes, bytes]:
    """Everything but the graph, and the graph, encoded."""
    head = onnx.ModelProto()
    head.CopyFrom(shell)
    head.ClearField("graph")
    return head.SerializeToString(deterministic=True), shell.graph.SerializeToString(deterministic=True)


def _field(tensor: TensorProto) -> tuple[bytes, bytes]:
    """An initializer as a field of the graph: its head and its body."""
    data = tensor.SerializeToString(deterministic=True)
    return _tag(_INITIALIZER) + _varint(len(data)), data


def _tag(number: int) -> bytes:
    return _varint(number << 3 | _BYTES)


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
