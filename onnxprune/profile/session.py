"""Running a model: one onnxruntime session with the right provider, taps, and any batch size."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.graph.extract import extract
from onnxprune.graph.sigmoid import behind_sigmoid
from onnxprune.profile.providers import (
    Provider,
    algebra_device,
    check_provider,
    choose_provider,
    execution_providers,
)
from onnxprune.profile.spec import TensorSpec, describe_shape
from onnxprune.profile.taps import detach_weights, weight_bytes

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
_T = TypeVar("_T")

_FATAL: Final = 4
_DETACH_ABOVE = 1 << 30
"""Bytes of weights above which weights are handed over beside the protobuf, whose limit is 2 GiB."""

_DTYPES: Final[dict[str, type[np.generic]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(uint16)": np.uint16,
    "tensor(int16)": np.int16,
    "tensor(uint32)": np.uint32,
    "tensor(int32)": np.int32,
    "tensor(uint64)": np.uint64,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class Session:
    """A loaded model that can be run; made by `open_session`.

    ``provider`` is the device it really runs on; ``inputs`` and ``outputs`` are what it takes and gives,
    ``sigmoids`` the outputs that are behind a Sigmoid.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        provider: Provider,
        outputs: Sequence[str],
        sigmoids: Collection[str] = (),
    ) -> None:
        """Wrap a session that runs on ``provider`` and returns ``outputs``; see `open_session`."""
        self.provider = provider
        self.sigmoids = frozenset(sigmoids)
        self._session = session
        self.inputs: tuple[TensorSpec, ...] = tuple(_spec(value) for value in session.get_inputs())
        given = {value.name: value for value in session.get_outputs()}
        self.output_names: tuple[str, ...] = tuple(outputs)
        passed = {spec.name: spec for spec in self.inputs}
        self.outputs: tuple[TensorSpec, ...] = tuple(
            _spec(given[name]) if name in given else passed[name] for name in outputs
        )
        self._computed = [name for name in outputs if name in given]
        self._batch = self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else None

    @property
    def input(self) -> TensorSpec:
        """The one data input; ModelError where the model has none or several."""
        if len(self.inputs) != 1:
            names = ", ".join(spec.name for spec in self.inputs) or "none"
            raise ModelError(
                f"the model has {len(self.inputs)} inputs ({names}); data sets feed exactly one",
                hint="give the other inputs default values (initializers) in the model",
            )
        return self.inputs[0]

    @property
    def batch(self) -> int | None:
        """The batch size that the model insists on, or None where any will do."""
        return self._batch

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once, on arrays that fit the model as they are; outputs by name.

        Raises DataError where an array is missing or does not fit, ModelError where running fails.
        """
        self._check(inputs)
        computed: list[Array] = self._guard(lambda: self._session.run(self._computed, dict(inputs)))
        return self._by_name(dict(zip(self._computed, computed, strict=True)), inputs)

    def run_batched(self, array: Array) -> dict[str, Array]:
        """Run the single-input model on ``array`` (n, ...), whatever batch size the model insists on.

        A fixed batch is filled by repeating the last sample, and the surplus is dropped again.
        Outputs keep the samples in order on axis 0: (n, ...), or (n * k, ...) for a tensor that
        holds k rows for each sample.
        """
        return self._batched(array, lambda chunk: self.run({self.input.name: chunk}), np.concatenate)

    def run_torch(self, array: Array) -> dict[str, torch.Tensor]:
        """As `run_batched`, with the outputs as torch tensors on `algebra_device`.

        On CUDA the outputs stay in device memory (I/O binding, handed over through DLPack).
        """
        import torch

        return self._batched(array, self._run_torch_once, torch.cat)

    def _run_torch_once(self, chunk: Array) -> dict[str, torch.Tensor]:
        import torch
        from torch.utils.dlpack import from_dlpack

        name = self.input.name
        device = algebra_device(self.provider)
        if device.type == "cpu":
            outputs = self.run({name: chunk})
            return {key: torch.from_numpy(_writable(value)) for key, value in outputs.items()}
        self._check({name: chunk})
        binding = self._session.io_binding()
        binding.bind_cpu_input(name, np.ascontiguousarray(chunk))
        for output in self._computed:
            binding.bind_output(output, device.type, device.index)
        self._guard(lambda: self._session.run_with_iobinding(binding))
        binding.synchronize_outputs()
        values = [from_dlpack(value) for value in binding.get_outputs()]
        computed = dict(zip(self._computed, values, strict=True))
        return {
            output: computed[output] if output in computed else torch.from_numpy(_writable(chunk)).to(device)
            for output in self.output_names
        }

    def _batched(
        self, array: Array, run: Callable[[Array], dict[str, _T]], concatenate: Callable[[list[Any]], Any]
    ) -> dict[str, _T]:
        if array.ndim == 0 or len(array) == 0:
            raise DataError("no samples to run the model on", hint="give at least one sample")
        # A Squeeze of all axes takes that of the batch too from one sample alone.
        alone = self.input.shape[:1] == (1,)
        squeezed = {spec.name for spec in self.outputs if alone or len(spec.shape) == 1}

        def counted(chunk: Array) -> dict[str, Any]:
            outputs: dict[str, Any] = run(chunk)
            return {
                name: value.reshape(1) if value.ndim == 0 and name in squeezed else value
                for name, value in outputs.items()
            }

        if self._batch is None:
            whole = self._try_whole(array, counted)
            if whole is not None:
                return whole
            self._batch = 1
        size = self._batch
        parts: dict[str, list[Any]] = {name: [] for name in self.output_names}
        for start in range(0, len(array), size):
            chunk = array[start : start + size]
            valid = len(chunk)
            if valid < size:
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], size - valid, axis=0)])
            for name, value in counted(chunk).items():
                rows = _rows_per_sample(value, size)
                if rows is None:
                    raise ModelError(
                        f"output '{name}' has no batch axis: shape {describe_shape(tuple(_shape(value)))}",
                        hint="the first axis of every output must count the samples",
                    )
                parts[name].append(value[: valid * rows])
        return {
            name: values[0] if len(values) == 1 else concatenate(values) for name, values in parts.items()
        }

    def _try_whole(self, array: Array, run: Callable[[Array], dict[str, _T]]) -> dict[str, _T] | None:
        """All samples at once; None where a batch of 1 is baked into a model that declares a free one.

        Exporters leave such models by tracing a reshape to (1, -1): they fail, or fold the samples
        into another axis.
        """
        try:
            outputs = run(array)
        except ModelError:
            if len(array) == 1:
                raise
            run(array[:1])
            return None
        if all(_rows_per_sample(value, len(array)) is not None for value in outputs.values()):
            return outputs
        return None

    def _by_name(self, computed: Mapping[str, Array], inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: computed[name] if name in computed else inputs[name] for name in self.output_names}

    def _check(self, inputs: Mapping[str, Array]) -> None:
        for spec in self.inputs:
            if spec.name not in inputs:
                raise DataError(f"no array for the model's input '{spec.name}'", hint="name every input")
            array = inputs[spec.name]
            if not spec.accepts(array.shape, any_batch=False):
                raise DataError(
                    f"the model's input '{spec.name}' wants {spec.describe()}, "
                    f"the data has {describe_shape(array.shape)}",
                    hint="check --layout, --resize and --crop, or the shape of the arrays",
                )
            if array.dtype != spec.dtype:
                raise DataError(
                    f"the model's input '{spec.name}' wants {spec.dtype.name}, not {array.dtype.name}",
                    hint=f"convert the arrays to {spec.dtype.name}",
                )

    def _guard(self, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except Exception as error:  # onnxruntime's errors share no base class
            raise ModelError(
                f"onnxruntime can't run the model: {_reason(error)}",
                hint="run it once on its own with onnxruntime, in the exporter's environment",
            ) from error


def open_session(
    model: onnx.ModelProto | bytes | str | os.PathLike[str],
    *,
    provider: str = "auto",
    threads: int | None = None,
    outputs: Sequence[str] | None = None,
    exact: bool = True,
) -> Session:
    """Load a model into onnxruntime.

    ``provider`` is ``auto`` (CUDA where it works, else CPU), ``cpu`` or ``cuda``. ``threads`` bounds the
    threads inside one operator (None or 0: all cores). ``outputs`` names tensors to return instead of
    the model's own outputs: any tensor of the graph, inputs included; the model is then cut to the nodes
    that compute them, and the model passed in is not touched. Without ``exact`` it runs as its users run it,
    for measurements; see `execution_providers`.

    Raises ModelError where onnxruntime refuses the model or a tensor is unknown, UsageError where there is no
    such file, the provider can't be used or ``threads`` is negative.
    """
    if threads is not None and threads < 0:
        raise UsageError(f"threads can't be {threads}", hint="0 or none takes all cores")
    chosen = choose_provider(provider)
    proto = _proto(model)
    names = [value.name for value in proto.graph.output]
    if outputs is not None:
        proto = extract(proto, outputs)
        names = list(outputs)
    ort.set_default_logger_severity(_FATAL)
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.inter_op_num_threads = 1
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = _start(proto, options, chosen, exact)
    except UsageError:
        if provider != "auto":
            raise
        # A device is there but its libraries are not: auto promises a working session, and
        # Session.provider says which.
        chosen = "cpu"
        session = _start(proto, options, chosen, exact)
    return Session(session, chosen, names, behind_sigmoid(proto, names))


def _start(
    model: onnx.ModelProto, options: ort.SessionOptions, provider: Provider, exact: bool
) -> ort.InferenceSession:
    try:
        if weight_bytes(model) > _DETACH_ABOVE:
            model, weights = detach_weights(model)
            values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
            options.add_external_initializers(list(weights), values)
        # onnxruntime's own fallback to another provider prints to standard output.
        session = ort.InferenceSession(
            model.SerializeToString(), options,
            providers=execution_providers(provider, exact=exact), enable_fallback=0,
        )  # fmt: skip
    except Exception as error:  # onnxruntime's errors share no base class
        raise ModelError(
            f"onnxruntime refuses the model: {_reason(error)}", hint=_load_hint(str(error))
        ) from error
    check_provider(provider, session)
    return session


def _proto(model: onnx.ModelProto | bytes | str | os.PathLike[str]) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        if isinstance(model, bytes):
            return onnx.load_model_from_string(model)
        path = Path(model)
        if not path.is_file():
            raise UsageError(f"no such file: {path}", hint="give the path of an .onnx file")
        return onnx.load(os.fspath(path))
    except UsageError:
        raise
    except Exception as error:  # protobuf's and onnx's errors share no base class
        name = "the bytes given" if isinstance(model, bytes) else os.fspath(model)
        raise ModelError(
            f"{name} can't be read as ONNX: {_reason(error)}", hint="give a file that an ONNX exporter wrote"
        ) from error


def _spec(value: Any) -> TensorSpec:
    dtype = _DTYPES.get(value.type)
    if dtype is None:
        raise ModelError(
            f"'{value.name}' has the type {value.type}, which has no numpy counterpart here",
            hint="cast it to float32 or float16 inside the model",
        )
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in value.shape or ())
    return TensorSpec(value.name, np.dtype(dtype), shape)


def _shape(value: object) -> Sequence[int]:
    shape: Sequence[int] = getattr(value, "shape", ())
    return shape


def _rows_per_sample(value: object, samples: int) -> int | None:
    """Rows on axis 0 for each of ``samples`` samples; None where axis 0 can't be split that way."""
    shape = _shape(value)
    if len(shape) == 0 or shape[0] % samples:
        return None
    return shape[0] // samples


def _writable(array: Array) -> Array:
    """The array itself where torch may share its memory, else a copy."""
    contiguous = np.ascontiguousarray(array)
    return contiguous if contiguous.flags.writeable else contiguous.copy()


def _reason(error: Exception) -> str:
    """One line of onnxruntime's message, without its code prefix."""
    text = " ".join(str(error).split()) or type(error).__name__
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return text if len(text) <= 300 else f"{text[:297]}..."


def _load_hint(message: str) -> str:
    if "IR version" in message or "opset" in message.lower():
        return f"export it for an opset and IR version that onnxruntime {ort.__version__} supports"
    return "onnx.checker.check_model(path, full_check=True) says more"
