"""``--max-group-ratio 1`` from end to end: a whole residual branch goes where nothing else is enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune import pipeline
from onnxprune.errors import BudgetError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.profile.cost import CostModel
from tests.plain import samples
from tests.recover.nets import resnet

MODEL = resnet(seed=2)
GRAPH = analyze_graph(MODEL)
(BRANCH,) = GRAPH.residual_branches
(GROUP,) = (group for group in GRAPH.groups if np.isin(group.units, BRANCH.units).all())
WITHOUT = CostModel.of(GRAPH).macs(~np.isin(np.arange(GRAPH.unit_count), GROUP.units))
TAIL = next(node.name for node in GRAPH.model.graph.node if node.output[0] == BRANCH.tensor)


def compress(**options: Any) -> pipeline.CompressionResult:
    """To less than what is left when all but one channel inside the branch go."""
    return pipeline.compress(
        MODEL, data=samples(MODEL, 48), calibration=32, provider="cpu", threads=1, verify=True,
        macs=WITHOUT, only=GROUP.producers, **options,
    )  # fmt: skip


@pytest.mark.parametrize("method", ("stlp-ib", "obs"))
def test_a_whole_branch_goes_when_asked(method: str) -> None:
    result = compress(max_group_ratio=1.0, method=method)
    assert [group.name for group in result.report.groups if not group.channels_after] == [GROUP.name]
    assert not {node.name for node in result.model.graph.node} & BRANCH.nodes
    assert result.report.after.macs == WITHOUT


@pytest.mark.parametrize(
    "options",
    (
        {},
        {"max_group_ratio": 0.99},
        {"max_group_ratio": 1.0, "method": "l1"},
        {"max_group_ratio": 1.0, "keep": (TAIL,)},
    ),
)
def test_else_a_channel_stays(options: dict[str, Any]) -> None:
    """The norm that ends the branch passes the stream's channels, not the group's."""
    assert TAIL in BRANCH.nodes and TAIL not in GROUP.nodes
    with pytest.raises(BudgetError, match="can't be met"):
        compress(**options)
