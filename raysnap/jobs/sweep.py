"""A sweep, from a space to rows: points sampled from one seed, bases they start from, trials compared by one metric.

Its trials run as those of a generate job do. What differs: what the trials vary, how they may be stopped early, and
which weights are kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raysnap.config.choices import Role, Status
from raysnap.config.sweep import SweepConfig
from raysnap.datasets.layout.account import Account
from raysnap.jobs.bases import make_bases
from raysnap.jobs.collect import planned_row
from raysnap.jobs.data import JobData, prepare_data
from raysnap.jobs.job import Job
from raysnap.jobs.memory import Memory
from raysnap.jobs.stage import Stage, record_outcome, run_stage
from raysnap.jobs.summary import failures_of, renamed_in
from raysnap.planning.generate import TrialsPlan
from raysnap.planning.optuna_study import Study
from raysnap.planning.points import Point, point_trial
from raysnap.planning.sweep import plan_sweep
from raysnap.progress import OnProgress, ignore_progress
from raysnap.runs.json_fields import read_rows
from raysnap.runs.run_lock import RunLock
from raysnap.runs.trial_rows import TrialRow, merit_order
from raysnap.store.records import SearchedFrom
from raysnap.training.trial import Trial
from raysnap.tune.options import MakeSuggestions, Suggestions, TrialOutcome
from raysnap.tune.schedulers import seeded_generators, tune_options


@dataclass(frozen=True)
class SweepSummary:
    """What a sweep left behind.

    Attributes:
        num_trials: the fine-tunes, and the bases that were trained.
        num_done: trained to their end, early stopping by `patience` included.
        num_stopped: ended by the scheduler or the time budget.
        num_left: not started within the time budget.
        snapshots: the ids of all it has in the store.
        data: what was read of each dataset and what was not.
        best: `trial`, `point`, `objective`, `metrics` and `snapshot` of the best one; None where none is done.
        renamed: the names, by trial, of snapshots whose trial's id was the name of another snapshot of the store.
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
    renamed: dict[str, str] = field(default_factory=dict)
    data: tuple[Account, ...] = ()


def sweep(
    config: SweepConfig,
    *,
    plan: TrialsPlan | None = None,
    resume: bool = False,
    lock: RunLock | None = None,
    searched: Mapping[str, SearchedFrom] | None = None,
    on_progress: OnProgress = ignore_progress,
) -> SweepSummary:
    """Run a sweep on the Ray that is up.

    >>> job = raysnap.SweepConfig(
    ...     architectures=["mobilenet_v3_small"], datasets=["shapes-shape-a"], image_size=32,
    ...     shapes={"image_size": 36, "num_train": 16, "num_val": 8, "num_test": 8}, train={"epochs": 1},
    ...     space={"train.lr": {"loguniform": [0.01, 0.1]}}, store="swept", run_dir="runs/swept",
    ... )
    >>> summary = raysnap.sweep(job)
    >>> summary.num_done, list(summary.best["point"])
    (1, ['train.lr'])

    Args:
        plan: what `plan_sweep(config)` returned; planned here where it is None.
        lock: what holds the run directory for the caller; taken here where it is None.
        searched: what a search said of the snapshots that trials start from, by their ids; for the store's records.

    Raises:
        RaysnapError: the job can't be started; trials that fail are rows, not errors.
        KeyboardInterrupt: Tune was stopped before every trial had ended.
    """
    plan = plan or plan_sweep(config)
    with Job.open(config, plan, resume=resume, on_progress=on_progress, lock=lock, metric=config.metric) as job:
        before = [Trial.model_validate(row) for row in read_rows(job.run_dir.path / "trials.jsonl")]
        if config.search_algorithm == "random" or not before:
            job.run_dir.write_trials([*plan.bases, *([] if config.search_algorithm == "optuna" else plan.trials)])
        job.write_env(is_over=False)
        with job.clock.stage("data"):
            data = prepare_data(job)
        job.write_env(is_over=False, data=data.accounts)
        with job.clock.stage("base"):
            bases = make_bases(job, data)
        with job.clock.stage("trials"), seeded_generators(config.seed) if config.scheduler == "pbt" else nullcontext():
            planned = [trial for trial in before if trial.role != Role.BASE]
            _run_trials(config, job, data, bases, planned, searched or {})
        job.write_env(is_over=True, data=data.accounts)
        return _summarise(config, job, data.accounts)


def _run_trials(
    config: SweepConfig,
    job: Job,
    data: JobData,
    bases: dict[str, str | None],
    before: list[Trial],
    searched: Mapping[str, SearchedFrom],
) -> None:
    """Run the sweep's trials; `before` are those that an earlier run of it planned."""
    recorder = _SweepRecorder(config, Memory(job, data, bases, searched))
    trials, suggestions = job.plan.trials, None
    if config.search_algorithm == "optuna":
        trials, suggestions = before, _suggestions_maker(config, job, before)
    stage = Stage("trials", trials, bases, config.resources, tune_options(config, trials, suggestions))
    try:
        run_stage(job, data, stage, recorder.record)
    finally:
        recorder.record_best()


