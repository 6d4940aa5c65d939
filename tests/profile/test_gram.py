"""Gram matrices from their upper blocks, against the whole product."""

from __future__ import annotations

import pytest
import torch

from onnxprune.profile.gram import add_gram, gram_matrix, mirror


def rows(count: int, size: int, groups: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(groups, count, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 700])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_gram_matrix_is_the_whole_product(size: int, groups: int) -> None:
    x = rows(20, size, groups)
    torch.testing.assert_close(gram_matrix(x), x.transpose(1, 2) @ x, rtol=1e-12, atol=1e-12)


def test_a_sum_may_go_on_after_it_was_completed() -> None:
    parts = [rows(7, 600, 2), rows(12, 600, 2)]
    total = torch.zeros(2, 600, 600, dtype=torch.float64)
    for part in parts:
        add_gram(total, part)
        mirror(total)
    every = torch.cat(parts, dim=1)
    torch.testing.assert_close(total, every.transpose(1, 2) @ every, rtol=1e-12, atol=1e-12)
