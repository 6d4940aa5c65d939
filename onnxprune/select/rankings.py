"""Rankings of every group's units, by each method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.errors import ModelError, UsageError
from onnxprune.graph.structure import Group, IntArray, PruningGraph
from onnxprune.graph.weights import Constants, FloatArray
from onnxprune.profile.statistics import LayerStatistics
from onnxprune.select.allocate import Ranking
from onnxprune.select.classes import ClassGraph, ClassTree, class_correlation
from onnxprune.select.contribution import contribution_term, pooled_contribution_term
from onnxprune.select.elimination import Compensation, eliminate
from onnxprune.select.graph_penalty import GraphPenalty
from onnxprune.select.path import solve_path
from onnxprune.select.penalties import L1, Penalty
from onnxprune.select.problem import QuadraticTerm
from onnxprune.select.scores import activation_scores, median_scores, norm_scores, scale_scores
from onnxprune.select.tree_penalty import TreePenalty

LASSO_METHODS = ("stlp-ib", "sglp-ib", "lasso-ib")
PRICED_METHODS = (*LASSO_METHODS, "obs")
"""Methods whose losses compare between groups."""
STATISTICS_METHODS = (*PRICED_METHODS, "wanda")
_LEVELS = 10
_TOLERANCE = 1e-3
_ITERATIONS = 100
_MU = 1.0


@dataclass(frozen=True)
class LassoSettings:
    """How the lasso and the elimination behind it work together.

    In each step of the elimination the ``shortlist`` share of the units left that the lasso needs
    least competes; 0 follows the lasso's order alone, 1 ignores it. An error counts ``depth_weight`` times
    as much at the last layer as at the first, whose errors the fits behind it mend in part.
    """

    method: str = "stlp-ib"
    shortlist: float = 0.5
    depth_weight: float = 1.0


def lasso_rankings(
    groups: list[Group],
    statistics: Mapping[str, LayerStatistics],
    terms: Mapping[str, QuadraticTerm],
    settings: LassoSettings,
) -> list[Ranking]:
    """Rank each group by its lasso path, and price its order by exact compensation.

    ``terms`` are the groups' data terms by name. Losses are mean squared errors at each consumer's
    target after refitting, relative to the target's variance, summed over the consumers.
    """
    rankings = []
    for group in groups:
        readers = [statistics[name] for name in group.consumers if name in statistics]
        if not readers:
            continue
        penalty = class_penalty(
            settings.method, np.concatenate([entry.responses for entry in readers], axis=1)
        )
        path = solve_path(
            terms[group.name], penalty, count=_LEVELS, tolerance=_TOLERANCE, max_iterations=_ITERATIONS
        )
        result = eliminate(
            compensations(readers, settings.depth_weight),
            group.units,
            priority=path.score,
            shortlist=settings.shortlist,
        )
        rankings.append(Ranking(group, result.order, result.loss))
    return rankings


def elimination_rankings(
    groups: list[Group], statistics: Mapping[str, LayerStatistics], *, depth_weight: float = 1.0
) -> list[Ranking]:
    """Rank each group by exact compensation alone, every unit competing in every step (OBS on blocks)."""
    rankings = []
    for group in groups:
        readers = [statistics[name] for name in group.consumers if name in statistics]
        if readers:
            result = eliminate(compensations(readers, depth_weight), group.units)
            rankings.append(Ranking(group, result.order, result.loss))
    return rankings


def class_penalty(method: str, responses: FloatArray) -> Penalty:
    """The penalty of a scheme on the class structure that ``responses`` (C, features) show."""
    present = np.isfinite(responses).all(1) & (responses != 0).any(1)
    correlation = class_correlation(responses, present)
    if method == "stlp-ib":
        return TreePenalty(ClassTree.from_correlation(correlation, present), mu=0.0, nonnegative=True)
    if method == "sglp-ib":
        return GraphPenalty(ClassGraph.from_correlation(correlation), mu=_MU, nonnegative=True)
    if method == "lasso-ib":
        return L1(nonnegative=True)
    raise UsageError(f"unknown scheme {method!r}", hint=f"known: {', '.join(LASSO_METHODS)}")


def contribution_terms(
    groups: list[Group],
    statistics: Mapping[str, LayerStatistics],
    *,
    classwise: bool,
    depth_weight: float = 1.0,
) -> dict[str, QuadraticTerm]:
    """The contribution data term of each group (METHOD section 3), summed over its consumers.

    Each consumer counts relative to its target's energy, and by its depth as in `LassoSettings`. With
    ``classwise`` false, one response.
    """
    terms: dict[str, QuadraticTerm] = {}
    for group in groups:
        readers = [statistics[name] for name in group.consumers if name in statistics]
        if not readers:
            continue
        parts = [
            depth_weight**entry.depth * _of_group(entry, group.units) / (entry.energy * entry.rows + 1e-30)
            for entry in readers
        ]
        gram = np.sum(parts, axis=0)
        terms[group.name] = contribution_term(gram) if classwise else pooled_contribution_term(gram)
    return terms


def compensations(readers: list[LayerStatistics], depth_weight: float = 1.0) -> list[Compensation]:
    """The elimination states of a group's consumers, one for each group of a grouped Conv."""
    states = []
    for entry in readers:
        weight = depth_weight**entry.depth / max(entry.energy, 1e-30)
        for part, columns in enumerate(entry.columns):
            units = np.where(columns < 0, -1, entry.units[columns])
            states.append(
                Compensation(
                    entry.gram[part],
                    entry.matrix[part],
                    units,
                    entry.rows,
                    weight,
                    independent=entry.independent,
                )
            )
    return states


