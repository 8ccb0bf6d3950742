"""One stage of a job: trials run side by side on Ray, each recorded as a row at once.

A driver that dies loses only what was still running, and a resumed job runs only trials without a final row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from raysnap.config.choices import Role, Status
from raysnap.config.parts import ResourcesConfig
from raysnap.errors import RaysnapError
from raysnap.jobs.collect import collect, planned_row
from raysnap.jobs.data import JobData, make_train_job
from raysnap.jobs.job import Job
from raysnap.jobs.memory import Memory
from raysnap.planning.gpu_memory import TrainingItems, peak_bytes
from raysnap.runs.trial_rows import TrialRow
from raysnap.training.evaluation import keep_predictions
from raysnap.training.prefix_plan import plan_trials
from raysnap.training.savepoints import delete_checkpoints, keep_latest
from raysnap.training.trial import Trial
from raysnap.tune.options import RUN_ALL, MeasuredTrial, TrialOutcome, TuneOptions
from raysnap.tune.resources import gpus_per_worker
from raysnap.tune.run_trials import run_trials
from raysnap.tune.trackers import make_trackers

Record = Callable[[TrialOutcome, Path], TrialRow]
"""Takes how a trial ended and the folder of its stage's checkpoints; returns its row, written now or later."""


@dataclass(frozen=True)
class Stage:
    """Trials that run side by side.

    Attributes:
        name: of the stage's progress bar, and of the folder for its checkpoints.
        bases: the snapshot that trials start from, by their `base_key`; a trial whose base is missing fails.
        options: what Tune does other than run every trial to its end.
    """

    name: str
    trials: list[Trial]
    bases: Mapping[str, str | None]
    resources: ResourcesConfig
    options: TuneOptions = RUN_ALL


def run_stage(job: Job, data: JobData, stage: Stage, record: Record | None = None) -> None:
    """Run the stage's trials that have no final row, and record each one as it ends.

    Args:
        record: how a trial is recorded; `record_outcome` where it is None.

    Raises:
        KeyboardInterrupt: Tune was stopped before every trial had ended, and not because its time was over.
    """
    record = record or partial(record_outcome, Memory(job, data, stage.bases))
    ray_dir = job.config.run_dir / "ray" / stage.name
    unfinished = _unfinished_trials(job, stage, ray_dir)
    progress = _StageProgress(job, stage, {trial.id for trial in stage.trials} - {trial.id for trial in unfinished})

    def on_end(outcome: TrialOutcome) -> None:
        if outcome.gpu_share is not None:
            outcome = replace(outcome, gpu_forecast_bytes=_forecast_bytes(job, data, stage, outcome))
        progress.show_end(outcome.trial, record(outcome, ray_dir))

    waiting = []
    for trial in unfinished:
        outcome = _outcome_without_running(trial, stage, ray_dir)
        if outcome is None:
            waiting.append(trial)
        else:
            on_end(outcome)
    progress.show()
    started_s = time.monotonic()
    if progress.num_left:
        run_trials(
            waiting,
            make_train_job(job, data.datasets, stage.bases, _plan_prefixes(job, data, stage)),
            stage.resources,
            ray_dir,
            on_end=on_end,
            on_epoch=progress.show_epoch,
            on_checkpoint=partial(job.run_dir.keep_checkpoint, stage.name),
            trackers=make_trackers(job.config.trackers, job.config.run_dir),
            options=replace(stage.options, num_trials=progress.num_left, measured=_measured_trials(job, stage)),
        )
    _unfinished_trials(job, stage, ray_dir)
    budget_s = stage.options.time_budget_s
    is_out_of_time = budget_s is not None and time.monotonic() - started_s >= budget_s
    if progress.num_left and not is_out_of_time:
        raise KeyboardInterrupt


def record_outcome(
    memory: Memory, outcome: TrialOutcome, ray_dir: Path, *, is_stored: bool = True, is_cleaned: bool = True
) -> TrialRow:
    """Write a trial's record and row and, where it is to be stored, its snapshot; delete its checkpoints.

    The row is last: a driver that dies before it is written finds the checkpoint again, and repeats the others.

    Args:
        memory: of the job and the stage that the trial belongs to.
        is_cleaned: false where other trials may still need the checkpoints; they are deleted when the stage is over.
    """
    job, trial = memory.job, outcome.trial
    try:
        row = collect(job.store if is_stored else None, outcome, job.plan.preprocessing_of(trial))
        if job.metric is not None:
            row = _compared(job, job.metric, outcome, row)
        memory.keep(trial, row)
    except (RaysnapError, OSError) as error:
        row = planned_row(trial, Status.FAILED, f"not collected: {error}")
    job.run_dir.add_row(row.as_json())
    if row.is_final:
        job.run_dir.keep_checkpoint(ray_dir.name, trial.id, None)
    if is_cleaned and row.is_final:
        delete_checkpoints(ray_dir / trial.id)  # the store has every block of it that is wanted
    return row


