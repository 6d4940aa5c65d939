"""From merged atoms to units, and from units to groups of interchangeable ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.graph.labels import DATA, Atoms, Labels, compact, other_axes, rows_along
from onnxprune.graph.structure import FIXED, BoolArray, Group, IntArray, Layer, Reason, Skipped

Axes = tuple[IntArray | None, ...]
Weights = Mapping[str, Mapping[int, IntArray]]
"""The labels of a weight's axes, each (dim,), independent of one another."""

_AT_ONCE = "its channels can only go all at once, and none would be left"


@dataclass(frozen=True)
class Units:
    """``of_atom`` (atoms,) gives each atom's unit or ``FIXED``.

    ``why`` (atoms,) is the index in ``reasons`` of why the atom is fixed, -1 where it isn't; ``count`` is the
    number of units.
    """

    of_atom: IntArray
    why: IntArray
    reasons: tuple[Reason, ...]
    count: int

    def of(self, ids: IntArray) -> IntArray:
        """Unit ids of atom ids, ``FIXED`` for ``DATA``."""
        if not len(self.of_atom):
            return np.full(ids.shape, FIXED, np.int64)
        return np.where(ids >= 0, self.of_atom[np.maximum(ids, 0)], FIXED)


def make_rectangular(atoms: Atoms, labels: Mapping[str, Labels]) -> None:
    """Merge units until each tensor stays a full rectangle whatever units are removed.

    Where labels change along several axes of a tensor (an axis of channels split into a product),
    they are coupled so that they change along one: the one that leaves the most units.
    """
    changed = True
    while changed:
        changed = False
        roots, free, _ = atoms.resolve()
        for name, value in labels.items():
            if len(value.varying) < 2:
                continue
            core = _free_roots(value.core, roots, free)
            varying = [axis for axis, size in enumerate(core.shape) if size > 1]
            if len(varying) < 2:
                continue
            best = max(
                varying,
                key=lambda axis: (atoms.coupled_count(rows_along(core, other_axes(core.ndim, [axis]))), axis),
            )
            rows = rows_along(core, other_axes(core.ndim, [best]))
            atoms.couple(rows, Reason("tensor", name, "it would not stay rectangular"))
            roots, free, _ = atoms.resolve()
            changed = True


def pin_whole_axes(atoms: Atoms, labels: Mapping[str, Labels], weights: Weights) -> None:
    """Pin units that are all there is along some axis: without them the tensor would be empty."""
    roots, free, _ = atoms.resolve()
    for name, value in labels.items():
        core = _free_roots(value.core, roots, free)
        if core.size == 1 and core.max() >= 0:
            atoms.pin(core, Reason("tensor", name, _AT_ONCE))
    for name, axes in weights.items():
        for ids in axes.values():
            mapped = _free_roots(ids, roots, free)
            if mapped.size and mapped.min() == mapped.max() >= 0:
                atoms.pin(mapped, Reason("tensor", name, _AT_ONCE))


def number_units(atoms: Atoms) -> Units:
    """Number the sets of atoms that can go, in the order in which their first atoms were started."""
    roots, free, reasons = atoms.resolve()
    numbers = np.full(len(atoms), FIXED, np.int64)
    live = np.unique(roots[free])
    numbers[live] = np.arange(len(live))
    why = np.where(free | (reasons == len(atoms.reasons)), -1, reasons)
    return Units(numbers[roots] if len(atoms) else numbers, why, tuple(atoms.reasons), len(live))


def unit_axes(
    labels: Mapping[str, Labels],
    weights: Weights,
    units: Units,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Axes]:
    """For each tensor and each of its axes, the unit at each index (dim,), or None where nothing can go."""
    result: dict[str, Axes] = {}
    for name, shape in shapes.items():
        axes: list[IntArray | None] = [None] * len(shape)
        if name in weights:
            for axis, ids in weights[name].items():
                mapped = units.of(ids)
                axes[axis] = mapped if (mapped >= 0).any() else None
        elif name in labels:
            core = compact(units.of(labels[name].core))
            for axis, size in enumerate(core.shape):
                if size > 1:
                    axes[axis] = core.ravel()
        result[name] = tuple(axes)
    return result


