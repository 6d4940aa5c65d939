"""Selection: from an analysed graph and its statistics to a plan within the budget."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from onnxprune.errors import ModelError, UsageError
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure import Group, IntArray, PruningGraph, removed_branches
from onnxprune.graph.weights import FloatArray
from onnxprune.profile.statistics import LayerStatistics
from onnxprune.select.allocate import Goal, Limits, Ranking, allocate, allocate_evenly
from onnxprune.select.hsic import hsic_statistics
from onnxprune.select.problem import QuadraticTerm
from onnxprune.select.rankings import (
    PRICED_METHODS,
    STATISTICS_METHODS,
    LassoSettings,
    contribution_terms,
    elimination_rankings,
    lasso_rankings,
    score_rankings,
)

HSIC_BLOCK = 256
"""Samples in one block of the block HSIC lasso."""


def chosen_groups(graph: PruningGraph, keep: Sequence[str] = (), only: Sequence[str] = ()) -> list[Group]:
    """Groups that may be pruned: none of whose nodes matches ``keep``, some of whose producers ``only``.

    Globs are matched against node names; UsageError for one that matches no node of the model.
    """
    names = [node.name for node in graph.model.graph.node]
    for glob in (*keep, *only):
        if not fnmatch.filter(names, glob):
            raise UsageError(f"no node is named like {glob!r}", hint=_naming(glob, names))
    return [
        group
        for group in graph.groups
        if not _matches((*group.nodes, *group.producers, *group.consumers), keep)
        and (not only or _matches(group.producers, only))
    ]


def _naming(glob: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(glob, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return "a glob matches whole names: *stem* finds all with stem in them; inspect lists those of layers"


def prunable_groups(graph: PruningGraph, keep: Sequence[str] = (), only: Sequence[str] = ()) -> list[Group]:
    """The groups that ``keep`` and ``only`` leave to choose from, at least one.

    Raises ModelError where the model has none, UsageError where ``keep`` and ``only`` leave none.
    """
    groups = chosen_groups(graph, keep, only)
    if groups:
        return groups
    if graph.groups:
        given = [name for name, globs in (("--keep", keep), ("--only", only)) if globs]
        raise UsageError(
            f"{' and '.join(given)} leave{'s' if len(given) == 1 else ''} nothing to prune "
            f"of the {len(graph.groups)} groups of channels in the model",
            hint="--only names layers that make channels, --keep all nodes that they pass; "
            "onnxprune inspect MODEL.onnx lists the groups",
        )
    reason = f": {graph.skipped[0].reason}" if graph.skipped else ""
    raise ModelError(
        f"nothing in the model can be pruned{reason}",
        hint="onnxprune inspect MODEL.onnx says why, group by group",
    )


def require_choices(
    graph: PruningGraph, plan: Plan, keep: Sequence[str], only: Sequence[str], limits: Limits
) -> None:
    """Raise UsageError where a plan from elsewhere removes what ``keep``, ``only`` or ``limits`` forbid."""
    free = {group.name for group in chosen_groups(graph, keep, only)}
    branches = protect_branches(graph, keep).residual_branches if limits.whole_branches else ()
    may_go = {branch.reader for branch in branches}
    gone = [np.empty(0, np.int64)]
    for branch in removed_branches(graph.residual_branches, plan.keep):
        if branch.reader not in may_go:
            raise UsageError(
                f"the plan removes the branch that ends with {branch.reader!r}, which the options forbid",
                hint="edit the plan, or choose channels anew without --plan",
            )
        gone.append(branch.units)
    for group in graph.groups:
        size, removed = len(group.units), int(np.count_nonzero(~plan.keep[group.units]))
        if removed and group.name not in free:
            raise UsageError(
                f"the plan removes channels of {group.name!r}, which --keep or --only leave alone",
                hint="edit the plan, or choose channels anew without --plan",
            )
        if removed not in limits.counts(size) and not np.isin(group.units, np.concatenate(gone)).all():
            raise UsageError(
                f"the plan removes {removed} of the {size} channels of {group.name!r}, "
                "which --round-to or --max-group-ratio forbid",
                hint="edit the plan, or choose channels anew without --plan",
            )


def protect_branches(graph: PruningGraph, keep: Sequence[str]) -> PruningGraph:
    """The graph as one where no residual branch with a node that matches ``keep`` can go as a whole."""
    if not keep:
        return graph
    free = (branch for branch in graph.residual_branches if not _matches(tuple(branch.nodes), keep))
    return replace(graph, residual_branches=tuple(free))


def rank(
    graph: PruningGraph,
    groups: list[Group],
    method: str,
    *,
    statistics: Mapping[str, LayerStatistics] | None = None,
    features: Mapping[str, npt.NDArray[np.float32]] | None = None,
    classes: IntArray | None = None,
    importance: Mapping[str, FloatArray] | None = None,
    depth_weight: float = 1.0,
    seed: int = 0,
) -> list[Ranking]:
    """Rank the units of every group by a method.

    The lasso methods, ``obs`` and ``wanda`` need ``statistics``; with ``features`` and ``classes``
    given, the lasso's data term is the kernel one (HSIC), else the contribution one. ``taylor`` needs
    the ``importance`` of each group's units, by name. ``depth_weight`` is that of `LassoSettings`.
    """
    if method in STATISTICS_METHODS and statistics is None:
        raise UsageError(f"{method} needs statistics of the data", hint="profile the model first")
    if method not in PRICED_METHODS or statistics is None:
        return score_rankings(graph, groups, method, seed, statistics=statistics, importance=importance)
    if method == "obs":
        return elimination_rankings(groups, statistics, depth_weight=depth_weight)
    classwise = method != "lasso-ib"
    if features is not None and classes is not None:
        terms = {
            name: _kernel_term(values, classes, classwise=classwise) for name, values in features.items()
        }
    else:
        terms = contribution_terms(groups, statistics, classwise=classwise, depth_weight=depth_weight)
    return lasso_rankings(groups, statistics, terms, LassoSettings(method, depth_weight=depth_weight))


def plan_within(
    graph: PruningGraph, rankings: Sequence[Ranking], goals: Sequence[Goal], limits: Limits, method: str
) -> Plan:
    """The plan that meets every goal: by price of loss where losses compare, else the same share."""
    even = method not in PRICED_METHODS
    return (allocate_evenly if even else allocate)(graph, rankings, goals, limits)


def _kernel_term(features: npt.NDArray[np.float32], classes: IntArray, *, classwise: bool) -> QuadraticTerm:
    sums = hsic_statistics(features, classes, int(classes.max()) + 1, block=HSIC_BLOCK)
    return sums.classwise() if classwise else sums.pooled()


def _matches(names: Sequence[str], globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)
