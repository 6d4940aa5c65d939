"""Every op, in every opset that changed it, against onnxruntime; gradients against finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from onnxprune.recover.executor import Executor, supported_ops

from .op_cases import CASES, Case, schema_versions

NO_ORACLE = {("GlobalLpPool", 22), ("Upsample", 10)}
"""No kernel in onnxruntime nor in the specification's evaluator; and a version that only deprecates."""

RUNS = [pytest.param(case, opset, id=case.label(opset)) for case in CASES for opset in case.versions()]
SMOOTH = [
    pytest.param(case, case.opsets[-1], id=case.label(case.opsets[-1])) for case in CASES if case.smooth
]


def expected(case: Case, opset: int) -> Sequence[Any]:
    model, feeds = case.model(opset)
    try:
        ort.set_default_logger_severity(4)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:
        # Few ops have no kernel in onnxruntime; the specification's own evaluator stands in.
        results = ReferenceEvaluator(model).run(None, feeds)
        return results if isinstance(results, Sequence) else [results]
    results = session.run(None, feeds)
    assert isinstance(results, Sequence)
    return results


@pytest.mark.parametrize(("case", "opset"), RUNS)
def test_op_equals_onnxruntime(case: Case, opset: int) -> None:
    model, feeds = case.model(opset)
    executor = Executor(model, trainable=())
    actual = executor({name: torch.from_numpy(value) for name, value in feeds.items()})
    for name, want in zip(executor.outputs, expected(case, opset), strict=True):
        got = actual[name].numpy()
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("case", "opset"), SMOOTH)
def test_gradient_equals_finite_differences(case: Case, opset: int) -> None:
    model, feeds = case.model(opset, np.float64)
    executor = Executor(model, trainable=(), dtype=torch.float64)
    values = [torch.from_numpy(value).requires_grad_() for value in feeds.values()]

    def run(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(executor(dict(zip(feeds, given, strict=True))).values())

    assert torch.autograd.gradcheck(run, values, eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_every_op_has_a_case() -> None:
    assert set(supported_ops()) - {(case.domain, case.op) for case in CASES} == set()


def test_every_schema_change_has_a_case() -> None:
    """Up to opset 22; what later ones change is types of numbers, but for the ops that are new in them."""
    covered: dict[str, set[int]] = {}
    for case in (case for case in CASES if not case.domain):
        covered.setdefault(case.op, set()).update(case.versions())
    missing = []
    for op, opsets in covered.items():
        changes = [*schema_versions(op), 2**31]
        for since, until in pairwise(changes):
            inside = any(since <= opset < until for opset in opsets)
            if until > 7 and since <= 22 and not inside and (op, since) not in NO_ORACLE:
                missing.append((op, since))
    assert missing == []