def make_groups(
    axes: Mapping[str, Axes], units: Units, layers: Sequence[Layer], node_values: Mapping[str, Sequence[str]]
) -> tuple[Group, ...]:
    """Groups of units with the same places (tensor, axis, multiplicity); ``layers`` hold unit ids.

    A group is named after the layer that starts its units; ``node_values`` gives each node's tensors.
    """
    classes = _partition(axes, units.count)
    members = [np.flatnonzero(classes == value) for value in range(int(classes.max(initial=-1)) + 1)]
    started: dict[int, list[str]] = {}
    consumed: dict[int, list[str]] = {}
    for layer in layers:
        if is_depthwise(layer):
            continue
        for ids, table in ((layer.out_units, started), (layer.in_units, consumed)):
            for value in np.unique(classes[np.unique(ids[ids >= 0])]):
                table.setdefault(int(value), []).append(layer.name)
    passed: dict[int, list[str]] = {}
    at: dict[str, set[int]] = {}
    for name, entry in axes.items():
        present = [part[part >= 0] for part in entry if part is not None]
        if present:
            at[name] = {int(value) for value in np.unique(classes[np.concatenate(present)])}
    for node, values in node_values.items():
        for value in sorted(set().union(*(at.get(name, set()) for name in values))):
            passed.setdefault(value, []).append(node)
    used: dict[str, int] = {}
    groups = []
    for value in sorted(range(len(members)), key=lambda value: int(members[value][0])):
        name = started[value][0]
        used[name] = used.get(name, 0) + 1
        unique = name if used[name] == 1 else f"{name}#{used[name]}"
        groups.append(
            Group(
                name=unique,
                units=members[value],
                producers=tuple(started[value]),
                consumers=tuple(consumed.get(value, ())),
                nodes=tuple(passed.get(value, ())),
            )
        )
    return tuple(groups)


def with_units(layer: Layer, units: Units) -> Layer:
    """The layer with unit ids for its atom ids."""
    return replace(layer, in_units=units.of(layer.in_units), out_units=units.of(layer.out_units))


def list_skipped(layers: Sequence[Layer], units: Units) -> tuple[Skipped, ...]:
    """What stays of each layer's output channels and why, from layers that still hold atom ids."""
    skipped: list[Skipped] = []
    for layer in layers:
        if is_depthwise(layer):
            continue
        counts: dict[Reason, int] = {}
        for atom in layer.out_units:
            if atom < 0 or units.why[atom] >= 0:
                reason = units.reasons[units.why[atom]] if atom >= 0 else passing(layer)
                counts[reason] = counts.get(reason, 0) + 1
        skipped.extend(Skipped(layer.name, count, str(reason)) for reason, count in counts.items())
    return tuple(skipped)


def passing(layer: Layer) -> Reason:
    """Why output channels of a layer stay that it does not make itself."""
    return Reason(layer.op, layer.name, "channels on another axis pass through it")


def is_depthwise(layer: Layer) -> bool:
    """Whether the layer passes its input's channels on instead of mixing them."""
    return layer.groups > 1 and layer.groups == len(layer.in_units)


def _free_roots(ids: IntArray, roots: IntArray, free: BoolArray) -> IntArray:
    if not len(roots):
        return ids
    safe = np.maximum(ids, 0)
    return compact(np.where((ids >= 0) & free[safe], roots[safe], DATA))


def _partition(axes: Mapping[str, Axes], count: int) -> IntArray:
    """Class of each unit (count,): equal for units at the same places equally often."""
    classes = np.zeros(count, np.int64)
    following = 1
    for entry in axes.values():
        for ids in entry:
            if ids is None:
                continue
            present, times = np.unique(ids[ids >= 0], return_counts=True)
            keys = np.stack([classes[present], times])
            _, inverse = np.unique(keys, axis=1, return_inverse=True)
            classes[present] = following + inverse.reshape(-1)
            following += int(inverse.max()) + 1
    _, first, inverse = np.unique(classes, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse.reshape(-1)] if count else classes
