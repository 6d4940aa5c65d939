"""Reading models: contained in their folder, bounded in memory, refused with a reason."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import external_data_helper

from onnxprune.errors import ModelError, UsageError
from onnxprune.io import limits
from onnxprune.io.validate import check_model, shorten
from onnxprune.io.wire import read_model

ModelSource = str | os.PathLike[str] | bytes | onnx.ModelProto
"""What stands for a model wherever one is taken."""

_DEFAULT_DOMAINS = ("", "ai.onnx")
_BYTES = "the given bytes"
_TRAINING_DOMAIN = "ai.onnx.preview.training"
REFUSED_OPS = frozenset(
    {
        "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GatherBlockQuantized",
        "MatMulBnb4", "MatMulFpQ4", "MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat",
        "MatMulNBits", "NhwcMaxPool", "QAttention", "QEmbedLayerNormalization", "QGemm", "QLinearAdd",
        "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool",
        "QLinearLeakyRelu", "QLinearMatMul", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid",
        "QLinearSoftmax", "QLinearWhere", "QMoE", "QOrderedMatMul",
    }
)  # fmt: skip


@dataclass(frozen=True)
class LoadedModel:
    """A model that passed all checks, with its weights in memory.

    ``path`` is None where the model did not come from a file; ``files`` are all the files it was
    read from; ``sha256`` is the digest of the model file's bytes (external data not included), or
    of the serialised message; ``external_data`` says whether weights lay in files of their own, and
    ``owned`` whether the message was made here, so that it may be changed.
    """

    model: onnx.ModelProto
    path: Path | None
    sha256: str
    external_data: bool
    files: tuple[Path, ...] = ()
    owned: bool = False


def load(source: ModelSource, *, memory: int | None = None) -> LoadedModel:
    """Read and check a model from a path, from bytes, or from a message (which is not copied).

    ``memory`` bounds the bytes of the file and of all weights (default: this machine's memory).
    UsageError for a path that can't be read; ModelError for a model that is refused, with a hint.
    """
    limit = limits.memory_limit() if memory is None else memory
    path: Path | None = None
    if isinstance(source, onnx.ModelProto):
        model, digest = source, _message_digest(source)
    elif isinstance(source, bytes):
        model, digest = _parse(source), hashlib.sha256(source).hexdigest()
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        model, digest = _read(path, limit)
    else:
        raise UsageError(
            f"the model is {str(source)[:40]!r}, not a path", hint="give a path, bytes or a ModelProto"
        )
    if not model.ir_version and not model.opset_import:
        raise ModelError(
            f"not an ONNX model: {path or _BYTES} states no format version",
            hint="the file must be a binary ONNX model (.onnx), not a checkpoint or a text file",
        )
    limits.check_text(model)
    _check_purpose(model)
    _check_versions(model)
    folder = path.parent if path is not None else None
    files = limits.check_tensors(model, folder, limit)
    if folder is not None and files:
        _load_external(model, folder)
    _check_supported(model)
    check_model(model)
    return LoadedModel(
        model=model,
        path=path,
        sha256=digest,
        external_data=bool(files),
        files=((path,) if path is not None else ()) + files,
        owned=model is not source,
    )


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that a model is made of, as far as it can be read; no weights are, and nothing is checked."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, ValueError, DecodeError):
        return (path,)
    found = {path: None}
    for tensor in limits.all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            found |= {
                path.parent / entry.value: None for entry in tensor.external_data if entry.key == "location"
            }
    return tuple(found)


def _read(path: Path, limit: int) -> tuple[onnx.ModelProto, str]:
    """The message in a file and the file's digest."""
    try:
        if not path.exists():
            raise UsageError(f"no such file: {path}", hint="give the path of an .onnx file")
        if not path.is_file():
            raise UsageError(f"{path} is not a file", hint="give the path of an .onnx file")
        size = path.stat().st_size
        if size == 0:
            raise ModelError(f"{path} is empty", hint="export or download the model again")
        if size > limit or size > limits.PROTOBUF_LIMIT:
            bound = min(limit, limits.PROTOBUF_LIMIT)
            raise ModelError(
                f"{path} has {size} bytes and at most {bound} can be read",
                hint="models over 2 GB keep their weights as external data",
            )
        with path.open("rb") as stream:
            return read_model(stream)
    except DecodeError as error:
        raise _not_a_model(str(path)) from error
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}", hint="check its permissions") from error


