"""The remark on odd channel counts: only where a model is big enough and they carry enough of its work."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.plan import Plan
from onnxprune.report.channels import odd_channels_warning
from tests.model_builder import Builder


def warned(removed: int, *, size: int = 48, channels: int = 16) -> tuple[str, ...]:
    """What is said when the second of four Convs loses that many channels."""
    b = Builder()
    x = b.conv(b.input((1, 3, size, size)), 16, 3)
    x = b.conv(x, channels, 3)
    x = b.conv(x, 16, 3)
    graph = analyze_graph(b.model(b.conv(x, 3)))
    keep = np.ones(graph.unit_count, np.bool_)
    keep[graph.layers[1].out_units[:removed]] = False
    return odd_channels_warning(graph, Plan(keep))


def test_odd_counts_of_a_big_model_are_named() -> None:
    (text,) = warned(3)
    assert text.startswith("1 of 4 Conv layers end with an odd number of channels (4")
    assert "--round-to 8" in text


@pytest.mark.parametrize("quiet", [{"removed": 4}, {"removed": 0}, {"removed": 3, "size": 12}])
def test_even_counts_and_small_models_are_not(quiet: dict[str, int]) -> None:
    assert warned(**quiet) == ()


def test_a_count_that_was_odd_before_is_not_ours() -> None:
    assert warned(2, channels=15) == ()
