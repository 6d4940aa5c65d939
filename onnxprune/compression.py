"""One compression under way: from the rankings to a plan, and from the plan to a finished model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from onnxprune.calibration import Calibration, labelled
from onnxprune.candidate import Candidate, keep_start, kept_start, run_digest
from onnxprune.config import MAX_GROUP_RATIO, CompressConfig
from onnxprune.depth import closest, depth_weights
from onnxprune.errors import BudgetError, UsageError
from onnxprune.evaluate.gates import drop_gate
from onnxprune.evaluate.metrics import Evaluation, divergences, evaluate_against, predict
from onnxprune.goals import SEARCH_STEPS, Original, macs_goal, plan_for, require_budgets
from onnxprune.graph.check import verify
from onnxprune.graph.plan import Plan
from onnxprune.graph.rewrite import rewrite
from onnxprune.graph.structure import PruningGraph
from onnxprune.io.load import LoadedModel
from onnxprune.io.share import united
from onnxprune.profile.cost import CostModel
from onnxprune.profile.features import collect_features
from onnxprune.profile.gradients import collect_importance
from onnxprune.profile.providers import algebra_device
from onnxprune.profile.session import Session, open_session
from onnxprune.profile.statistics import collect_statistics
from onnxprune.progress import Progress
from onnxprune.recover.closed_form import recover
from onnxprune.recover.executor.weights import trainable_weights
from onnxprune.recover.finetune import FinetuneSettings, check_trainable, finetune
from onnxprune.recover.training.distill import residual_joins
from onnxprune.recover.training.processes import is_main_process, join_processes
from onnxprune.report.schema import ClassStructure
from onnxprune.select.allocate import CostGoal, Limits, Ranking
from onnxprune.select.rankings import LASSO_METHODS, PRICED_METHODS, STATISTICS_METHODS
from onnxprune.select.select import plan_within, protect_branches, prunable_groups, rank, require_choices
from onnxprune.sensitivity import class_structure

Rankings = dict[float, list[Ranking]]
"""Every group's ranking, by the weight of depth that its losses have."""


