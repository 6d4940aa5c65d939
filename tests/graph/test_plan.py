"""Plans as text: what is written is read back, and whatever does not fit is named."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from onnxprune.errors import PlanError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.plan import Plan, keep_all, must_keep_one, validate
from onnxprune.graph.structure import PruningGraph
from tests.model_builder import Builder


@pytest.fixture(scope="module")
def graph() -> PruningGraph:
    b = Builder()
    x = b.relu(b.conv(b.input((1, 2, 4, 4)), 4, 3))
    x = b.relu(b.like("Add", x, b.conv(b.relu(b.conv(x, 6, 3)), 4, 3)))
    return analyze_graph(b.model(b.gemm(b.flatten(x), 3)))


def document(graph: PruningGraph) -> dict[str, Any]:
    text: dict[str, Any] = json.loads(keep_all(graph).to_json(graph, model_sha256="abc"))
    return text


def test_round_trip(graph: PruningGraph) -> None:
    plan = keep_all(graph)
    plan.keep[[g.units[1] for g in graph.groups]] = False
    text = plan.to_json(graph, model_sha256="abc")
    again = Plan.from_json(graph, text, model_sha256="abc")
    np.testing.assert_array_equal(again.keep, plan.keep)
    entry = json.loads(text)["groups"][0]
    size = len(graph.groups[0].units)
    assert (entry["channels_before"], entry["channels_after"]) == (size, size - 1)
    assert entry["keep"] == [0, *range(2, size)]
    assert json.loads(text)["skipped"] == [{"name": s.name, "reason": s.reason} for s in graph.skipped]
    assert len(text.splitlines()) <= 6 + 2 * (len(graph.groups) + len(graph.skipped) + 1)


def test_edited_by_hand(graph: PruningGraph) -> None:
    """Only ``keep`` decides; groups that are left out stay whole."""
    text = json.dumps({"schema": 1, "groups": [{"name": graph.groups[1].name, "keep": [2, 0]}]})
    keep = Plan.from_json(graph, text).keep
    assert np.flatnonzero(keep[graph.groups[1].units]).tolist() == [0, 2]
    assert keep[graph.groups[0].units].all()


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (lambda d: d.update(schema=2), "schema 2", "--save-plan"),
        (lambda d: d.pop("groups"), 'no "groups"', "--save-plan"),
        (lambda d: d.update(groups={}), '"groups" of the plan', ""),
        (lambda d: d.update(groups=[3]), "not an object: 3", ""),
        (lambda d: d["groups"][0].pop("keep"), 'has no "keep"', ""),
        (lambda d: d["groups"][0].update(name=7), "not of type str", ""),
        (lambda d: d["groups"][0].update(name=d["groups"][0]["name"] + "x"), "unknown group", "did you mean"),
        (lambda d: d["groups"][0].update(name="zzzzzzzz"), "unknown group", "groups are"),
        (lambda d: d["groups"].append(d["groups"][0]), "twice", ""),
        (lambda d: d["groups"][0].update(keep=[]), "removes all", "keep a channel of"),
        (lambda d: d["groups"][0].update(keep=[0, 99]), "position 99; it has the positions 0 to", ""),
        (lambda d: d["groups"][0].update(keep=[-1]), "position -1", ""),
        (lambda d: d["groups"][0].update(keep=[1, 1]), "position 1 twice", ""),
        (lambda d: d["groups"][0].update(keep=["a"]), "'a', which is not a position", ""),
        (lambda d: d["groups"][0].update(keep=[True]), "not a position", ""),
        (lambda d: d["groups"][0].update(channels_before=5), "5 in the plan", "another model"),
    ],
)
def test_misfits_are_named(graph: PruningGraph, change: Any, message: str, hint: str) -> None:
    text = document(graph)
    change(text)
    with pytest.raises(PlanError, match=re.escape(message)) as caught:
        Plan.from_json(graph, json.dumps(text))
    assert caught.value.hint and hint in caught.value.hint
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3


@pytest.mark.parametrize("text", ("", "{", "[]", "1", "[" * 100_000))
def test_not_a_plan(graph: PruningGraph, text: str) -> None:
    with pytest.raises(PlanError, match="the plan is not"):
        Plan.from_json(graph, text)


def test_plan_of_another_model(graph: PruningGraph) -> None:
    text = keep_all(graph).to_json(graph, model_sha256="a" * 64)
    with pytest.raises(PlanError, match="another model"):
        Plan.from_json(graph, text, model_sha256="b" * 64)
    Plan.from_json(graph, text)  # the caller knows no digest: nothing to compare


def test_every_axis_keeps_an_index_but_a_group_need_not() -> None:
    """Both halves of a Split must keep a channel; what only lies beside others may go as a whole."""
    b = Builder(opset=13)
    x = b.conv(b.input((1, 2, 4, 4)), 4, 1)
    y = b.conv(x, 6, 1)
    left, _ = b.split(x, [2, 2])
    graph = analyze_graph(b.model(b.conv(b.relu(left), 3, 1), b.conv(b.relu(y), 3, 1)))
    units = graph.axes[x][1]
    assert units is not None
    halves = units[:2], units[2:]
    sets = {tuple(sorted(item.tolist())) for item in must_keep_one(graph)}
    assert tuple(sorted(units.tolist())) not in sets  # follows from the halves
    for half in halves:
        assert tuple(sorted(half.tolist())) in sets
        plan = keep_all(graph)
        plan.keep[half] = False
        with pytest.raises(PlanError, match="removes all 2 channels of the group"):
            validate(graph, plan)

    b = Builder()
    x = b.conv(b.input((1, 2, 4, 4)), 4, 1)
    graph = analyze_graph(b.model(b.conv(b.concat(b.slice(x, 1, 0, 2), b.relu(x)), 3, 1)))
    units = graph.axes[x][1]
    assert units is not None
    plan = keep_all(graph)
    plan.keep[units[2:]] = False
    assert len(graph.groups) == 2
    validate(graph, plan)
    plan.keep[units[:2]] = False
    with pytest.raises(PlanError):
        validate(graph, plan)
