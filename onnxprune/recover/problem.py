"""One layer's part in recovery: its regression, and its weights in the pruned model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from onnxprune.graph.joins import Target
from onnxprune.graph.plan import Plan, kept_indices
from onnxprune.graph.structure import Layer
from onnxprune.graph.weights import (
    Affine,
    Constants,
    FloatArray,
    add_shift,
    can_shift,
    read_bias,
    read_matrix,
    rounded_matrix,
    write_matrix,
)
from onnxprune.profile.geometry import Geometry, choose_positions
from onnxprune.recover.fit import Ridge
from onnxprune.recover.rows import Response, Rows

ROWS = (16_384, 65_536)
"""Fewest and most rows aimed at for a layer."""

ROWS_PER_COLUMN = 128
"""Rows aimed at for each column of a layer's rows, between those bounds."""

_ROW_BYTES = 1 << 30
"""Most bytes of rows and targets held for a layer."""

HELD_OUT = 10
"""Every tenth sample chooses ridges and steps, decides whether a fit is kept, and joins none."""


def is_held_out(samples: slice) -> Tensor:
    """Which of a range of samples are held out: a mask of its length."""
    return torch.arange(samples.start, samples.stop) % HELD_OUT == HELD_OUT - 1


def split(rows: Rows, samples: slice) -> tuple[Rows, Rows]:
    """Rows of a range of samples, the same number of each: (those that learn, those held out)."""
    held = is_held_out(samples).to(rows.goal.device)
    held = held[torch.arange(rows.count, device=held.device) * len(held) // rows.count]
    return rows.select(~held), rows.select(held)


def rows_wanted(shape: tuple[int, ...]) -> int:
    """Rows aimed at for a matrix of ``shape`` (G, d, O)."""
    groups, size, outputs = shape
    most = _ROW_BYTES // (4 * groups * (size + 2 * outputs))
    return min(ROWS[1], max(ROWS[0], ROWS_PER_COLUMN * size), most)


@dataclass(frozen=True)
class Problem:
    """One layer's regression, as the pruned model has the layer.

    ``kept`` (C,) are the original's output channels that stay; ``affine`` is that of those, as it is in
    the original. With ``constant`` the matrix has a last row for a column of ones.
    """

    layer: Layer
    geometry: Geometry
    target: Target
    affine: Affine
    kept: Tensor
    constant: bool

    @classmethod
    def of(
        cls,
        layer: Layer,
        geometry: Geometry,
        target: Target,
        plan: Plan,
        constants: Constants,
        *,
        new_bias: bool,
    ) -> Problem:
        """The problem of a layer of the original with that geometry; ``constants`` are the pruned model's."""
        small = _pruned_layer(layer, plan, constants.node(layer.name))
        stays = kept_indices(plan.keep, layer.out_units)
        affine = target.affine.select(stays)
        constant = can_shift(constants, small, affine, new_bias=new_bias)
        geometry = replace(geometry, groups=small.groups)
        return cls(small, geometry, target, affine, torch.from_numpy(stays.nonzero()[0]), constant)

    def rows(self, source: Tensor, chosen: Tensor) -> Tensor:
        """Rows (G, r, d) of the layer's input at the ``chosen`` positions, and a one for its constant."""
        rows = self.geometry.rows(source, chosen).transpose(0, 1)
        if self.constant:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)
        return rows.contiguous()

    def common(self, values: Tensor) -> Tensor:
        """What of the original's values at the target the pruned model has too."""
        axis = self.layer.channel_axis
        if len(self.kept) == values.shape[axis]:
            return values
        return values.index_select(axis, self.kept.to(values.device))

    def at_output(self, values: Tensor, chosen: Tensor, channels: Tensor | None = None) -> Tensor:
        """Values (G, r, O) of an output-shaped tensor at the ``chosen`` positions, in the order of `rows`."""
        return self.geometry.targets(values, chosen, channels).transpose(0, 1).contiguous()

    def choose(
        self, source: Tensor, samples: int, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Positions to read of each of ``samples`` samples, enough for a matrix of ``shape`` (G, d, O)."""
        positions = self.geometry.positions(source.shape)
        return choose_positions(positions, samples, rows_wanted(shape), generator)

    def norm(self, matrix: FloatArray) -> float:
        """Frobenius norm of a matrix (G, d, O) without its constant, as if ``affine`` were folded into it."""
        scale = np.where(self.affine.dead, 0.0, self.affine.scale).reshape(matrix.shape[0], 1, -1)
        weights = matrix[:, :-1] if self.constant else matrix
        return float(np.linalg.norm(weights * scale))

    def response(self, device: torch.device) -> Response:
        """How the layer's output becomes its target, in single precision."""
        groups = self.layer.groups

        def shaped(values: npt.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values).reshape(groups, 1, -1)).to(device)

        affine = self.affine
        return Response(
            shaped(affine.scale).float(), shaped(affine.shift).float(), shaped(affine.dead), self.target.clip
        )


class LayerWeights:
    """A layer's weights in the pruned model, with their constant as the last row where it has one.

    ``before`` (G, d, O) are those that recovery found, ``now`` those of the moment; ``solver`` is the
    ridge regression that moves them, as long as somebody needs it.
    """

    def __init__(self, constants: Constants, problem: Problem) -> None:
        """Read them."""
        self.problem = problem
        self._constants = constants
        layer = problem.layer
        matrix = read_matrix(constants, layer)
        if problem.constant:
            bias = read_bias(constants, layer, len(problem.kept))
            matrix = np.concatenate([matrix, bias.reshape(layer.groups, 1, -1)], axis=1)
        self.before = self.now = matrix
        self.solver: Ridge | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, d, outputs of a group)"""
        groups, size, outputs = self.before.shape
        return groups, size, outputs

    @property
    def quantized(self) -> bool:
        """Whether they are stored in fewer levels than a float has."""
        return self._constants.quantized(self.problem.layer.weight)

    def rounded(self, matrix: Tensor) -> Tensor:
        """What is left of a matrix when it is stored on the scale of the weights."""
        values = matrix.cpu().numpy()
        weights = values[:, :-1] if self.problem.constant else values
        stored = rounded_matrix(self._constants, self.problem.layer, weights)
        whole = np.concatenate([stored, values[:, weights.shape[1] :]], axis=1)
        return torch.from_numpy(whole).to(matrix)

    def write(self, new: FloatArray) -> None:
        """Store a matrix and the change of its constant, leaving out channels without effect."""
        layer, affine, constant = self.problem.layer, self.problem.affine, self.problem.constant
        new = np.where(affine.dead.reshape(layer.groups, 1, -1), self.now, new)
        write_matrix(self._constants, layer, new[:, :-1] if constant else new)
        if constant:
            add_shift(self._constants, layer, affine, (new[:, -1] - self.now[:, -1]).reshape(-1))
        self.now = new


def _pruned_layer(layer: Layer, plan: Plan, node: onnx.NodeProto) -> Layer:
    """The layer as the pruned model has it."""
    groups = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    return replace(
        layer,
        groups=groups,
        in_units=layer.in_units[kept_indices(plan.keep, layer.in_units)],
        out_units=layer.out_units[kept_indices(plan.keep, layer.out_units)],
    )