class _SweepRecorder:
    """Records a sweep's trials, and stores the snapshots that `keep` asks for.

    With `keep: best` the best trial so far is held back: its row is written once it is beaten, or when the sweep ends.
    A driver that is killed before that finds the trial's checkpoint on `--resume`.
    """

    def __init__(self, config: SweepConfig, memory: Memory):
        self._config = config
        self._memory = memory
        self._best: tuple[TrialOutcome, Path] | None = None
        stored = [row for row in compared_rows(memory.job.run_dir.trial_rows()) if row.snapshot]
        self._best_rank = min((_rank_of(row, config) for row in stored), default=None)

    def record(self, outcome: TrialOutcome, ray_dir: Path) -> TrialRow:
        """Record a trial, or hold it back as the best so far; return its row."""
        if self._config.keep != "best" or outcome.savepoint is None:
            return self._write(outcome, ray_dir, is_stored=self._config.keep == "all")
        metrics = outcome.savepoint.record["metrics"]
        is_max = self._config.mode == "max"
        found = merit_order(metrics[self._config.metric], metrics, outcome.trial.id, is_max=is_max)
        if self._best_rank is not None and found >= self._best_rank:
            return self._write(outcome, ray_dir, is_stored=False)
        self._write_held(is_stored=False)
        self._best, self._best_rank = (replace(outcome, ended_s=time.monotonic()), ray_dir), found
        return replace(planned_row(outcome.trial, outcome.status), metrics=metrics)

    def record_best(self) -> None:
        """Write the row of the trial that is held back, and store its snapshot."""
        self._write_held(is_stored=True)

    def _write_held(self, *, is_stored: bool) -> None:
        held, self._best = self._best, None  # an interrupt may come as soon as the row is written
        if held is not None:
            self._write(*held, is_stored=is_stored)

    def _write(self, outcome: TrialOutcome, ray_dir: Path, *, is_stored: bool) -> TrialRow:
        is_cleaned = self._config.scheduler != "pbt"
        return record_outcome(self._memory, outcome, ray_dir, is_stored=is_stored, is_cleaned=is_cleaned)


def _rank_of(row: TrialRow, config: SweepConfig) -> tuple[float, float, str]:
    assert row.objective is not None  # of a compared row
    return merit_order(row.objective, row.metrics, row.trial, is_max=config.mode == "max")


def compared_rows(rows: list[TrialRow]) -> list[TrialRow]:
    """Return the rows of fine-tunes that were trained to their end and have an objective."""
    return [row for row in rows if row.role != Role.BASE and row.is_done and row.objective is not None]


def _suggestions_maker(config: SweepConfig, job: Job, before: list[Trial]) -> MakeSuggestions:
    """Return what makes Optuna's suggestions, which know the results of the trials before."""
    base = job.plan.bases[0]

    def make_trial(point: Point, number: int) -> Trial:
        trial, _ = point_trial(config, point, number, config.num_samples)
        return trial.model_copy(update={"base": base.base_key})

    def make_suggestions() -> Suggestions:
        compared = compared_rows(job.run_dir.trial_rows())
        objectives = {row.trial: row.objective for row in compared if row.objective is not None}
        study = Study(config, config.num_samples, make_trial, before, objectives)

        def suggest() -> Trial | None:
            trial = study.suggest()
            if trial is not None:
                job.run_dir.add_trial(trial)
            return trial

        return Suggestions(config.metric, suggest, study.tell)

    return make_suggestions


def _summarise(config: SweepConfig, job: Job, data: tuple[Account, ...]) -> SweepSummary:
    rows, plan = job.run_dir.trial_rows(), job.plan
    num_bases = sum(trial.dataset is not None for trial in plan.bases)
    num_trials = num_bases + (config.num_samples if config.search_algorithm == "optuna" else len(plan.trials))
    failures = failures_of(rows)
    best = min(compared_rows(rows), key=lambda row: _rank_of(row, config), default=None)
    shown = ("trial", "point", "objective", "metrics", "snapshot")
    return SweepSummary(
        run_dir=str(job.run_dir.path),
        num_trials=num_trials,
        num_done=sum(row.is_done for row in rows),
        num_stopped=sum(row.status == Status.STOPPED for row in rows),
        num_failed=len(failures),
        num_left=num_trials - len(rows),
        metric=config.metric,
        snapshots=[row.snapshot for row in rows if row.snapshot],
        best={key: getattr(best, key) for key in shown} if best else None,
        failures=failures,
        renamed=renamed_in(rows),
        data=data,
    )
