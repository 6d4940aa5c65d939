"""What stands in the way of pruning: reasons, where they are, and the MACs that they keep."""

from __future__ import annotations

import io

import numpy as np
import onnx
from hypothesis import given
from rich.console import Console

from onnxprune.graph.analysis import analyze_graph
from onnxprune.pipeline import inspect
from onnxprune.profile.cost import CostModel
from onnxprune.report.encode import report_dict
from onnxprune.report.inspection import coverage, obstacles
from onnxprune.report.schema import InspectReport, Obstacle
from onnxprune_cli import tables
from tests.model_builder import Builder
from tests.strategies import models


def by_reason(report: InspectReport) -> dict[str, Obstacle]:
    return {item.reason: item for item in report.obstacles}


def recurrent() -> onnx.ModelProto:
    """An encoder of 8 channels, an LSTM that reads them, a classifier."""
    b = Builder()
    x = b.matmul(b.relu(b.matmul(b.input((5, 1, 3)), 6)), 8)
    y = b.node("LSTM", [x, b.weight(1, 16, 8), b.weight(1, 16, 4)], hidden_size=4)
    return b.model(b.matmul(b.shaped(y, 5, 1, 1, 4), 2))


def test_an_op_without_a_rule_is_named_with_what_it_keeps() -> None:
    report = inspect(recurrent())
    # For each of the steps, which lie where a batch does.
    hidden, lstm, last = 6 * 8, 16 * (8 + 4), 4 * 2
    total = 3 * 6 + hidden + lstm + last
    assert report.cost.macs == total
    found = by_reason(report)
    assert list(found) == ["LSTM: the op has no rule", "graph output"]
    reason = found["LSTM: the op has no rule"]
    assert len(reason.places) == 1 and reason.places[0].startswith("n_LSTM")
    # The classifier reads no channels because of the LSTM; the 6 of the encoder can go.
    assert np.isclose(reason.macs, (hidden + lstm + last) / total)
    assert np.isclose(reason.macs_kept, (lstm + last) / total)
    assert np.isclose(reason.macs_kept, 1 - report.coverage.macs)
    assert np.isclose(found["graph output"].macs, last / total)


def normalised(blocks: int) -> onnx.ModelProto:
    """Blocks of two layers whose inner channels are normalised over, and so are those between the blocks."""
    b = Builder()
    x = b.input((1, 5, 4))
    for _ in range(blocks):
        for features in (7, 6):
            x = b.like("LayerNormalization", b.matmul(x, features), b.weight(features), b.weight(features))
    return b.model(b.matmul(x, 3))


def test_a_reason_is_listed_once_for_all_its_places() -> None:
    (first, last) = inspect(normalised(3)).obstacles
    assert first.reason == "LayerNormalization: it normalises over channels"
    assert len(first.places) == 6 and (first.macs, first.macs_kept) == (1, 1)
    assert last.reason == "graph output" and last.macs == last.macs_kept < 0.1


def test_a_layer_behind_what_keeps_channels_is_touched_too() -> None:
    """The last layer reads what was normalised: none of the channels that it reads has a reason itself."""
    b = Builder()
    x = b.matmul(b.input((1, 5, 4)), 6)
    x = b.like("LayerNormalization", x, b.weight(6), b.weight(6))
    report = inspect(b.model(b.matmul(b.relu(x), 3)))
    assert by_reason(report)["LayerNormalization: it normalises over channels"].macs == 1


def test_products_of_inputs_have_a_reason() -> None:
    b = Builder()
    x = b.input((1, 5, 4))
    scores = b.shaped(b.node("MatMul", [x, b.input((1, 4, 5), "z")]), 1, 5, 5)
    (found,) = inspect(b.model(scores)).obstacles
    assert found.reason == "MatMul: it reads no channels that can go"
    assert (found.macs, found.macs_kept) == (1, 1)


@given(models())
def test_all_that_stays_has_a_reason(model: onnx.ModelProto) -> None:
    graph = analyze_graph(model)
    costs = CostModel.of(graph)
    stays = 1 - coverage(graph, costs).macs
    found = obstacles(graph, costs)
    kept = [item.macs_kept for item in found]
    assert kept == sorted(kept, reverse=True)
    assert max(kept, default=0) <= stays + 1e-9 and sum(kept) >= stays - 1e-9
    assert all(item.macs_kept <= item.macs <= 1 + 1e-9 and item.places for item in found)
    named = {item.reason for item in graph.skipped}
    listed = {str(reason) for reasons in graph.reasons.values() for reason in reasons}
    assert named <= listed


def test_a_terminal_of_80_columns_shows_them() -> None:
    report = inspect(recurrent())
    console = Console(width=80, record=True, file=io.StringIO())
    for part in tables.inspection(report):
        console.print(part)
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= 80
    row = next(line for line in lines if line.startswith("LSTM: the op has no rule"))
    assert row.split()[-4:] == ["75.2", "%", "93.2", "%"]
    assert report_dict(report)["obstacles"][0] == {
        "reason": "LSTM: the op has no rule",
        "places": list(report.obstacles[0].places),
        "macs": report.obstacles[0].macs,
        "macs_kept": report.obstacles[0].macs_kept,
    }
