"""A layer's weights as matrices, and the per-channel affine map that follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxprune.graph.structure import Layer

FloatArray = npt.NDArray[np.float64]


class Constants:
    """The initializers of one model, by name: read as arrays, replaced in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index the initializers of ``model``; `write` changes this model."""
        self.model = model
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes = {node.name: node for node in model.graph.node}

    def __contains__(self, name: str) -> bool:
        """Whether an initializer has that name."""
        return name in self._tensors

    def read(self, name: str) -> npt.NDArray[Any]:
        """The array of an initializer."""
        return numpy_helper.to_array(self._tensors[name])

    def node(self, name: str) -> onnx.NodeProto:
        """The node of that name; KeyError if there is none."""
        return self._nodes[name]

    def write(self, name: str, value: npt.NDArray[Any]) -> None:
        """Replace an initializer's values, keeping its type."""
        tensor = self._tensors[name]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value.astype(dtype)), name))

    def add(self, name: str, value: npt.NDArray[Any]) -> None:
        """Add an initializer under a name that is free."""
        tensor = self.model.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))
        self._tensors[name] = tensor


@dataclass(frozen=True)
class Affine:
    """A per-channel map ``scale * x + shift``, each (C,), made of the nodes in ``chain``."""

    scale: FloatArray
    shift: FloatArray
    chain: tuple[str, ...] = ()

    @classmethod
    def identity(cls, channels: int) -> Affine:
        """The map that changes nothing."""
        return cls(np.ones(channels), np.zeros(channels))

    @property
    def dead(self) -> npt.NDArray[np.bool_]:
        """Channels (C,) whose scale is too small to divide by."""
        size = np.abs(self.scale)
        return np.asarray(size < 1e-3 * max(float(size.max(initial=0.0)), 1e-30))

    def select(self, channels: npt.NDArray[np.bool_]) -> Affine:
        """The map of the channels that a mask (C,) keeps."""
        return Affine(self.scale[channels], self.shift[channels], self.chain)

    def then(self, scale: FloatArray, shift: FloatArray, node: str) -> Affine:
        """This map followed by another one."""
        return Affine(self.scale * scale, self.shift * scale + shift, (*self.chain, node))


def read_matrix(constants: Constants, layer: Layer) -> FloatArray:
    """The weights of a layer as (groups, d, C_out / groups), so that ``rows @ matrix`` is its output.

    Conv: d runs over input channel, then kernel position. Gemm: ``alpha`` is included.
    """
    weight = constants.read(layer.weight).astype(np.float64)
    if layer.op == "Conv":
        return weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1).transpose(0, 2, 1)
    matrix = _as_matrix(weight, layer) * _attribute(constants.node(layer.name), "alpha", 1.0)
    return np.asarray(matrix[None])


def write_matrix(constants: Constants, layer: Layer, matrix: FloatArray) -> None:
    """Store ``matrix`` (groups, d, C_out / groups) as the layer's weights; inverse of `read_matrix`."""
    shape = constants.read(layer.weight).shape
    if layer.op == "Conv":
        constants.write(layer.weight, matrix.transpose(0, 2, 1).reshape(shape))
        return
    flat = matrix[0] / _attribute(constants.node(layer.name), "alpha", 1.0)
    constants.write(
        layer.weight, (flat if layer.weight_in_axis < layer.weight_out_axis else flat.T).reshape(shape)
    )


def read_bias(constants: Constants, layer: Layer, channels: int) -> FloatArray:
    """The constant that a layer adds to each output channel: (C_out,), zeros where it has none."""
    name = layer.bias
    if not name or name not in constants:
        return np.zeros(channels)
    bias = constants.read(name).astype(np.float64) * _attribute(constants.node(layer.name), "beta", 1.0)
    return np.broadcast_to(bias.reshape(-1), (channels,)).copy()


