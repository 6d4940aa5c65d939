"""Where a layer's output is judged: at the residual join that it feeds, or at its own output."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import onnx

from onnxprune.graph.fold import captured
from onnxprune.graph.structure import Layer, PruningGraph
from onnxprune.graph.weights import Affine, Constants, affine_step


@dataclass(frozen=True)
class Clip:
    """The interval to which every reader of a tensor clips it: (0, infinity) in front of a ReLU.

    Beyond it, values differ without any effect.
    """

    lower: float = -math.inf
    upper: float = math.inf

    @property
    def clips(self) -> bool:
        """Whether there are values beyond the interval."""
        return self.lower > -math.inf or self.upper < math.inf


@dataclass(frozen=True)
class Target:
    """The tensor at which a layer's output should equal the original's, within ``clip``.

    ``affine`` leads from the layer's output to it. At a residual join, ``tensor`` is the join's
    output and ``shortcut`` the tensor that it adds; else ``shortcut`` is None.
    """

    tensor: str
    affine: Affine
    shortcut: str | None = None
    clip: Clip = Clip()


class Targets:
    """Finds the target of each layer of a graph."""

    def __init__(self, graph: PruningGraph) -> None:
        """Index who reads which tensor, and the last layer that each tensor depends on."""
        self._graph = graph
        self._constants = Constants(graph.model)
        self._outputs = {value.name for value in graph.model.graph.output}
        self._readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._latest: dict[str, int] = {}
        number = {layer.output: index for index, layer in enumerate(graph.layers)}
        self._number = number
        for node in graph.model.graph.node:
            sources = (*node.input, *captured(node))
            latest = max((self._latest.get(name, -1) for name in sources), default=-1)
            for name in sources:
                self._readers[name].append(node)
            for name in node.output:
                self._latest[name] = max(latest, number.get(name, -1))

    def of(self, layer: Layer) -> Target:
        """The residual join where ``layer`` is the last one to feed it, else what follows it affinely.

        A join whose shortcut still depends on a later layer is left to that layer.
        """
        tensor = layer.output
        shape = self._graph.shapes[tensor]
        affine = Affine.identity(shape[layer.channel_axis])
        end, levels = (tensor, affine), False  # levels: the tensor holds the integers of a quantizer
        while tensor not in self._outputs and len(self._readers[tensor]) == 1:
            node = self._readers[tensor][0]
            step = affine_step(self._constants, node, tensor, layer.channel_axis, len(shape))
            if step is not None and self._graph.shapes.get(node.output[0]) == shape:
                affine = affine.then(*step, node.name)
                tensor = node.output[0]
                levels = node.op_type == "QuantizeLinear" or (levels and node.op_type != "DequantizeLinear")
                if not levels:
                    end = tensor, affine
                continue
            shortcut = None if levels else self._shortcut(node, tensor, self._number[layer.output])
            if shortcut is not None:
                return Target(node.output[0], affine, shortcut, self._clip(node.output[0]))
            break
        return Target(*end, clip=self._clip(end[0]))

    def _clip(self, tensor: str) -> Clip:
        """The smallest interval that holds all that the readers of ``tensor`` see of it."""
        if tensor in self._outputs:
            return Clip()
        clips = [_clip_of(self._constants, node, tensor) for node in self._readers[tensor]]
        if not clips:
            return Clip()
        return Clip(min(clip.lower for clip in clips), max(clip.upper for clip in clips))

    def _shortcut(self, node: onnx.NodeProto, tensor: str, number: int) -> str | None:
        if node.op_type not in ("Add", "Sum") or len(node.input) != 2:
            return None
        other = node.input[1 - list(node.input).index(tensor)]
        shapes = self._graph.shapes
        joined = other not in self._constants and shapes.get(other) == shapes.get(tensor)
        return other if joined and other != tensor and self._latest.get(other, -1) < number else None


def _clip_of(constants: Constants, node: onnx.NodeProto, tensor: str) -> Clip:
    """The interval that matters to one reader."""
    given = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    if tensor in node.input[1:] or tensor not in node.input:
        return Clip()
    match node.op_type:
        case "Relu":
            return Clip(lower=0.0)
        case "Clip":
            bounds = [given.get("min", -math.inf), given.get("max", math.inf)]
            for index, name in enumerate(node.input[1:3]):
                if name:
                    value = constants.read(name) if name in constants else None
                    if value is None or value.size != 1:
                        return Clip()
                    bounds[index] = value.item()
            return Clip(*map(float, bounds))
        case "HardSwish":
            return Clip(lower=-3.0)
        case "HardSigmoid":
            alpha, beta = given.get("alpha", 0.2), given.get("beta", 0.5)
            return Clip(-beta / alpha, (1.0 - beta) / alpha) if alpha > 0 else Clip()
        case _:
            return Clip()