def _compared(job: Job, metric: str, outcome: TrialOutcome, row: TrialRow) -> TrialRow:
    """Return the row with what a sweep adds: the objective, and where the test predictions are."""
    row = replace(row, is_compared=True)
    if row.role == Role.BASE:
        return row
    predictions = None
    if row.snapshot is not None and outcome.savepoint is not None:
        predictions = keep_predictions(outcome.savepoint.path, job.run_dir.path, row.trial)
    return replace(row, objective=row.metrics.get(metric), predictions=predictions)


def _unfinished_trials(job: Job, stage: Stage, ray_dir: Path) -> list[Trial]:
    """Return the trials without a final row; delete the checkpoints of the others."""
    final = {row.trial for row in job.run_dir.trial_rows() if row.is_final}
    for trial in stage.trials:
        if trial.id in final:
            delete_checkpoints(ray_dir / trial.id)
    return [trial for trial in stage.trials if trial.id not in final]


def _measured_trials(job: Job, stage: Stage) -> list[MeasuredTrial]:
    """Return the trials whose rows say how much of a GPU's memory they took; none where nothing is packed by it."""
    if not stage.resources.pack_gpus:
        return []
    planned = {trial.id: trial for trial in [*job.plan.bases, *stage.trials]}
    return [
        MeasuredTrial(planned[row.trial], row.gpu_peak_bytes, row.gpu_bytes)
        for row in job.run_dir.trial_rows()
        if row.trial in planned and row.gpu_peak_bytes and row.gpu_bytes
    ]


def _forecast_bytes(job: Job, data: JobData, stage: Stage, outcome: TrialOutcome) -> int:
    """Return what a trial was to take of its GPU's memory; with the batch size that it had in the end."""
    trial = outcome.trial
    if outcome.savepoint is not None:
        train = trial.train.model_copy(update={"batch_size": outcome.savepoint.record["batch_size"]})
        trial = trial.model_copy(update={"train": train})
    items = TrainingItems(len(data.datasets[trial.trained_on].classes), data.num_items[trial.trained_on])
    return peak_bytes(trial, job.config.image_size, items, stage.resources.num_workers)


def _outcome_without_running(trial: Trial, stage: Stage, ray_dir: Path) -> TrialOutcome | None:
    """Return the outcome of a trial that need not run; None of one that waits, with its latest checkpoint kept."""
    savepoint = keep_latest(ray_dir / trial.id)
    if trial.base_key not in stage.bases:
        return TrialOutcome(trial, None, Status.FAILED, f"its base {trial.base_key} failed")
    if savepoint is not None and savepoint.is_final:
        return TrialOutcome(trial, savepoint, Status.DONE, None)  # the last driver died before its row
    return None


def _plan_prefixes(job: Job, data: JobData, stage: Stage) -> dict[str, int]:
    """Return how deep frozen blocks are cached for each trial; finished ones count, so that a resumed run agrees."""
    config = job.config
    is_half = config.train.precision in ("bfloat16", "float16")
    is_half |= config.train.precision == "auto" and gpus_per_worker(stage.resources) > 0
    element_bytes = 2 if is_half else 4
    return plan_trials(
        stage.trials, config.image_size, data.num_items, config.prefix_cache_bytes, element_bytes=element_bytes
    )


@dataclass
class _StageProgress:
    """What the bars show of a stage: how many trials have ended, and the epoch of each that runs."""

    job: Job
    stage: Stage
    ended: set[str] = field(default_factory=set)

    @property
    def num_trials(self) -> int:
        return self.stage.options.num_trials or len(self.stage.trials)

    @property
    def num_left(self) -> int:
        return self.num_trials - len(self.ended)

    def show(self, note: str = "") -> None:
        self.job.on_progress(self.stage.name, len(self.ended), self.num_trials, note)

    def show_epoch(self, trial: Trial, epoch: Mapping[str, Any]) -> None:
        note = f"val {epoch['val_accuracy']:.3f}"
        self.job.on_progress(f"{self.stage.name}/{trial.id}", epoch["epoch"], trial.train.epochs, note)

    def show_end(self, trial: Trial, row: TrialRow) -> None:
        self.ended.add(trial.id)
        why = f": {row.error}" if row.error else ""
        shown = f" {row.status}{why}" if row.val_accuracy is None else f" val {row.val_accuracy:.3f}"
        num_epochs = trial.train.epochs
        self.job.on_progress(f"{self.stage.name}/{trial.id}", num_epochs, num_epochs, "")
        is_cut = row.status == Status.STOPPED and row.val_accuracy is not None
        self.show(trial.id + shown + (" stopped" if is_cut else ""))
