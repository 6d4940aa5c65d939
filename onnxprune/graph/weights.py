"""A layer's weights as matrices, and the per-channel affine map that follows it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxprune.graph.stored import along_axis, evaluate_stored, is_quantizer, stored_constants
from onnxprune.graph.structure import Layer

_BIASED = ("Conv", "ConvTranspose", "Gemm")
"""Layers that can add a third input."""

FloatArray = npt.NDArray[np.float64]


class Constants:
    """The constants of one model, by name: read as arrays, replaced in place.

    A constant that is stored quantized is read as what it stands for, and written on the same scale.
    """

    def __init__(self, model: onnx.ModelProto, tied: Collection[str] = ()) -> None:
        """Index the constants of ``model``; `write` changes this model.

        ``tied`` names initializers that are stored as one with others, as long as nobody writes to them.
        """
        self.model = model
        self._tied = tied
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._stored = stored_constants(model.graph)
        self._nodes = {node.name: node for node in model.graph.node}

    def __contains__(self, name: str) -> bool:
        """Whether a constant has that name."""
        return name in self._tensors or name in self._stored

    def writable(self, name: str) -> bool:
        """Whether the constant can be replaced: it is an initializer, or stored as 8 bits or more."""
        if name not in self._stored:
            return name in self._tensors
        source = self._stored[name].input[0]
        return source in self._stored or np.issubdtype(self.read(source).dtype, np.integer)

    def tied(self, name: str) -> bool:
        """Whether writing the constant would store it apart from others that it is one with."""
        while name in self._stored:
            name = self._stored[name].input[0]
        return name in self._tied

    def quantized(self, name: str) -> bool:
        """Whether the constant is stored quantized."""
        return name in self._stored

    def read(self, name: str) -> npt.NDArray[Any]:
        """The array of a constant."""
        if name in self._stored:
            node = self._stored[name]
            return evaluate_stored(node, [self.read(given) for given in node.input if given])
        return numpy_helper.to_array(self._tensors[name])

    def node(self, name: str) -> onnx.NodeProto:
        """The node of that name; KeyError if there is none."""
        return self._nodes[name]

    def write(self, name: str, value: npt.NDArray[Any]) -> None:
        """Replace a constant's values, keeping the type (and the scale) that it is stored in."""
        if name in self._stored:
            node = self._stored[name]
            source = node.input[0]
            keeps = node.op_type == "QuantizeLinear" or source in self._stored
            return self.write(source, value if keeps else self._levels(node, value))
        replace_values(self._tensors[name], value)

    def rounded(self, name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What `read` would give after `write`, for a constant that is stored quantized."""
        node = self._stored.get(name)
        if node is None:
            return value
        if node.op_type == "QuantizeLinear":
            inner = value.astype(np.float32)
        elif node.input[0] in self._stored:
            inner = self.rounded(node.input[0], value)
        else:
            inner = self._levels(node, value)
        return evaluate_stored(node, [inner, *(self.read(given) for given in node.input[1:] if given)])

    def _levels(self, node: onnx.NodeProto, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The levels that a DequantizeLinear comes nearest to ``value`` with."""
        kind = self._tensors[node.input[0]].data_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        parameters = [self.read(given).astype(np.float64) for given in node.input[1:] if given]
        scale, *zero = (along_axis(node, parameter, value.ndim) for parameter in parameters)
        limits = np.iinfo(dtype)
        levels = np.rint(value / scale) + (zero[0] if zero else 0)
        return np.asarray(levels.clip(limits.min, limits.max).astype(dtype))

    def free_name(self, wanted: str) -> str:
        """``wanted``, or a name like it that no tensor of the graph has."""
        graph = self.model.graph
        taken = {value.name for value in graph.input} | set(self._tensors)
        taken.update(name for node in graph.node for name in (*node.input, *node.output))
        while wanted in taken:
            wanted += "_"
        return wanted

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
        """Channels (C,) whose scale is too small to divide by, beside the median of those that have one.

        The largest says nothing: a channel that never varies has a huge one.
        """
        size = np.abs(self.scale)
        alive = size[size > 0.0]
        return np.asarray(size < 1e-3 * (float(np.median(alive)) if len(alive) else 1.0))

    def select(self, channels: npt.NDArray[np.bool_]) -> Affine:
        """The map of the channels that a mask (C,) keeps."""
        return Affine(self.scale[channels], self.shift[channels], self.chain)

    def then(self, scale: FloatArray, shift: FloatArray, node: str) -> Affine:
        """This map followed by another one."""
        return Affine(self.scale * scale, self.shift * scale + shift, (*self.chain, node))


def read_matrix(constants: Constants, layer: Layer) -> FloatArray:
    """The weights of a layer as (groups, d, C_out / groups), so that ``rows @ matrix`` is its output.

    d runs over a group's input channels, then kernel positions; those of a ConvTranspose are
    mirrored, as `Geometry` reads it as a Conv of a widened input. Gemm: ``alpha`` is included.
    """
    return _as_matrix(constants, layer, constants.read(layer.weight))


def write_matrix(constants: Constants, layer: Layer, matrix: FloatArray) -> None:
    """Store ``matrix`` (groups, d, C_out / groups) as the layer's weights; inverse of `read_matrix`."""
    constants.write(layer.weight, _as_weight(constants, layer, matrix))


def rounded_matrix(constants: Constants, layer: Layer, matrix: FloatArray) -> FloatArray:
    """What `read_matrix` would give after `write_matrix`, up to the floats' precision."""
    return _as_matrix(constants, layer, constants.rounded(layer.weight, _as_weight(constants, layer, matrix)))


def _as_matrix(constants: Constants, layer: Layer, weight: npt.NDArray[Any]) -> FloatArray:
    weight = weight.astype(np.float64)
    if layer.op == "Conv":
        return weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1).transpose(0, 2, 1)
    if layer.op == "ConvTranspose":
        taps = weight.reshape(layer.groups, -1, weight.shape[1], math.prod(weight.shape[2:]))[..., ::-1]
        return taps.transpose(0, 1, 3, 2).reshape(layer.groups, -1, weight.shape[1])
    matrix = weight.reshape(weight.shape[-2:])
    matrix = matrix if layer.weight_in_axis < layer.weight_out_axis else matrix.T
    return np.asarray(matrix[None] * _attribute(constants.node(layer.name), "alpha", 1.0))