def _parse(data: bytes) -> onnx.ModelProto:
    if not data:
        raise ModelError(f"{_BYTES} hold no model: they are empty", hint="export the model again")
    try:
        return onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise _not_a_model(_BYTES) from error


def _not_a_model(name: str) -> ModelError:
    return ModelError(
        f"not an ONNX model, or a truncated one: {name}",
        hint="the file must be a binary ONNX model; export or download it again",
    )


def _load_external(model: onnx.ModelProto, folder: Path) -> None:
    try:
        external_data_helper.load_external_data_for_model(model, str(folder))
        for tensor in limits.all_tensors(model):
            tensor.ClearField("data_location")
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ModelError(
            f"can't read the model's external data: {shorten(error)}",
            hint="the data file must be a plain file beside the model",
        ) from error


def _check_versions(model: onnx.ModelProto) -> None:
    if not limits.MIN_IR <= model.ir_version <= limits.MAX_IR:
        raise ModelError(
            f"the model has IR version {model.ir_version}; "
            f"versions {limits.MIN_IR} to {limits.MAX_IR} can be read",
            hint="export it with another onnx release, or lower its ir_version",
        )
    if not model.HasField("graph") or not model.graph.node:
        raise ModelError("the model has no graph to compute", hint="export the model again")
    versions = [entry.version for entry in model.opset_import if entry.domain in _DEFAULT_DOMAINS]
    if not versions:
        raise ModelError("the model names no version of the ONNX operator set", hint="export it again")
    if len(set(versions)) > 1:
        raise ModelError(
            f"the model names several versions of the ONNX operator set: {sorted(versions)}",
            hint="export it again",
        )
    if not limits.MIN_OPSET <= versions[0] <= limits.MAX_OPSET:
        raise ModelError(
            f"the model uses opset {versions[0]}; "
            f"opsets {limits.MIN_OPSET} to {limits.MAX_OPSET} can be read",
            hint="export it with another opset, or convert it with onnx.version_converter",
        )


def _check_purpose(model: onnx.ModelProto) -> None:
    # onnxruntime writes models that import every domain that it knows: what counts is which are used.
    if model.training_info or any(node.domain == _TRAINING_DOMAIN for node in limits.all_nodes(model)):
        raise ModelError(
            "the model is a training graph", hint="export the model for inference (eval mode) instead"
        )


def _check_supported(model: onnx.ModelProto) -> None:
    if any(graph.sparse_initializer for graph in limits.all_graphs(model.graph)):
        raise ModelError("the model has sparse initializers", hint="store its weights dense")
    for node in limits.all_nodes(model):
        block = next((a.i for a in node.attribute if a.name == "block_size"), 0)
        blocked = node.op_type in ("DequantizeLinear", "QuantizeLinear") and block > 0
        if node.op_type in REFUSED_OPS or blocked:
            kind = "block-quantized weights" if blocked else f"the quantized operator {node.op_type}"
            name = node.name or next(iter(node.output), node.op_type)
            raise ModelError(
                f"node {name!r} has {kind}, which can't be pruned",
                hint="prune the float model first and quantize the result; the QDQ form is read too",
            )


def _message_digest(model: onnx.ModelProto) -> str:
    """Digest of a message in pieces: in one it could pass protobuf's limit, and would be a copy."""
    digest = hashlib.sha256()
    for owner in (model, model.graph):
        for field, value in owner.ListFields():
            if field.name == "graph":
                continue
            for item in [value] if isinstance(value, (Message, str, bytes, int)) else value:
                if isinstance(item, Message):
                    text = item.SerializeToString(deterministic=True)
                else:
                    text = repr(item).encode()
                digest.update(f"{field.name}:{len(text)}:".encode() + text)
    return digest.hexdigest()
