"""A sweep, from a space to rows: points sampled from one seed, bases they start from, trials compared by one metric.

The trials run as those of a generate job do; what is a sweep's own is what they differ in, who may end them early, and
whose weights are kept.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from raysnap.config.sweep import SweepConfig
from raysnap.jobs.job import ENDED, Job, last_rows
from raysnap.planning.generate import TrialsPlan
from raysnap.planning.optuna_study import Study
from raysnap.planning.points import Point, point_trial
from raysnap.planning.sweep import plan_sweep
from raysnap.progress import OnProgress
from raysnap.runs.rows import read_rows
from raysnap.runs.run_directory import RunDirectory, check_run_dir
from raysnap.store.store import Store
from raysnap.training.trial import Trial
from raysnap.tune.options import MakeSearcher, TrialOutcome
from raysnap.tune.schedulers import seeded_chance, steer
from raysnap.tune.searcher import Asking


@dataclass(frozen=True)
class SweepSummary:
    """What a sweep left behind.

    Attributes:
        num_trials: the fine-tunes, and the bases that were trained.
        num_done: trained to their end, early stopping by `patience` included.
        num_stopped: ended by the scheduler or the time budget.
        num_left: not begun within the time budget.
        snapshots: the ids of all it has in the store.
        best: `trial`, `point`, `objective`, `metrics` and `snapshot` of the best one; None where none is done.
    """

    run_dir: str
    num_trials: int
    num_done: int
    num_stopped: int
    num_failed: int
    num_left: int
    metric: str
    snapshots: list[str]
    best: dict[str, Any] | None
    failures: list[dict[str, str]] = field(default_factory=list)


def sweep(config: SweepConfig, *, resume: bool = False, on_progress: OnProgress) -> SweepSummary:
    """Runs a sweep on the Ray that is up.

    Raises:
        RaysnapError: the job can't be started; trials that fail are rows, not errors.
        KeyboardInterrupt: Tune was stopped before every trial had ended.
    """
    plan = plan_sweep(config)
    check_run_dir(config, config.run_dir, resume=resume)
    store = Store.open(config.store, create=True)
    run = RunDirectory.open(config, config.run_dir, resume=resume)
    job = Job(config, plan, store, run, on_progress, metric=config.metric)
    before = [Trial.model_validate(row) for row in read_rows(run.path / "trials.jsonl")]
    if config.search_algorithm == "random" or not before:
        run.write_trials([*plan.bases, *([] if config.search_algorithm == "optuna" else plan.trials)])
    run.write_env(config.seed, job.started, None, {})
    with job.stage("data"):
        job.prepare_data()
    with job.stage("base"):
        bases = job.make_bases()
    with job.stage("trials"), seeded_chance(config.seed) if config.scheduler == "pbt" else nullcontext():
        _run_trials(config, job, bases, [trial for trial in before if trial.role != "base"])
    run.write_env(config.seed, job.started, time.perf_counter() - job.started_s, job.stages_s)
    return _summarise(config, run, plan)


def _run_trials(config: SweepConfig, job: Job, bases: dict[str, str | None], before: list[Trial]) -> None:
    """Runs the sweep's trials; `before` are those that an earlier run of it was told."""
    keeper = _Keeper(config, job)
    trials, searcher = job.plan.trials, None
    if config.search_algorithm == "optuna":
        trials, searcher = before, _make_searcher(config, job, before)
    try:
        job.run(
            trials,
            bases,
            "trials",
            config.resources,
            steering=steer(config, trials, searcher),
            settle=keeper.settle,
        )
    finally:
        keeper.finish()


class _Keeper:
    """Settles a sweep's trials so that the store gets whose snapshots it is to have.

    Of `keep: best` the best so far is held back: its row is written when it is beaten, or when the sweep ends. A
    driver that is killed meanwhile finds its checkpoint again.
    """

    def __init__(self, config: SweepConfig, job: Job):
        self._config = config
        self._settle = partial(job.settle, drops=config.scheduler != "pbt")
        self._best: tuple[TrialOutcome, Path] | None = None
        stored = [row for row in compared_rows(last_rows(job.run_dir)) if row["snapshot"]]
        self._least = min((rank(row["objective"], row["trial"], config) for row in stored), default=None)

    def settle(self, outcome: TrialOutcome, ray_dir: Path) -> dict[str, Any]:
        """What there is to say of a trial that ended."""
        if self._config.keep != "best" or outcome.savepoint is None:
            return self._settle(outcome, ray_dir, stores=self._config.keep == "all")
        ranked = self._rank(outcome)
        if self._least is not None and ranked >= self._least:
            return self._settle(outcome, ray_dir, stores=False)
        if self._best is not None:
            self._settle(*self._best, stores=False)
        self._best, self._least = (replace(outcome, ended_s=time.monotonic()), ray_dir), ranked
        return {"status": outcome.status, "metrics": outcome.savepoint.record["metrics"], "error": None}

    def finish(self) -> None:
        """Stores the best, if it is one of this run."""
        if self._best is not None:
            self._settle(*self._best)
            self._best = None

    def _rank(self, outcome: TrialOutcome) -> tuple[float, str]:
        return rank(outcome.savepoint.record["metrics"][self._config.metric], outcome.trial.id, self._config)


def rank(objective: float, trial_id: str, config: SweepConfig) -> tuple[float, str]:
    """What the best trial has the least of: better objectives first, then earlier trials."""
    return (-objective if config.mode == "max" else objective), trial_id


def compared_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of fine-tunes that were trained to their end."""
    return [row for row in rows if row["role"] != "base" and row["status"] == "done" and "objective" in row]


def _make_searcher(config: SweepConfig, job: Job, before: list[Trial]) -> MakeSearcher:
    """What makes a searcher that Optuna leads, which knows all that came of the trials before."""
    base = job.plan.bases[0]

    def make(point: Point, number: int) -> Trial:
        trial, _ = point_trial(config, point, number, config.num_samples)
        return trial.model_copy(update={"base": base.base_key})

    def make_searcher(waiting: list[Trial]) -> Asking:
        came_to = {row["trial"]: row["objective"] for row in compared_rows(last_rows(job.run_dir))}
        study = Study(config, config.num_samples, make, before, came_to)

        def suggest() -> Trial | None:
            trial = study.suggest()
            job.run_dir.write_trials([*job.plan.bases, *study.trials])
            return trial

        return Asking(config.metric, config.mode, waiting, suggest, study.tell)

    return make_searcher


def _summarise(config: SweepConfig, run: RunDirectory, plan: TrialsPlan) -> SweepSummary:
    rows = last_rows(run)
    num_bases = sum(trial.dataset is not None for trial in plan.bases)
    num_trials = num_bases + (config.num_samples if config.search_algorithm == "optuna" else len(plan.trials))
    failures = [{"trial": row["trial"], "error": row["error"]} for row in rows if row["status"] not in ENDED]
    done = [row for row in rows if row["status"] == "done"]
    best = min(compared_rows(rows), key=lambda row: rank(row["objective"], row["trial"], config), default=None)
    told = ("trial", "point", "objective", "metrics", "snapshot")
    return SweepSummary(
        run_dir=str(run.path),
        num_trials=num_trials,
        num_done=len(done),
        num_stopped=sum(row["status"] == "stopped" for row in rows),
        num_failed=len(failures),
        num_left=num_trials - len(rows),
        metric=config.metric,
        snapshots=[row["snapshot"] for row in rows if row["snapshot"]],
        best={key: best[key] for key in told} if best else None,
        failures=failures,
    )