def _as_weight(constants: Constants, layer: Layer, matrix: FloatArray) -> FloatArray:
    shape = constants.read(layer.weight).shape
    if layer.op == "Conv":
        weight = matrix.transpose(0, 2, 1)
    elif layer.op == "ConvTranspose":
        taps = matrix.reshape(layer.groups, -1, math.prod(shape[2:]), shape[1])
        weight = taps.transpose(0, 1, 3, 2)[..., ::-1]
    else:
        flat = matrix[0] / _attribute(constants.node(layer.name), "alpha", 1.0)
        weight = flat if layer.weight_in_axis < layer.weight_out_axis else flat.T
    return weight.reshape(shape)


def read_bias(constants: Constants, layer: Layer, channels: int) -> FloatArray:
    """The constant that a layer adds to each output channel: (C_out,), zeros where it has none."""
    name = layer.bias
    if not name or name not in constants:
        return np.zeros(channels)
    bias = constants.read(name).astype(np.float64) * _beta(constants.node(layer.name))
    return np.broadcast_to(bias.reshape(-1), (channels,)).copy()


def replace_values(tensor: onnx.TensorProto, value: npt.NDArray[Any]) -> None:
    """Store ``value`` in a tensor's own type; its name and what is noted beside it stay."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    stored = numpy_helper.from_array(np.ascontiguousarray(value.astype(dtype)), tensor.name)
    stored.doc_string = tensor.doc_string
    stored.metadata_props.extend(tensor.metadata_props)
    tensor.CopyFrom(stored)


def can_shift(constants: Constants, layer: Layer, affine: Affine, *, new_bias: bool = True) -> bool:
    """Whether a constant can be added to the layer's output channels; see `add_shift`.

    Without ``new_bias`` only where no parameter has to be added for it.
    """
    node = constants.node(layer.name)
    if has_addend(node):
        name = node.input[2]
        shape = constants.read(name).shape if name in constants else ()
        grows = math.prod(shape) < len(layer.out_units) or constants.tied(name)
        single = constants.writable(name) and math.prod(shape[:-1]) == 1
        return single and _beta(node) != 0 and (new_bias or not grows)
    place = _shift_place(constants, affine)
    if place is not None:
        return new_bias or not constants.tied(place[0])
    # A float beside quantized weights would keep runtimes from computing the layer in integers.
    can_grow = new_bias and not constants.quantized(layer.weight)
    return can_grow and layer.op in _BIASED and _beta(node) != 0


def add_shift(constants: Constants, layer: Layer, affine: Affine, shift: FloatArray) -> None:
    """Add ``shift`` (C_out,) to the layer's output channels; only where `can_shift` says so.

    It goes into the layer's own bias, else into the mean of a BatchNormalization or an added constant
    right behind it; a Conv or Gemm with neither is given a bias.
    """
    node = constants.node(layer.name)
    if has_addend(node):
        old = constants.read(node.input[2]).astype(np.float64)
        shape = (*old.shape[:-1], len(shift))
        constants.write(node.input[2], np.broadcast_to(old, shape) + shift / _beta(node))
        return
    place = _shift_place(constants, affine)
    if place is not None:
        name, sign = place
        old = constants.read(name).astype(np.float64)
        constants.write(name, old + sign * shift.reshape(old.shape))
        return
    name = constants.free_name(f"{layer.name}.bias")
    constants.add(name, (shift / _beta(node)).astype(constants.read(layer.weight).dtype))
    del node.input[2:]
    node.input.append(name)


def affine_step(
    constants: Constants, node: onnx.NodeProto, source: str, axis: int, rank: int
) -> tuple[FloatArray, FloatArray] | None:
    """Scale and shift (C,) or (1,) of a node that maps each channel of ``source`` by itself, else None.

    ``axis`` is the channel axis of ``source``, which has ``rank`` axes.
    """
    if _passes(constants, node):
        return np.ones(1), np.zeros(1)
    if node.op_type == "BatchNormalization" and node.input[0] == source and axis == 1:
        return _normalisation(constants, node)
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or source not in node.input:
        return None
    position = 1 - list(node.input).index(source)
    name = node.input[position]
    if name not in constants or (position == 0 and node.op_type in ("Sub", "Div")):
        return None
    value = _per_channel(constants.read(name), axis - rank)
    if value is None or (node.op_type == "Div" and not value.all()):
        return None
    match node.op_type:
        case "Add":
            return np.ones_like(value), value
        case "Sub":
            return np.ones_like(value), -value
        case "Mul":
            return value, np.zeros_like(value)
        case _:
            return 1.0 / value, np.zeros_like(value)


def _passes(constants: Constants, node: onnx.NodeProto) -> bool:
    """Whether the node changes nothing, but for rounding: a quantizer with room below zero is one."""
    if node.op_type == "QuantizeLinear" and is_quantizer(node):
        if len(node.input) < 3 or node.input[2] not in constants:
            return False
        zero = constants.read(node.input[2])
        return np.issubdtype(zero.dtype, np.integer) and bool((zero > np.iinfo(zero.dtype).min).all())
    return node.op_type == "Identity" or is_quantizer(node) or _is_idle_dropout(constants, node)


def _is_idle_dropout(constants: Constants, node: onnx.NodeProto) -> bool:
    """Whether the node is a Dropout at inference, which changes nothing."""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return node.op_type == "Dropout"
    return node.input[2] in constants and not constants.read(node.input[2]).any()


def _normalisation(constants: Constants, node: onnx.NodeProto) -> tuple[FloatArray, FloatArray] | None:
    """Scale and shift of a BatchNormalization at inference; None where its statistics are not fixed."""
    training = _attribute(node, "training_mode", 0) or len(node.output) > 1  # the latter before opset 14
    if training or not all(name in constants for name in node.input[1:5]):
        return None
    gamma, beta, mean, variance = (constants.read(name).astype(np.float64) for name in node.input[1:5])
    if gamma.ndim != 1:  # opset 7 can normalise every position by itself
        return None
    scale = gamma / np.sqrt(variance + _attribute(node, "epsilon", 1e-5))
    return scale, beta - mean * scale


def _shift_place(constants: Constants, affine: Affine) -> tuple[str, int] | None:
    """The constant of the first node of the chain that does anything, and the sign a shift takes there."""
    for name in affine.chain:
        node = constants.node(name)
        if node.op_type in ("Identity", "Dropout") or is_quantizer(node):
            continue
        places = {
            "BatchNormalization": [(3, -1)],
            "Add": [(0, 1), (1, 1)],
            "Sub": [(1, -1)],
        }.get(node.op_type, [])
        for position, sign in places:
            given = node.input[position]
            if constants.writable(given) and constants.read(given).size == len(affine.scale):
                return given, sign
        return None
    return None


def has_addend(node: onnx.NodeProto) -> bool:
    """Whether a layer adds its third input to its product."""
    return node.op_type in _BIASED and len(node.input) > 2 and bool(node.input[2])


def _beta(node: onnx.NodeProto) -> float:
    """What a layer multiplies its bias with: 1 but for Gemm."""
    return _attribute(node, "beta", 1.0)


def _per_channel(value: npt.NDArray[Any], axis: int) -> FloatArray | None:
    if value.size == 1:
        return value.reshape(1).astype(np.float64)
    if value.ndim < -axis or value.shape[axis] != value.size:
        return None
    return value.reshape(-1).astype(np.float64)


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    for entry in node.attribute:
        if entry.name == name:
            return float(onnx.helper.get_attribute_value(entry))
    return default
