"""Baseline criteria: one score for each unit, from the weights or from what they pass."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.graph.structure import Group, PruningGraph
from onnxprune.graph.weights import Constants, FloatArray, read_matrix
from onnxprune.profile.statistics import LayerStatistics


def producer_rows(graph: PruningGraph, constants: Constants, group: Group) -> list[list[FloatArray]]:
    """For each unit of ``group``, the filters that produce it: one flat array for each index it has."""
    rows: list[list[FloatArray]] = [[] for _ in group.units]
    position = {int(unit): index for index, unit in enumerate(group.units)}
    for name in group.producers:
        layer = graph.layer(name)
        axes = graph.axes[layer.weight]
        units = axes[layer.weight_out_axis]
        if units is None:
            continue
        filters = np.moveaxis(constants.read(layer.weight).astype(np.float64), layer.weight_out_axis, 0)
        for index, unit in enumerate(units):
            if int(unit) in position:
                rows[position[int(unit)]].append(filters[index].ravel())
    return rows


def norm_scores(graph: PruningGraph, constants: Constants, group: Group, order: int) -> FloatArray:
    """The l1 or l2 norm of all filters of each unit (Li et al., ICLR 2017): (p,)."""
    rows = producer_rows(graph, constants, group)
    return np.array([sum(float(np.linalg.norm(row, order)) for row in of_unit) for of_unit in rows])


def median_scores(graph: PruningGraph, constants: Constants, group: Group) -> FloatArray:
    """Distance of each unit's filters to all others' of the group (FPGM, He et al., CVPR 2019): (p,)."""
    rows = producer_rows(graph, constants, group)
    scores = np.zeros(len(rows))
    for parts in zip(*rows, strict=True):
        filters = np.stack(parts)
        squares = (filters**2).sum(1)
        distances = np.sqrt(np.maximum(0.0, squares[:, None] + squares[None, :] - 2 * filters @ filters.T))
        scores += distances.sum(1)
    return scores


def scale_scores(graph: PruningGraph, constants: Constants, group: Group) -> FloatArray:
    """Mean |gamma| of the BatchNormalizations that each unit passes (Liu et al., ICCV 2017): (p,).

    Zeros where the group passes none.
    """
    position = {int(unit): index for index, unit in enumerate(group.units)}
    total, count = np.zeros(len(position)), np.zeros(len(position))
    for name in group.nodes:
        node = graph.node(name)
        if node.op_type != "BatchNormalization" or node.input[1] not in constants:
            continue
        units = graph.axes[node.input[1]][0]
        if units is None:
            continue
        for gamma, unit in zip(constants.read(node.input[1]), units, strict=True):
            if int(unit) in position:
                total[position[int(unit)]] += abs(float(gamma))
                count[position[int(unit)]] += 1
    return total / np.maximum(count, 1)


def activation_scores(
    constants: Constants, group: Group, statistics: Mapping[str, LayerStatistics]
) -> FloatArray:
    """|weight| times the norm of what it reads, summed over all weights that read a unit: (p,).

    Wanda (Sun et al., ICLR 2024) with whole channels for single weights; the norm is the root mean
    square over the calibration rows.
    """
    scores = np.zeros(len(group.units))
    for name in group.consumers:
        if name not in statistics:
            continue
        entry = statistics[name]
        squares = entry.gram.diagonal(dim1=1, dim2=2)[:, :-1].double().cpu().numpy() / entry.rows
        passed = np.abs(read_matrix(constants, entry.layer)).sum(2) * np.sqrt(squares)
        units = np.where(entry.columns < 0, -1, entry.units[entry.columns])
        mine = np.isin(units, group.units)
        np.add.at(scores, np.searchsorted(group.units, units[mine]), passed[mine])
    return scores
