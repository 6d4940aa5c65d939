"""The plan: which units stay. A value that can be printed, saved as JSON, edited, and applied."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import PlanError
from onnxprune.graph.structure import (
    FIXED,
    BoolArray,
    Group,
    IntArray,
    PruningGraph,
    ResidualBranch,
    removed_branches,
)

SCHEMA = 1
"""Version of the JSON form of a plan."""

_SEE = "write a plan with --save-plan to see the form"


@dataclass(frozen=True)
class Plan:
    """Which units of a PruningGraph stay: ``keep`` (unit_count,) over global unit ids."""

    keep: BoolArray

    def to_json(self, graph: PruningGraph, *, model_sha256: str = "") -> str:
        """The plan as text that can be edited: ``keep`` lists the positions that stay in each group.

        ``model_sha256`` is the digest of the model file, by which the plan can later tell that it
        is applied to the model that it was made for.
        """
        groups = [_group_json(group, self.keep) for group in graph.groups]
        skipped = [
            json.dumps({"name": item.name, "reason": item.reason}, ensure_ascii=False)
            for item in graph.skipped
        ]
        return (
            "{\n"
            f'  "schema": {SCHEMA},\n'
            f'  "model_sha256": {json.dumps(model_sha256)},\n'
            f'  "groups": {_lines(groups)},\n'
            f'  "skipped": {_lines(skipped)}\n'
            "}\n"
        )

    @classmethod
    def from_json(cls, graph: PruningGraph, text: str, *, model_sha256: str = "") -> Plan:
        """Read a plan for ``graph``; groups that it does not name stay whole.

        Where both the plan and the caller state a model's digest, they must agree. PlanError says
        precisely what does not fit.
        """
        document = _parse(text)
        stated = document["model_sha256"]
        if stated and model_sha256 and stated != model_sha256:
            raise PlanError(
                f"the plan was made for another model (sha256 {stated[:12]}…, not {model_sha256[:12]}…)",
                hint='apply it to the model it was made for, or set its "model_sha256" to "" if you are sure',
            )
        plan = keep_all(graph)
        groups = {group.name: group for group in graph.groups}
        seen: set[str] = set()
        for entry in document["groups"]:
            name = _field(entry, "name", str, "a group of the plan")
            if name not in groups:
                raise PlanError(f"the plan names an unknown group {name!r}", hint=_did_you_mean(name, groups))
            if name in seen:
                raise PlanError(f"the plan names the group {name!r} twice", hint="keep one entry")
            seen.add(name)
            plan.keep[groups[name].units] = _group_mask(entry, groups[name])
        plan = cls(plan.keep)
        validate(graph, plan)
        return plan


def keep_all(graph: PruningGraph) -> Plan:
    """The plan that removes nothing."""
    return Plan(np.ones(graph.unit_count, np.bool_))


def kept_indices(keep: BoolArray, units: IntArray) -> BoolArray:
    """Which indices of an axis stay: (dim,) for the axis's ``units`` (dim,)."""
    return np.append(keep, True)[units]  # FIXED is -1: it reads the appended entry


def must_keep_one(graph: PruningGraph) -> tuple[IntArray, ...]:
    """Sets of units of which at least one has to stay, since an axis has no other index.

    A plan that keeps a unit of each set is valid; others are only where whole residual branches go.
    Sets that contain another set are left out: they follow.
    """
    sets: dict[bytes, IntArray] = {}
    for axes in graph.axes.values():
        for entry in axes:
            if entry is None or not len(entry) or (entry == FIXED).any():
                continue
            units = np.unique(entry)
            sets[units.tobytes()] = units
    minimal: list[IntArray] = []
    for units in sorted(sets.values(), key=len):
        if not any(np.isin(other, units, assume_unique=True).all() for other in minimal):
            minimal.append(units)
    return tuple(minimal)


