"""Compression of a network whose channels reductions read: all of them from end to end."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune import pipeline
from tests.model_builder import Builder
from tests.plain import samples


def network() -> onnx.ModelProto:
    """A block with a normalised response, a gate of all channels, and features read by their norm alone."""
    b = Builder(seed=4)
    x = b.relu(b.conv(b.input((1, 3, 8, 8), dynamic=True), 12, 3))
    y = b.relu(b.conv(x, 24, 1))
    norms = b.reduce("ReduceL2", y, 2, 3)
    mean = b.node("Add", [b.reduce("ReduceMean", norms, 1), b.constant(np.float32(1e-6))])
    y = b.conv(b.like("Add", y, b.like("Mul", y, b.like("Div", norms, mean))), 12, 1)
    x = b.like("Add", x, y)
    both = b.concat(b.reduce("ReduceMean", x, 1), b.reduce("ReduceMax", x, 1))
    x = b.like("Mul", x, b.like("Sigmoid", b.conv(both, 1, 3)))
    x = b.reduce("ReduceL2", b.conv(x, 10, 1), 1)
    return b.model(b.gemm(b.flatten(x), 4))


@pytest.mark.parametrize("method", ["stlp-ib", "obs", "taylor", "l1"])
def test_a_network_with_reductions_is_compressed(method: str) -> None:
    model = network()
    result = pipeline.compress(
        model, data=samples(model, 60), calibration=50, provider="cpu", threads=1, verify=True,
        method=method, macs="60%",
    )  # fmt: skip
    stream, hidden, features = result.report.groups
    assert [group.channels_before for group in (stream, hidden, features)] == [12, 24, 10]
    assert hidden.channels_after < 24
    if method in ("stlp-ib", "obs"):  # they have a price for what layers read, and take nothing without one
        assert features.channels_after == 10
