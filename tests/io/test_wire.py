"""The wire format, initializer by initializer: protobuf's own parser and encoder are the oracle."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError

from onnxprune.io.share import shared_parts
from onnxprune.io.wire import encoded_size, read_model, write_model
from tests.model_builder import Builder


def model() -> onnx.ModelProto:
    b = Builder(opset=13)
    result = b.model(b.gemm(b.flatten(b.conv(b.input((1, 3, 4, 4)), 5, 3)), 3))
    result.metadata_props.add(key="a", value="b")
    result.doc_string = "documented"
    return result


def read(data: bytes, folder: Path) -> onnx.ModelProto:
    path = folder / "m.onnx"
    path.write_bytes(data)
    with path.open("rb") as stream:
        result, digest = read_model(stream)
    assert digest == hashlib.sha256(data).hexdigest()
    return result


def write(given: onnx.ModelProto) -> bytes:
    stream = io.BytesIO()
    write_model(stream, *shared_parts(given))
    assert encoded_size(*shared_parts(given)) == len(stream.getvalue())
    return stream.getvalue()


def test_round_trips(tmp_path: Path) -> None:
    given = model()
    assert read(given.SerializeToString(), tmp_path) == given
    assert onnx.ModelProto.FromString(write(given)) == given
    assert len(write(given)) == given.ByteSize()


def test_a_big_constant_is_read_as_an_initializer(tmp_path: Path) -> None:
    b = Builder(opset=13)
    x = b.gemm(b.input((1, 600)), 600)
    given = b.model(b.gemm(x, 3))
    held = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in given.graph.initializer]
    nodes = [*held, *given.graph.node]
    original = sorted(given.graph.initializer, key=lambda t: t.name)
    del given.graph.initializer[:], given.graph.node[:]
    given.graph.node.extend(nodes)
    found = read(given.SerializeToString(), tmp_path)
    big = [t for t in original if len(t.raw_data) >= 1 << 20]
    assert len(big) == 1 and list(found.graph.initializer) == big
    assert [node for node in nodes if node.output[0] != big[0].name] == list(found.graph.node)


def test_fields_in_pieces_add_up(tmp_path: Path) -> None:
    data = model().SerializeToString() + model().SerializeToString()
    twice = read(data, tmp_path)
    assert twice == onnx.ModelProto.FromString(data)
    assert len(twice.graph.initializer) == 2 * len(model().graph.initializer)


def test_an_empty_graph_is_still_a_graph(tmp_path: Path) -> None:
    empty = onnx.ModelProto(ir_version=8)
    empty.graph.SetInParent()
    assert read(empty.SerializeToString(), tmp_path).HasField("graph")
    assert onnx.ModelProto.FromString(write(empty)) == empty


def test_cut_off_anywhere(tmp_path: Path) -> None:
    data = model().SerializeToString()
    for end in range(0, len(data), 3):
        try:
            expected = onnx.ModelProto.FromString(data[:end])
        except DecodeError:
            with pytest.raises(DecodeError):
                read(data[:end], tmp_path)
        else:
            assert read(data[:end], tmp_path) == expected


def test_what_is_read_of_damaged_bytes_is_what_protobuf_reads(tmp_path: Path) -> None:
    data = model().SerializeToString()
    random = np.random.default_rng(0)
    readable = 0
    for _ in range(400):
        damaged = bytearray(data)
        for place in random.integers(0, min(len(data), 400), random.integers(1, 4)):
            damaged[place] = random.integers(0, 256)
        try:
            found = read(bytes(damaged), tmp_path)
        except DecodeError:
            continue
        readable += 1
        expected = onnx.ModelProto.FromString(bytes(damaged))
        assert found.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    assert 40 < readable < 400


@pytest.mark.parametrize(
    "data", [b"\x3a\xff\xff\xff\xff\x0f", b"\x80" * 11, b"\x3b", b"\x3a\x04\x2a\x7f\x00\x00"]
)
def test_claims_are_checked_before_anything_is_read(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DecodeError):
        read(data, tmp_path)