def validate(graph: PruningGraph, plan: Plan) -> None:
    """Check that ``plan`` fits ``graph``; else PlanError.

    At least one index of every axis has to stay, but inside residual branches that go as a whole.
    """
    keep = plan.keep
    if keep.dtype != np.bool_:
        raise PlanError(
            f"the plan's mask holds {keep.dtype}, not bool", hint="True keeps a unit, False removes it"
        )
    if keep.shape != (graph.unit_count,):
        raise PlanError(
            f"the plan is of another model: it decides on {keep.size} units, this one has {graph.unit_count}",
            hint="make the plan from the analysis of this very model",
        )
    gone: set[str] = set()
    for branch in removed_branches(graph.residual_branches, keep):
        _check_removed(graph, branch, keep)
        gone |= branch.tensors - {branch.tensor}
    checked: set[bytes] = set()
    for tensor, axes in graph.axes.items():
        if tensor in gone:
            continue
        for axis, units in enumerate(axes):
            if units is None or (key := units.tobytes()) in checked:
                continue
            checked.add(key)
            if len(units) and not kept_indices(keep, units).any():
                owners = [group for group in graph.groups if np.isin(group.units, units).any()]
                names = ", ".join(repr(group.name) for group in owners) or "its producer"
                whole = len(owners) == 1 and not keep[owners[0].units].any()
                raise PlanError(
                    f"the plan removes all {len(owners[0].units)} channels of the group {names}"
                    if whole
                    else f"the plan leaves nothing on axis {axis} of the tensor {tensor!r}",
                    hint=f"keep a channel of {names}",
                )


def _check_removed(graph: PruningGraph, branch: ResidualBranch, keep: BoolArray) -> None:
    """PlanError where a branch goes but for channels inside, which would serve nobody."""
    left = branch.units[keep[branch.units]]
    if len(left):
        names = ", ".join(repr(group.name) for group in graph.groups if np.isin(group.units, left).any())
        reads = next(group.name for group in graph.groups if np.isin(group.units, branch.entry).any())
        raise PlanError(
            f"the plan removes the branch that ends with {branch.reader!r}, but keeps channels of {names}",
            hint=f"keep none of {names}, or a channel of {reads!r}",
        )


def _group_json(group: Group, keep: BoolArray) -> str:
    mask = keep[group.units]
    return json.dumps(
        {
            "name": group.name,
            "channels_before": len(mask),
            "channels_after": int(mask.sum()),
            "keep": np.flatnonzero(mask).tolist(),
        },
        ensure_ascii=False,
    )


def _lines(entries: list[str]) -> str:
    return "[\n    " + ",\n    ".join(entries) + "\n  ]" if entries else "[]"


def _parse(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise PlanError(f"the plan is not JSON{where}", hint=_SEE) from error
    if not isinstance(document, dict):
        raise PlanError("the plan is not a JSON object", hint=_SEE)
    if document.get("schema") != SCHEMA:
        raise PlanError(
            f"the plan has schema {document.get('schema')!r}; schema {SCHEMA} can be read",
            hint=_SEE,
        )
    document.setdefault("model_sha256", "")
    _field(document, "model_sha256", str, "the plan")
    for entry in _field(document, "groups", list, "the plan"):
        if not isinstance(entry, dict):
            raise PlanError(f"the plan has a group that is not an object: {str(entry)[:60]}", hint=_SEE)
    return document


def _field(entry: dict[str, Any], name: str, kind: type, what: str) -> Any:
    if name not in entry:
        raise PlanError(f'{what} has no "{name}"', hint=_SEE)
    value = entry[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(f'"{name}" of {what} is {str(value)[:60]!r}, not of type {kind.__name__}', hint=_SEE)
    return value


def _group_mask(entry: dict[str, Any], group: Group) -> BoolArray:
    """The mask (p,) over the group's positions that ``entry`` states."""
    size, what = len(group.units), f"the group {group.name!r}"
    before = _field(entry, "channels_before", int, what) if "channels_before" in entry else size
    if before != size:
        raise PlanError(
            f"{what} has {size} channels in this model, {before} in the plan",
            hint="the plan was made for another model",
        )
    mask = np.zeros(size, np.bool_)
    for position in _field(entry, "keep", list, what):
        if not isinstance(position, int) or isinstance(position, bool):
            raise PlanError(
                f'"keep" of {what} has {str(position)[:60]!r}, which is not a position',
                hint=f"list whole numbers from 0 to {size - 1}",
            )
        if not 0 <= position < size:
            raise PlanError(
                f'"keep" of {what} has position {position}; it has the positions 0 to {size - 1}',
                hint="list the positions of the channels that stay, counted from 0",
            )
        if mask[position]:
            raise PlanError(f'"keep" of {what} has position {position} twice', hint="keep one of the two")
        mask[position] = True
    return mask


def _did_you_mean(name: str, known: dict[str, Group]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"this model's groups are {', '.join(sorted(known)[:8]) or 'none'}"
