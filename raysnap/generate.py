"""A population of fine-tuned snapshots: sample the trials, run them on Ray, collect what they leave into the store.

Everything is checked before the first write; every trial that ends is a row at once, so that a driver that dies loses
only what was still running, and `resume` runs only what no row calls done.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raysnap.anatomy import num_body_blocks
from raysnap.bases import store_base
from raysnap.collect import collect, trial_row
from raysnap.config import GenerateConfig, ResourcesConfig
from raysnap.data import Dataset, open_dataset
from raysnap.errors import RaysnapError
from raysnap.population import RANDOM, GeneratePlan, plan_generate
from raysnap.prefix_plan import plan_trials
from raysnap.progress import OnProgress
from raysnap.runs import RunDirectory, check_run_dir, utc_timestamp
from raysnap.savepoints import drop_all, keep_newest
from raysnap.store import Store
from raysnap.trackers import make_trackers
from raysnap.trainer import TrialOutcome, gpus_per_worker, run_trials, widen
from raysnap.training import TrainJob, labelled_splits
from raysnap.trials import Trial, slug

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerateSummary:
    """What a generate job left behind; `snapshots` are the ids of all it made, bases included."""

    run_dir: str
    num_trials: int
    num_done: int
    num_failed: int
    snapshots: list[str]
    failures: list[dict[str, str]]


def generate(config: GenerateConfig, *, resume: bool = False, on_progress: OnProgress) -> GenerateSummary:
    """Runs a generate job on the Ray that is up.

    Raises:
        RaysnapError: the job can't be started; trials that fail are rows, not errors.
        KeyboardInterrupt: Tune was stopped before every trial had ended.
    """
    plan = plan_generate(config)
    check_run_dir(config, config.run_dir, resume=resume)
    store = Store.open(config.store, create=True)
    run = RunDirectory.open(config, config.run_dir, resume=resume)
    job = _Job(config, plan, store, run, on_progress)
    run.write_trials([*plan.bases, *plan.trials])
    run.write_env(config.seed, job.started, None, {})
    with job.stage("data"):
        job.prepare_data()
    with job.stage("base"):
        bases = job.make_bases()
    with job.stage("trials"):
        job.run(plan.trials, bases, "trials", config.resources)
    run.write_env(config.seed, job.started, time.perf_counter() - job.started_s, job.stages_s)
    return _summarise(run, plan)


class _Job:
    """What the stages of one generate job share."""

    def __init__(
        self, config: GenerateConfig, plan: GeneratePlan, store: Store, run: RunDirectory, on_progress: OnProgress
    ):
        self.config = config
        self.plan = plan
        self.store = store
        self.run_dir = run
        self.on_progress = on_progress
        self.started = utc_timestamp()
        self.started_s = time.perf_counter()
        self.stages_s: dict[str, float] = {}
        self.datasets: dict[str, Dataset] = {}
        self.num_items: dict[str, dict[str, int]] = {}

    @contextmanager
    def stage(self, name: str):
        """Times a stage of the job."""
        started = time.perf_counter()
        yield
        self.stages_s[name] = time.perf_counter() - started

    def prepare_data(self) -> None:
        """Draws the built-in datasets that are missing, and decodes all of them into the pixel cache."""
        config, names = self.config, list(self.plan.datasets)
        for number, name in enumerate(names):
            self.on_progress("data", number, len(names), slug(name))
            self.datasets[name] = open_dataset(name, config.data_dir, config.shapes)
            splits = labelled_splits(self.datasets[name], self._train_job({}))
            self.num_items[name] = {split: len(items.labels) for split, items in splits.items()}
        self.on_progress("data", len(names), len(names), "decoded")

    def make_bases(self) -> dict[str, str | None]:
        """The snapshot that each architecture's fine-tunes start from; trained first where the job says so.

        An architecture whose base could not be trained has none.
        """
        weights, pretraining = self.config.base.weights, self.config.base.pretraining
        num_classes = len(self.datasets[self.config.datasets[0]].classes)
        bases: dict[str, str | None] = {}
        for trial in self.plan.bases:
            is_drawn_in_trial = weights == RANDOM and pretraining is not None
            bases[trial.architecture] = (
                None
                if is_drawn_in_trial
                else store_base(
                    self.store, weights, trial.architecture, num_classes, trial.seed, self.plan.preprocessing
                )
            )
        if pretraining is None:
            return bases
        self.run(self.plan.bases, bases, "base", widen(self.config.resources, len(self.plan.bases)))
        made = {row["trial"]: row["snapshot"] for row in _last_rows(self.run_dir)}
        return {trial.architecture: made[trial.id] for trial in self.plan.bases if made.get(trial.id)}

    def run(self, trials: list[Trial], bases: dict[str, str | None], stage: str, resources: ResourcesConfig) -> None:
        """Runs the trials that no row calls done and collects each one as it ends."""
        ray_dir = self.config.run_dir / "ray" / stage
        ended: set[str] = set()

        def on_end(outcome: TrialOutcome) -> None:
            row = self._add_row(outcome, ray_dir)
            ended.add(outcome.trial.id)
            accuracy = row["metrics"].get("val_accuracy")
            note = outcome.trial.id + (
                f" {row['status']}: {row['error']}" if accuracy is None else f" val {accuracy:.3f}"
            )
            num_epochs = outcome.trial.train.epochs
            self.on_progress(f"{stage}/{outcome.trial.id}", num_epochs, num_epochs, "")
            self.on_progress(stage, len(ended), len(trials), note)

        def on_epoch(trial: Trial, epoch: dict[str, Any]) -> None:
            note = f"val {epoch['val_accuracy']:.3f}"
            self.on_progress(f"{stage}/{trial.id}", epoch["epoch"], trial.train.epochs, note)

        unfinished = self._without_done(trials, ray_dir)
        ended |= {trial.id for trial in trials} - {trial.id for trial in unfinished}
        waiting = []
        for trial in unfinished:
            savepoint = keep_newest(ray_dir / trial.id)
            if trial.architecture not in bases:
                on_end(TrialOutcome(trial, None, "failed", f"the base of {trial.architecture} failed"))
            elif savepoint is not None and savepoint.is_final:
                on_end(TrialOutcome(trial, savepoint, "done", None))  # the last driver died before its row
            else:
                waiting.append(trial)
        self.on_progress(stage, len(ended), len(trials), "")
        if waiting:
            job = replace(self._train_job(bases), prefix_depths=self._plan_prefixes(trials, resources))
            trackers = make_trackers(self.config.trackers, self.config.run_dir)
            run_trials(waiting, job, resources, ray_dir, on_end=on_end, on_epoch=on_epoch, trackers=trackers)
        if len(ended) < len(trials):
            raise KeyboardInterrupt

    def _plan_prefixes(self, trials: list[Trial], resources: ResourcesConfig) -> dict[str, int]:
        """How deep frozen blocks are cached for each trial; finished ones count too, so that a resumed run agrees."""
        config = self.config
        is_half = config.train.precision in ("bfloat16", "float16")
        is_half |= config.train.precision == "auto" and gpus_per_worker(resources) > 0
        return plan_trials(
            trials, config.image_size, self.num_items, config.prefix_cache_bytes, element_bytes=2 if is_half else 4
        )

    def _without_done(self, trials: list[Trial], ray_dir: Path) -> list[Trial]:
        """The trials that no row calls done; what the others left on the disk is deleted."""
        done = {row["trial"] for row in _last_rows(self.run_dir) if row["status"] == "done"}
        for trial in trials:
            if trial.id in done:
                drop_all(ray_dir / trial.id)
        return [trial for trial in trials if trial.id not in done]

    def _add_row(self, outcome: TrialOutcome, ray_dir: Path) -> dict[str, Any]:
        num_blocks = num_body_blocks(outcome.trial.architecture)
        try:
            row = collect(self.store, outcome, self.plan.preprocessing, num_blocks)
        except (RaysnapError, OSError) as error:
            row = trial_row(outcome.trial, num_blocks) | {"status": "failed", "error": f"not collected: {error}"}
        self.run_dir.add_row(row)
        if row["status"] == "done":
            drop_all(ray_dir / outcome.trial.id)  # the store holds every block of it now
        return row

    def _train_job(self, bases: dict[str, str | None]) -> TrainJob:
        config = self.config
        return TrainJob(
            store_dir=config.store.resolve(),
            dataset_dirs={name: dataset.root.resolve() for name, dataset in self.datasets.items()},
            bases=bases,
            preprocessing=self.plan.preprocessing,
            seed=config.seed,
            num_train=config.num_train,
            num_val=config.num_val,
            num_test=config.num_test,
            prefix_cache_bytes=config.prefix_cache_bytes,
        )


def _last_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """The newest row of each trial: a retry's row stands for the trial."""
    return list({row["trial"]: row for row in run.rows() if "trial" in row}.values())


def _summarise(run: RunDirectory, plan: GeneratePlan) -> GenerateSummary:
    planned = {trial.id for trial in [*plan.bases, *plan.trials] if trial.dataset}
    rows = [row for row in _last_rows(run) if row["trial"] in planned]
    failures = [{"trial": row["trial"], "error": row["error"]} for row in rows if row["status"] != "done"]
    return GenerateSummary(
        run_dir=str(run.path),
        num_trials=len(planned),
        num_done=len(rows) - len(failures),
        num_failed=len(failures),
        snapshots=[row["snapshot"] for row in rows if row["snapshot"]],
        failures=failures,
    )