def can_shift(constants: Constants, layer: Layer, affine: Affine) -> bool:
    """Whether a constant can be added to the layer's output channels; see `add_shift`."""
    if layer.op == "Conv":
        return True
    if layer.op == "Gemm":
        return bool(layer.bias) and layer.bias in constants and constants.read(str(layer.bias)).ndim == 1
    return any(_shift_place(constants, name) for name in affine.chain)


def add_shift(constants: Constants, layer: Layer, affine: Affine, shift: FloatArray) -> None:
    """Add ``shift`` (C_out,) to the layer's output channels, where the graph has a place for it.

    That is the layer's own bias, else the mean of a BatchNormalization or an added constant right
    behind it; a Conv with neither is given a bias.
    """
    if layer.bias and layer.bias in constants:
        old = constants.read(layer.bias).astype(np.float64)
        beta = _attribute(constants.node(layer.name), "beta", 1.0)
        constants.write(layer.bias, np.broadcast_to(old, shift.shape) + shift / beta)
        return
    first = next(iter(affine.chain), None)
    place = _shift_place(constants, first) if first is not None else None
    if place is not None:
        name, sign = place
        old = constants.read(name)
        constants.write(name, old + sign * shift.reshape(old.shape))
        return
    node = constants.node(layer.name)
    name = f"{layer.name}.bias"
    taken = {*node.input, *(tensor.name for tensor in constants.model.graph.initializer)}
    while name in taken:
        name += "_"
    constants.add(name, shift.astype(constants.read(layer.weight).dtype))
    del node.input[2:]
    node.input.append(name)


def affine_step(
    constants: Constants, node: onnx.NodeProto, source: str, axis: int
) -> tuple[FloatArray, FloatArray] | None:
    """Scale and shift (C,) of a node that maps each channel of ``source`` by itself; None for any other.

    ``axis`` is the channel axis counted from the end (negative), as constants broadcast.
    """
    if node.op_type in ("Identity", "Dropout") and node.input[0] == source:
        return np.ones(1), np.zeros(1)
    if node.op_type == "BatchNormalization" and node.input[0] == source:
        if not all(name in constants for name in node.input[1:5]) or _attribute(node, "training_mode", 0):
            return None
        gamma, beta, mean, variance = (constants.read(name).astype(np.float64) for name in node.input[1:5])
        scale = gamma / np.sqrt(variance + _attribute(node, "epsilon", 1e-5))
        return scale, beta - mean * scale
    if node.op_type in ("Add", "Sub", "Mul", "Div") and len(node.input) == 2 and source in node.input:
        position = 1 - list(node.input).index(source)
        name = node.input[position]
        if name not in constants or (position == 0 and node.op_type in ("Sub", "Div")):
            return None
        value = _per_channel(constants.read(name), axis)
        if value is None:
            return None
        one, zero = np.ones_like(value), np.zeros_like(value)
        match node.op_type:
            case "Add":
                return one, value
            case "Sub":
                return one, -value
            case "Mul":
                return value, zero
            case _:
                return 1.0 / value, zero
    return None


def _shift_place(constants: Constants, name: str) -> tuple[str, int] | None:
    """The initializer of a node that can take a shift before it, and the sign it takes it with."""
    node = constants.node(name)
    if node.op_type == "BatchNormalization":
        return node.input[3], -1
    if node.op_type == "Add":
        for given in node.input:
            if given in constants and constants.read(given).size > 1:
                return given, 1
    return None


def _per_channel(value: npt.NDArray[Any], axis: int) -> FloatArray | None:
    if value.size == 1:
        return value.reshape(1).astype(np.float64)
    if value.ndim < -axis or value.shape[axis] != value.size:
        return None
    return value.reshape(-1).astype(np.float64)


def _as_matrix(weight: FloatArray, layer: Layer) -> FloatArray:
    matrix = weight.reshape(weight.shape[-2:])
    return matrix if layer.weight_in_axis < layer.weight_out_axis else matrix.T


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    for entry in node.attribute:
        if entry.name == name:
            return float(onnx.helper.get_attribute_value(entry))
    return default