class Clock:
    """Seconds spent in each stage, by name."""

    def __init__(self) -> None:
        """Nothing was done yet."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add what the block takes to the stage ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Run:
    """One compression under way."""

    config: CompressConfig
    source: LoadedModel
    graph: PruningGraph
    original: Original
    data: Calibration
    progress: Progress
    clock: Clock

    def best(self) -> Candidate:
        """The plan that was asked for and what it leads to, all budgets counted once more on that.

        With several processes, the first one decides and judges, since clocks and rounding differ.
        """
        config = self.config
        if config.recover == "finetune" and not self._only_plans:  # before minutes of work
            check_trainable(self.graph.model, config.provider, config.threads)
        chosen = self._finish(self._shared_start() if self.config.recover == "finetune" else self._start())
        if not self._decides:
            return chosen
        with self.clock("check"):
            latencies = require_budgets(self.graph, chosen.plan, chosen.model, self.config, self.original)
        return replace(chosen, latencies=latencies)

    @property
    def _decides(self) -> bool:
        """Whether this process judges: alone, or the first of those that fine-tune together."""
        return self.config.recover != "finetune" or is_main_process()

    def _start(self) -> Candidate:
        """The plan that was asked for and its model after recovery in closed form."""
        if self.config.plan is not None:
            return self._recovered(self._saved_plan(), needed=not self._only_plans)
        rankings, classes = self._rankings()
        within = self._within_budgets if self.config.budgets else self._smallest_within_drop
        return replace(within(rankings), classes=classes)

    def _shared_start(self) -> Candidate:
        """The start of fine-tuning: the one kept beside a checkpoint, or a new one; the first process's."""
        processes = join_processes(algebra_device(self.data.provider))
        start = self._kept_or_new_start() if processes.main else None
        if processes.world == 1 and start is not None:
            return start
        model = processes.shared(b"" if start is None else start.model.SerializeToString())
        keep = processes.shared(b"" if start is None else start.plan.keep.tobytes())
        return start or Candidate(Plan(np.frombuffer(keep, np.bool_)), onnx.ModelProto.FromString(model), ())

    def _kept_or_new_start(self) -> Candidate:
        folder = self._checkpoint
        if folder is None:
            return self._start()
        run = run_digest(self.config, self.source.sha256, self._plan_text(), self.data)
        start = kept_start(folder, run)
        if start is None:
            start = self._start()
            keep_start(folder, start, run)
        elif self.config.verify:
            self._verify(start.plan, rewrite(self.graph, start.plan))
        return start

    @property
    def _checkpoint(self) -> Path | None:
        """Where fine-tuning is kept; a dry run writes nothing."""
        return None if self.config.dry_run else self.config.checkpoint

    def _plan_text(self) -> str:
        """The plan of the user's own as it was saved, empty where there is none."""
        path = self.config.plan
        try:
            return "" if path is None else path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"can't read the plan {path}: {error}", hint="--save-plan writes one") from error

    def _saved_plan(self) -> Plan:
        plan = Plan.from_json(self.graph, self._plan_text(), model_sha256=self.source.sha256)
        # Plans may go further than selection does by itself.
        require_choices(self.graph, plan, self.config.keep, self.config.only, self._limits(1.0))
        return plan

    def _rankings(self) -> tuple[Rankings, ClassStructure | None]:
        """The ranking of every group, and the classes' structure where the method looks at classes."""
        config, data = self.config, self.data
        if config.data_term != "contribution" and config.method not in LASSO_METHODS:
            raise UsageError(
                f"--data-term is of no use with --method {config.method}",
                hint=f"it is what these fit: {', '.join(LASSO_METHODS)}",
            )
        check_weighed(config)
        groups = prunable_groups(self.graph, config.keep, config.only)
        if config.method == "taylor":
            with self.clock("profile"):
                importance = collect_importance(
                    self.graph, groups, data.samples,
                    provider=config.provider, threads=config.threads, progress=self.progress,
                )  # fmt: skip
            return {1.0: rank(self.graph, groups, config.method, importance=importance)}, None
        if config.method not in STATISTICS_METHODS:
            return {1.0: rank(self.graph, groups, config.method, seed=config.seed)}, None
        with self.clock("profile"):
            statistics = collect_statistics(
                self.graph, data.samples, data.classes,
                provider=config.provider, threads=config.threads, seed=config.seed, progress=self.progress,
            )  # fmt: skip
            features = None
            if config.data_term == "hsic" and config.method in LASSO_METHODS:
                features = collect_features(
                    self.graph, groups, data.samples,
                    provider=config.provider, threads=config.threads, progress=self.progress,
                )  # fmt: skip
        with self.clock("select"):
            rankings = {
                weight: rank(
                    self.graph, groups, config.method,
                    statistics=statistics, features=features, classes=data.classes,
                    depth_weight=weight, seed=config.seed,
                )
                for weight in depth_weights(self.graph, config, len(data.samples))
            }  # fmt: skip
        return rankings, class_structure(statistics, data.names)

    def _allocate(self, rankings: list[Ranking], goals: tuple[CostGoal, ...]) -> Plan:
        graph = protect_branches(self.graph, self.config.keep)
        return plan_within(graph, rankings, goals, self._limits(MAX_GROUP_RATIO), self.config.method)

    def _limits(self, otherwise: float) -> Limits:
        """What a plan must respect; ``otherwise`` is the ratio of each group that may go if none is given."""
        given = self.config.max_group_ratio
        ratio = otherwise if given is None else given
        return Limits(self.config.round_to, ratio, whole_branches=ratio == 1.0)

    def _within_budgets(self, rankings: Rankings) -> Candidate:
        def planned(ranking: list[Ranking]) -> Plan:
            with self.clock("plan"):
                return plan_for(
                    self.graph, self.config, self.original, lambda goals: self._allocate(ranking, goals)
                )

        return self._closest(rankings, planned)

    def _closest(self, rankings: Rankings, planned: Callable[[list[Ranking]], Plan]) -> Candidate:
        """Recover the plan of each ranking, and take the one that stays closest to the original."""
        plans: dict[float, Plan] = {}
        failed: BudgetError | None = None
        for weight, ranking in rankings.items():
            try:
                plan = planned(ranking)
            except BudgetError as error:
                failed = error
                continue
            if not any(np.array_equal(plan.keep, other.keep) for other in plans.values()):
                plans[weight] = plan
        if failed is not None and not plans:
            raise failed
        if len(plans) == 1:
            ((weight, plan),) = plans.items()
            return replace(self._recovered(plan, needed=not self._only_plans), depth_weight=weight)
        tried = [replace(self._recovered(plan), depth_weight=weight) for weight, plan in plans.items()]
        with self.clock("compare"):
            scores = [predict(self._opened(entry.model), self.data.samples) for entry in tried]
            return tried[closest([divergences(entry, self.data.scores) for entry in scores])]

    @property
    def _only_plans(self) -> bool:
        """Whether nobody asks what the model is worth."""
        return self.config.dry_run and self.config.max_drop is None

    def _finish(self, candidate: Candidate, *, tune: bool = True) -> Candidate:
        """Fine-tune and evaluate; BudgetError where ``max_drop`` is exceeded.

        Without ``tune``, fine-tuning is left out.
        """
        if self._only_plans:
            return candidate
        if tune and self.config.recover == "finetune":
            candidate = self._tuned(candidate)
        if not self._decides:
            return candidate
        if candidate.evaluation is None:
            candidate = replace(candidate, evaluation=self._evaluation(candidate.model))
        if self.config.max_drop is not None:
            if candidate.evaluation is None:
                raise BudgetError("--max-drop needs data to measure accuracy on", hint="give --eval-data")
            drop_gate(candidate.evaluation, self.config.max_drop).require()
        return candidate

    def _recovered(self, plan: Plan, *, needed: bool = True) -> Candidate:
        """Rewrite, verify and, where it is ``needed``, recover in closed form."""
        with self.clock("rewrite"):
            pruned = rewrite(self.graph, plan)
        if self.config.verify:
            self._verify(plan, pruned)
        if not needed or self.config.recover == "none" or plan.keep.all():
            return Candidate(plan, pruned, ())
        with self.clock("recover"):
            recovery = recover(
                self.graph, plan, pruned, self.data.samples.arrays().inputs,
                batch=self.data.batch, provider=self.config.provider, threads=self.config.threads,
                # A new bias would go past a budget that the plan just meets.
                new_bias=not (self.config.budget("params") or self.config.budget("size")),
                seed=self.config.seed, progress=self.progress,
            )  # fmt: skip
        return Candidate(plan, recovery.model, recovery.fits)

    def _verify(self, plan: Plan, pruned: onnx.ModelProto) -> None:
        with self.clock("verify"):
            verify(self.graph, plan, pruned, seed=self.config.seed)

    def _tuned(self, start: Candidate) -> Candidate:
        config = self.config
        if start.plan.keep.all():
            return start
        settings = FinetuneSettings(epochs=config.epochs, time_limit_s=config.time_limit, lr=config.lr)
        # What is shared is trained as one; statistics that equal a weight stay apart from it.
        student = united(start.model, trainable_weights(start.model))
        with self.clock("fine-tune"):
            tuning = finetune(
                self.graph.model, student, self.data.training.in_memory(), settings,
                joins=residual_joins(self.graph, start.plan), checkpoint=self._checkpoint,
                provider=config.provider, threads=config.threads, seed=config.seed, progress=self.progress,
            )  # fmt: skip
        return replace(start, model=tuning.model, tuning=tuning, evaluation=None)

    def _evaluation(self, model: onnx.ModelProto) -> Evaluation | None:
        if self.data.evaluation is None:
            return None
        with self.clock("evaluate"):
            reference, session = self._opened(self.source.model), self._opened(model)
            judged = labelled(self.data.evaluation, reference, self.progress)
            return evaluate_against(session, reference, judged, progress=self.progress)

    def _opened(self, model: onnx.ModelProto) -> Session:
        return open_session(model, provider=self.config.provider, threads=self.config.threads)

    def _smallest_within_drop(self, rankings: Rankings) -> Candidate:
        """Bisect on the share of MACs for the smallest model that loses at most ``max_drop`` points.

        Candidates are recovered in closed form; fine-tuning is for the one that is chosen.
        """
        costs = CostModel.of(self.graph)

        def tried(share: float) -> Candidate:
            goals = (macs_goal(costs, share),)
            return self._finish(
                self._closest(rankings, lambda ranking: self._allocate(ranking, goals)), tune=False
            )

        best: Candidate | None = None
        low, high = 0.0, 1.0
        for _ in range(SEARCH_STEPS):
            share = 0.5 * (low + high)
            try:
                best, high = tried(share), share
            except BudgetError:
                low = share
        if best is None:
            raise BudgetError(
                f"nothing could be removed within --max-drop {self.config.max_drop:g}",
                hint="allow more points, or give more calibration data",
            )
        return best


def check_weighed(config: CompressConfig) -> None:
    """Raise UsageError where a weight of depth is stated and the method has no losses to weigh."""
    if config.depth_weight not in ("auto", 1.0) and config.method not in PRICED_METHODS:
        raise UsageError(
            f"--depth-weight is of no use with --method {config.method}",
            hint=f"it weighs losses, which these have: {', '.join(PRICED_METHODS)}",
        )
