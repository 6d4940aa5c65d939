from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.graph.equation import Equation, parse_equation
from onnxprune.graph.rewrite import rewrite
from onnxprune.profile.cost import CostModel, count
from onnxprune.profile.geometry import layer_geometry
from onnxprune.progress import SilentProgress
from onnxprune.recover.closed_form import recover
from tests.graph.oracle import exact, reasons, units_at
from tests.model_builder import Builder
from tests.plain import samples
from tests.strategies import random_plan


def einsum(b: Builder, equation: str, *operands: str) -> str:
    parsed = parse_equation(equation, [len(b.shapes[name]) for name in operands])
    assert parsed is not None
    sizes: dict[str, int] = {}
    for letters, name in zip(parsed.operands, operands, strict=True):
        for letter, size in zip(letters, b.shapes[name], strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return b.shaped(b.node("Einsum", operands, equation=equation), *(sizes[key] for key in parsed.result))


def weight(b: Builder, *shape: int) -> str:
    return b.shaped(b.weight(*shape, scale=0.5), *shape)


@pytest.mark.parametrize(
    ("text", "ranks", "wanted"),
    [
        ("bij,jk->bik", [3, 2], Equation(("bij", "jk"), "bik")),
        ("ij , kj", [2, 2], Equation(("ij", "kj"), "ik")),
        ("...ij,...jk->...ik", [4, 3], Equation(("01ij", "1jk"), "01ik")),
        ("...i,i", [3, 1], Equation(("01i", "i"), "01")),
        ("bij->ji", [3], Equation(("bij",), "ji")),
        ("ii->i", [2], None),
        ("ij,jk->ik", [2], None),
        ("ij->ik", [2], None),
        ("ij->i", [3], None),
    ],
)
def test_equations(text: str, ranks: list[int], wanted: Equation | None) -> None:
    assert parse_equation(text, ranks) == wanted


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("bij,jk->bik", (6, 4)), ("bij,kj->bik", (4, 6)), ("...j,jk", (6, 4)), ("bij,jk->bki", (6, 4)),
        ("bij,jkl->bikl", (6, 4, 2)), ("bij,jlk->bkli", (6, 1, 4)),
    ],
)  # fmt: skip
def test_a_weight_is_consumed_and_brings_channels(equation: str, shape: tuple[int, ...]) -> None:
    b = Builder()
    x = b.relu(b.matmul(b.input((1, 5, 3)), 6))
    y = einsum(b, equation, x, weight(b, *shape))
    y = b.reshape(b.relu(y), 1, -1)
    graph = exact(b.model(b.gemm(y, 2)), plans=4)
    assert [len(group.units) for group in graph.groups] == [6, 4]
    assert graph.layers[1].op == "Einsum" and graph.layers[1].channel_axis == 2
    plan = random_plan(graph, 0, 0.5)
    cost, counted = CostModel.of(graph), count(rewrite(graph, plan))
    assert (cost.macs(plan.keep), cost.params(plan.keep)) == (counted.macs, counted.params)
    assert cost.macs(np.ones(10, np.bool_)) == 5 * (18 + 6 * np.prod(shape) // 6) + b.shapes[y][1] * 2


def test_the_weight_may_come_first_and_a_layer_like_matmul_is_refitted() -> None:
    b = Builder()
    x = b.relu(b.matmul(b.input((1, 5, 3), dynamic=True), 6))
    y = einsum(b, "kj,bij->bik", weight(b, 4, 6), x)
    graph = exact(b.model(b.matmul(b.relu(y), 2)))
    plan = random_plan(graph, 2, 0.4)
    layer = graph.layers[1]
    assert layer_geometry(graph, layer) is not None
    inputs = samples(graph, 80)
    recovery = recover(
        graph, plan, rewrite(graph, plan), inputs, provider="cpu", threads=1, progress=SilentProgress()
    )
    fit = next(fit for fit in recovery.fits if fit.layer == layer.name)
    assert fit.kept and fit.error_after < fit.error_before


def test_projections_into_heads_and_back() -> None:
    """As Keras writes attention: weights (width, heads, each) and (heads, each, width)."""
    b = Builder()
    x = b.input((1, 5, 6))
    query, key, value = (einsum(b, "abc,cde->abde", x, weight(b, 6, 4, 3)) for _ in range(3))
    query = b.like("Add", query, b.weight(4, 3))
    scores = einsum(b, "aecd,abcd->acbe", key, query)
    mixed = einsum(b, "acbe,aecd->abcd", b.like("Softmax", scores, axis=-1), value)
    y = einsum(b, "abcd,cde->abe", mixed, weight(b, 4, 3, 6))
    graph = exact(b.model(b.matmul(y, 2)), plans=4)
    assert [len(group.units) for group in graph.groups] == [4, 6]
    assert layer_geometry(graph, graph.layers[0]) is None


@pytest.mark.parametrize("equation", ["bhid,bhjd->bhij", "...id,...jd->...ij"])
def test_attention_goes_head_by_head(equation: str) -> None:
    b = Builder()
    x = b.input((1, 5, 6))
    parts = [b.transpose(b.reshape(b.matmul(x, 12), 1, 5, 4, 3), 0, 2, 1, 3) for _ in range(3)]
    scores = einsum(b, equation, parts[0], parts[1])
    mixed = einsum(b, "bhij,bhjd->bihd", b.like("Softmax", scores, axis=-1), parts[2])
    graph = exact(b.model(b.matmul(b.reshape(mixed, 1, 5, 12), 3)), plans=4)
    assert graph.unit_count == 4 and len(graph.groups) == 1


def test_positions_of_a_contraction_leave_both_operands() -> None:
    b = Builder()
    x = b.input((1, 5, 6))
    left, right = b.matmul(x, 7), b.matmul(x, 7)
    graph = exact(b.model(b.matmul(einsum(b, "bid,bjd->bij", left, right), 3)))
    assert np.array_equal(units_at(graph, left, 2), units_at(graph, right, 2)) and graph.unit_count == 7


def test_channels_are_summed_or_pass() -> None:
    b = Builder()
    x = b.matmul(b.input((1, 5, 6)), 4)
    total = b.reshape(einsum(b, "bij->bi", b.relu(x)), 1, 5, 1)
    passed = einsum(b, "bij,ik->bkj", x, weight(b, 5, 3))
    graph = exact(b.model(b.matmul(total, 2), b.matmul(passed, 2)))
    assert graph.unit_count == 4
    assert np.array_equal(units_at(graph, passed, 2), units_at(graph, x, 2))


def test_a_factor_for_each_channel_and_an_outer_product() -> None:
    b = Builder()
    x = b.matmul(b.input((1, 5, 6)), 4)
    graph = exact(b.model(b.matmul(einsum(b, "bij,j->bij", x, weight(b, 4)), 2)))
    assert graph.unit_count == 4
    b = Builder()
    x = b.input((1, 6))
    outer = einsum(b, "bi,bj->bij", b.gemm(x, 4), b.gemm(x, 3))
    graph = exact(b.model(b.matmul(outer, 2)))
    assert graph.unit_count == 0


def test_fixed_data_pins_the_letter_that_it_shares() -> None:
    b = Builder()
    x = b.input((1, 5, 6))
    graph = exact(b.model(b.matmul(einsum(b, "bid,bjd->bij", b.matmul(x, 6), x), 3)))
    assert graph.unit_count == 0 and "no channels that can go" in reasons(graph)


def test_three_operands() -> None:
    b = Builder()
    x = b.matmul(b.input((1, 5, 6)), 4)
    y = einsum(b, "bij,j,jk->bik", b.relu(x), weight(b, 4), weight(b, 4, 3))
    graph = exact(b.model(b.matmul(y, 2)))
    assert graph.unit_count == 4
    pruned = rewrite(graph, random_plan(graph, 1, 0.5))
    assert {t.name: numpy_helper.to_array(t).shape for t in pruned.graph.initializer}
