"""Small networks of twelve families, exported by torch; all exports are in ``bench.surgery minis``."""

from __future__ import annotations

import pytest

from bench.surgery.mini_models import MINIS
from bench.surgery.minis import exports, row


@pytest.mark.parametrize("name", sorted(MINIS))
def test_half_of_the_macs_go_exactly(name: str) -> None:
    mini = MINIS[name]
    how = next(how for how in exports(mini) if how.exporter == "older" and how.dynamic and not how.folded)
    wrong, figures = row(mini, how)
    assert not wrong, f"{how}: {wrong} ({figures})"
