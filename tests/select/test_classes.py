"""Class graph, class tree and clusters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from onnxprune.errors import UsageError
from onnxprune.select.classes import ABSENT, ClassGraph, ClassTree, class_correlation, coarsen
from tests.select.oracles import CLUSTERS, planted_correlation


def test_correlation_forgets_what_all_classes_share() -> None:
    rng = np.random.default_rng(0)
    own = rng.standard_normal((5, 30))
    shared = 100 * rng.random(30)
    np.testing.assert_allclose(class_correlation(own + shared), class_correlation(own), atol=1e-9)
    scaled = (own + shared) * rng.uniform(0.1, 10, 30)
    np.testing.assert_allclose(class_correlation(scaled), class_correlation(own), atol=1e-9)
    expected = np.corrcoef(own - own.mean(axis=0))
    np.testing.assert_allclose(class_correlation(own, standardise=False), expected, atol=1e-12)


def test_absent_classes_and_silent_features() -> None:
    rng = np.random.default_rng(1)
    means = rng.standard_normal((4, 10))
    means[2] = np.nan
    means[:, 3] = 7.0
    r = class_correlation(means)
    assert np.isfinite(r).all()
    np.testing.assert_array_equal(r[2], [0, 0, 1, 0])
    np.testing.assert_array_equal(class_correlation(np.zeros((3, 5))), np.eye(3))
    np.testing.assert_array_equal(class_correlation(rng.random((1, 5))), np.eye(1))
    with pytest.raises(UsageError):
        class_correlation(np.zeros(3))


def test_graph_holds_the_strong_edges_with_their_signs() -> None:
    r = np.eye(4)
    for i, j, value in [(0, 1, 0.9), (0, 2, -0.8), (1, 2, 0.4), (2, 3, 0.6)]:
        r[i, j] = r[j, i] = value
    graph = ClassGraph.from_correlation(r, threshold=0.5)
    assert [(e.first, e.second, e.correlation) for e in graph.rows()] == [
        (0, 1, 0.9),
        (0, 2, -0.8),
        (2, 3, 0.6),
    ]
    assert (graph.weights > 0).all()
    positive = ClassGraph.from_correlation(r, threshold=0.5, positive_only=True)
    assert [(e.first, e.second) for e in positive.rows()] == [(0, 1), (2, 3)]


def test_graph_degree_is_bounded() -> None:
    r = planted_correlation(clusters=np.zeros(30, int))
    graph = ClassGraph.from_correlation(np.abs(r), threshold=0.0, max_degree=3)
    assert len(graph.edges) <= 90
    strongest = np.argmax(np.abs(r) - 2 * np.eye(30), axis=1)
    held = {tuple(edge) for edge in graph.edges.tolist()}
    assert all((min(i, j), max(i, j)) in held for i, j in enumerate(strongest.tolist()))


def test_tree_is_average_linkage() -> None:
    r = planted_correlation(3, np.repeat(np.arange(5), 4))
    tree = ClassTree.from_correlation(r)
    distance = 1 - r
    np.fill_diagonal(distance, 0)
    expected = linkage(squareform(distance, checks=False), "average")
    np.testing.assert_allclose(tree.heights, expected[:, 2] / expected[-1, 2], atol=1e-12)
    for members, row in zip(tree.children, expected, strict=True):
        assert sorted(members) == sorted(row[:2].astype(int))


def test_tree_weights_split_each_path() -> None:
    """Along every path from root to class, s_v passes on what g_v = 1 - s_v leaves (Kim & Xing 2012)."""
    tree = ClassTree(3, ((0, 1), (3, 2)), (0.25, 0.5), np.ones(3, bool))
    weights = tree.weights()
    np.testing.assert_allclose(weights, [0.5 * 0.25, 0.5 * 0.25, 0.5, 0.5 * 0.75, 0.5])
    big = ClassTree.from_correlation(planted_correlation())
    for c in range(big.classes):
        path = sum(w for v, w in enumerate(big.weights()) if c in big.leaves(v))
        assert path == pytest.approx(1.0)
    assert [row.weight for row in big.rows()] == pytest.approx(big.weights()[big.classes :].tolist())
    assert big.rows()[-1].leaves == tuple(range(8))


def test_tree_with_absent_classes_has_them_at_the_root() -> None:
    r = planted_correlation()
    present = np.array([True] * 6 + [False, False])
    tree = ClassTree.from_correlation(r, present)
    assert set(tree.children[-1]) >= {6, 7}
    assert tree.leaves(tree.classes + len(tree.children) - 1) == tuple(range(8))
    np.testing.assert_allclose(tree.weights()[[6, 7]], 1.0)
    for here in ([False] * 8, [True] + [False] * 7):
        assert sorted(ClassTree.from_correlation(r, here).rows()[-1].leaves) == list(range(8))
    assert ClassTree.from_correlation(np.eye(1)).children == ()


def test_coarsen_finds_the_planted_clusters() -> None:
    tree = ClassTree.from_correlation(planted_correlation())
    np.testing.assert_array_equal(coarsen(tree, 3), CLUSTERS)
    np.testing.assert_array_equal(coarsen(tree, 1), np.zeros(8, int))
    np.testing.assert_array_equal(coarsen(tree, 99), np.arange(8))
    with pytest.raises(UsageError):
        coarsen(tree, 0)


def test_coarsen_cuts_like_scipy() -> None:
    r = planted_correlation(4, np.repeat(np.arange(6), 5), noise=1.0)
    distance = 1 - r
    np.fill_diagonal(distance, 0)
    merges = linkage(squareform(distance, checks=False), "average")
    for k in (2, 5, 11):
        found = coarsen(ClassTree.from_correlation(r), k)
        expected = fcluster(merges, k, "maxclust")
        np.testing.assert_array_equal(found[:, None] == found, expected[:, None] == expected)


def test_coarsen_leaves_absent_classes_out() -> None:
    present = np.array([True] * 6 + [False, False])
    assignment = coarsen(ClassTree.from_correlation(planted_correlation(), present), 2)
    np.testing.assert_array_equal(assignment, [0, 0, 0, 1, 1, 1, ABSENT, ABSENT])


def test_a_tree_of_a_thousand_classes() -> None:
    clusters = np.repeat(np.arange(40), 25)
    tree = ClassTree.from_correlation(planted_correlation(5, clusters))
    assert len(set(coarsen(tree, 40).tolist())) == 40
    np.testing.assert_array_equal(coarsen(tree, 40), clusters)


def test_structures_are_the_same_each_time() -> None:
    r = planted_correlation()
    assert ClassTree.from_correlation(r).rows() == ClassTree.from_correlation(r).rows()
    ties = np.full((6, 6), 0.5) + 0.5 * np.eye(6)
    assert ClassTree.from_correlation(ties).children[0] == (0, 1)
    with pytest.raises(UsageError):
        ClassTree.from_correlation(np.zeros((2, 3)))
