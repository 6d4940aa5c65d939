from __future__ import annotations

import numpy as np
import pytest

from onnxprune.graph.labels import DATA, Atoms, Labels, compact, rows_along
from onnxprune.graph.structure import Reason

FIRST, SECOND = Reason("Softmax", "a", "it sums"), Reason("graph output", "b")


def test_union_matches_a_plain_union_find() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        atoms, count = Atoms(), int(random.integers(2, 60))
        ids = atoms.fresh(count, removable=True)
        pairs = random.integers(0, count, (int(random.integers(0, 80)), 2))
        half = len(pairs) // 2
        atoms.union(ids[pairs[:half, 0]], ids[pairs[:half, 1]])
        atoms.union(ids[pairs[half:, 0]], ids[pairs[half:, 1]])

        sets = [{i} for i in range(count)]
        for a, b in pairs:
            merged = sets[a] | sets[b]
            for member in merged:
                sets[member] = merged
        assert atoms.find(ids).tolist() == [min(sets[i]) for i in range(count)]


def test_a_star_and_a_long_chain_settle() -> None:
    atoms = Atoms()
    ids = atoms.fresh(5000, removable=True)
    atoms.union(ids[:-1], ids[1:])
    assert (atoms.find(ids) == 0).all()
    star = atoms.fresh(5000, removable=True)
    atoms.union(np.full(4999, star[-1]), star[:-1])
    assert (atoms.find(star) == star[0]).all()


def test_resolve_spreads_pins_and_the_first_reason() -> None:
    atoms = Atoms()
    a, b, c, d = (int(x) for x in atoms.fresh(4, removable=True))
    constant = atoms.fresh(2, removable=False)
    atoms.pin(np.array([b]), FIRST)
    atoms.pin(np.array([a, b]), SECOND)
    atoms.union(np.array([a]), np.array([b]))
    atoms.union(np.array([c]), constant[:1])
    _, free, reason = atoms.resolve()
    assert free.tolist() == [False, False, True, True, True, False]
    assert [atoms.reasons[i] for i in reason[[a, b]]] == [FIRST, FIRST]
    assert reason[d] == len(atoms.reasons)


def test_coupling_a_row_with_fixed_data_pins_it() -> None:
    atoms = Atoms()
    ids = atoms.fresh(4, removable=True)
    atoms.couple(np.array([[ids[0], ids[1]], [ids[2], DATA]]), FIRST)
    roots, free, _ = atoms.resolve()
    assert roots[1] == roots[0]
    assert free.tolist() == [True, True, False, True]


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (1, 4, 2, 2)])
def test_labels_along_an_axis_stay_small(shape: tuple[int, ...]) -> None:
    labels = Labels.data(shape)
    assert labels.full().shape == shape and (labels.full() == DATA).all() and labels.varying == ()
    for axis, size in enumerate(shape):
        ids = np.arange(size)
        along = Labels.along(shape, axis, ids)
        assert along.core.size == size
        view = [1] * len(shape)
        view[axis] = size
        assert np.array_equal(along.full(), np.broadcast_to(ids.reshape(view), shape))
        assert np.array_equal(Labels.of(along.full()).core, along.core)


def test_compact_keeps_what_changes() -> None:
    array = np.arange(6).reshape(1, 2, 3)
    assert compact(array).shape == (1, 2, 3)
    assert compact(np.broadcast_to(array[:, :1, :], (5, 2, 3))).shape == (1, 1, 3)
    assert compact(np.zeros((2, 0, 3), np.int64)).shape == (1, 1, 1)


def test_rows_hold_one_index_of_the_other_axes() -> None:
    core = np.arange(24).reshape(2, 3, 4)
    rows = rows_along(core, [1])
    assert rows.shape == (8, 3)
    assert rows[0].tolist() == [0, 4, 8] and rows[5].tolist() == [13, 17, 21]
