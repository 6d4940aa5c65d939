"""Budgets as users write them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.select.budget import BUDGET_KINDS, Budget, BudgetKind, parse_budget


@pytest.mark.parametrize(
    ("kind", "text", "relative", "absolute"),
    [
        ("macs", "50%", 0.5, None),
        ("macs", " 12.5 % ", 0.125, None),
        ("macs", "0.5", 0.5, None),
        ("macs", 0.5, 0.5, None),
        ("macs", ".25", 0.25, None),
        ("macs", "1", 1.0, None),
        ("macs", "100%", 1.0, None),
        ("macs", "12M", None, 12e6),
        ("macs", "1.5G", None, 1.5e9),
        ("macs", "1.5g", None, 1.5e9),
        ("macs", "12_000_000", None, 12e6),
        ("macs", 12_000_000, None, 12e6),
        ("macs", np.float32(0.1), 0.1, None),
        ("macs", np.int64(1_400_000), None, 1.4e6),
        ("params", "300K", None, 300e3),
        ("size", "5MB", None, 5e6),
        ("size", "500 kB", None, 500e3),
        ("size", "4MiB", None, 4 * 2.0**20),
        ("size", "2000B", None, 2000.0),
        ("size", "60%", 0.6, None),
        ("latency", "4ms", None, 4.0),
        ("latency", "800us", None, 0.8),
        ("latency", "0.5s", None, 500.0),
        ("latency", "70%", 0.7, None),
        ("latency", "0.7", 0.7, None),
    ],
)
def test_reads_shares_and_amounts(
    kind: BudgetKind, text: str | float, relative: float | None, absolute: float | None
) -> None:
    budget = parse_budget(kind, text)
    assert budget.kind == kind
    assert budget.relative == pytest.approx(relative) if relative is not None else budget.relative is None
    assert budget.absolute == pytest.approx(absolute) if absolute is not None else budget.absolute is None


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("macs", "150%", "more than the original"),
        ("macs", "0", "above zero"),
        ("macs", "0%", "above zero"),
        ("macs", "-1", "above zero"),
        ("macs", "half", "neither a share nor an amount"),
        ("macs", "nan", "neither"),
        ("macs", "inf", "neither"),
        ("macs", "1e999", "above zero"),
        ("macs", "", "neither"),
        ("macs", "5MB", "unknown unit 'MB'"),
        ("macs", "50", "would be 50 in all"),
        ("macs", True, "not True"),
        ("macs", np.bool_(True), "takes a share"),
        ("macs", np.float64("nan"), "neither"),
        ("size", "4ms", "unknown unit 'ms'"),
        ("latency", "4", "no unit"),
        ("latency", "12M", "unknown unit 'M'"),
    ],
)
def test_refuses_the_rest_with_a_way_out(kind: BudgetKind, text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_budget(kind, text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_forgotten_percent_sign_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        parse_budget("macs", "50")
    assert "did you mean 50%?" in caught.value.hint


@given(st.sampled_from(BUDGET_KINDS), st.floats(1e-6, 1.0), st.floats(1.0, 1e12))
def test_a_share_bounds_by_the_originals_figure(kind: BudgetKind, share: float, before: float) -> None:
    budget = parse_budget(kind, f"{share!r}")
    assert budget.limit(before) == pytest.approx(share * before)
    assert budget.met(before, share * before * 0.999)
    assert not budget.met(before, share * before * 1.001)


def test_an_amount_bounds_whatever_the_original_has() -> None:
    budget = parse_budget("size", "5MB")
    assert budget.limit(1e9) == 5e6
    assert budget.met(1e9, 5e6) and not budget.met(1e9, 5e6 + 1)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"relative": 0.5, "absolute": 5.0},
        {"relative": 1.5},
        {"relative": 0.0},
        {"absolute": float("inf")},
    ],
)
def test_a_budget_is_one_sensible_bound(values: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Budget("macs", **values)


def test_prints_as_written() -> None:
    assert str(parse_budget("macs", "50%")) == "macs 50%"
    assert str(parse_budget("size", "5MB")) == "size 5000000 bytes"
    assert str(parse_budget("latency", "4ms")) == "latency 4 ms"