def score_rankings(
    graph: PruningGraph,
    groups: list[Group],
    method: str,
    seed: int,
    *,
    statistics: Mapping[str, LayerStatistics] | None = None,
    importance: Mapping[str, FloatArray] | None = None,
) -> list[Ranking]:
    """Rank each group by a criterion, or at random; losses say only the order.

    ``wanda`` needs ``statistics``, ``taylor`` the ``importance`` (p,) of each group's units, by name.
    """
    constants = Constants(graph.model)
    generator = np.random.default_rng(seed)
    rankings = []
    for group in groups:
        if method == "taylor" and importance is not None:
            scores = importance[group.name]
        elif method == "wanda" and statistics is not None:
            scores = activation_scores(constants, group, statistics)
        else:
            scores = _score(graph, constants, group, method, generator)
        order = np.argsort(scores, kind="stable").astype(np.int64)
        rankings.append(Ranking(group, order, np.arange(len(order) + 1, dtype=np.float64)))
    if method == "bn-scale" and all(not scale_scores(graph, constants, group).any() for group in groups):
        raise ModelError(
            "bn-scale needs BatchNormalization nodes, and the model has none left",
            hint="exporters fold them; take another --method",
        )
    return rankings


def _score(
    graph: PruningGraph, constants: Constants, group: Group, method: str, generator: np.random.Generator
) -> FloatArray:
    match method:
        case "l1":
            return norm_scores(graph, constants, group, 1)
        case "l2":
            return norm_scores(graph, constants, group, 2)
        case "fpgm":
            return median_scores(graph, constants, group)
        case "bn-scale":
            return scale_scores(graph, constants, group)
        case "random":
            return generator.random(len(group.units))
        case "taylor" | "wanda":
            raise UsageError(f"{method} needs what the data says", hint="profile the model first")
        case _:
            raise UsageError(f"unknown method {method!r}", hint="onnxprune compress --help lists them")


def _of_group(entry: LayerStatistics, units: IntArray) -> npt.NDArray[np.float32]:
    position = np.searchsorted(entry.units, units)
    return entry.contributions[np.ix_(np.arange(len(entry.contributions)), position, position)]
