"""What jobs that fine-tune have in common: data, bases, trials on Ray, and what they leave collected into the store.

Every trial that ends is a row at once, so that a driver that dies loses only what was still running; a job that goes on
runs only what no row calls ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysnap.config.jobs import FinetuneConfig
from raysnap.config.parts import ResourcesConfig
from raysnap.datasets.dataset import Dataset, open_dataset
from raysnap.errors import RaysnapError
from raysnap.jobs.bases import store_base
from raysnap.jobs.collect import collect, trial_row
from raysnap.models.block_facts import num_body_blocks
from raysnap.planning.generate import RANDOM, TrialsPlan
from raysnap.progress import OnProgress
from raysnap.runs.run_directory import RunDirectory
from raysnap.store.manifest import Preprocessing
from raysnap.store.store import Store
from raysnap.system import utc_timestamp
from raysnap.training.prediction_files import keep_predictions
from raysnap.training.prefix_plan import plan_trials
from raysnap.training.savepoints import drop_all, keep_newest
from raysnap.training.trial import Trial, slug
from raysnap.training.trial_loop import TrainJob, labelled_splits
from raysnap.tune.options import FIFO, Steering, TrialOutcome
from raysnap.tune.resources import gpus_per_worker, widen
from raysnap.tune.run_trials import run_trials
from raysnap.tune.trackers import make_trackers

ENDED = ("done", "stopped")
"""How trials end that did not fail."""


Settle = Callable[[TrialOutcome, Path], dict[str, Any]]


class Job:
    """What the stages of one job share.

    Args:
        metric: what a sweep compares its trials by, which adds to their rows; None elsewhere.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        plan: TrialsPlan,
        store: Store,
        run: RunDirectory,
        on_progress: OnProgress,
        metric: str | None = None,
    ):
        self.config = config
        self.plan = plan
        self.store = store
        self.run_dir = run
        self.on_progress = on_progress
        self.metric = metric
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
            for preprocessing in self._seen_as(name):
                splits = labelled_splits(self.datasets[name], self._train_job({}), preprocessing)
                self.num_items[name] = {split: len(items.labels) for split, items in splits.items()}
        self.on_progress("data", len(names), len(names), "decoded")

    def _seen_as(self, dataset: str) -> list[Preprocessing]:
        """The ways in which trials see a dataset's images."""
        job = self._train_job({})
        trials = [trial for trial in [*self.plan.bases, *self.plan.trials] if trial.dataset == dataset]
        return list(dict.fromkeys(job.preprocessing_of(trial) for trial in trials))

    def make_bases(self) -> dict[str, str | None]:
        """The snapshot that fine-tunes start from, by their `base_key`; trained first where the job says so.

        A base that could not be trained is missing.
        """
        first = next(trial.dataset for trial in [*self.plan.trials, *self.plan.bases] if trial.dataset)
        num_classes = len(self.datasets[first].classes)
        bases: dict[str, str | None] = {}
        for trial in self.plan.bases:
            weights = self.plan.weights[trial.base_key]
            is_drawn_in_trial = weights == RANDOM and trial.dataset is not None
            bases[trial.base_key] = (
                None
                if is_drawn_in_trial
                else store_base(
                    self.store, weights, trial.architecture, num_classes, trial.seed, self._preprocessing(trial)
                )
            )
        trained = [trial for trial in self.plan.bases if trial.dataset]
        if not trained:
            return bases
        self.run(trained, bases, "base", widen(self.config.resources, len(trained)))
        made = {row["trial"]: row["snapshot"] for row in last_rows(self.run_dir)}
        untrained = {key: base for key, base in bases.items() if key not in {trial.base_key for trial in trained}}
        return untrained | {trial.base_key: made[trial.id] for trial in trained if made.get(trial.id)}

    def run(
        self,
        trials: list[Trial],
        bases: dict[str, str | None],
        stage: str,
        resources: ResourcesConfig,
        *,
        steering: Steering = FIFO,
        settle: Settle | None = None,
    ) -> None:
        """Runs the trials that no row calls ended, and settles each one as it ends.

        Args:
            settle: gives a trial's row, perhaps to be written later; `settle` of the job where it is None.

        Raises:
            KeyboardInterrupt: Tune was stopped before every trial had ended, and not because its time was over.
        """
        settle = settle or self.settle
        ray_dir = self.config.run_dir / "ray" / stage
        ended: set[str] = set()
        num_all = steering.num_trials or len(trials)

        def on_end(outcome: TrialOutcome) -> None:
            row = settle(outcome, ray_dir)
            ended.add(outcome.trial.id)
            accuracy = row["metrics"].get("val_accuracy")
            told = f" {row['status']}: {row['error']}" if accuracy is None else f" val {accuracy:.3f}"
            note = outcome.trial.id + told + (" stopped" if row["status"] == "stopped" else "")
            num_epochs = outcome.trial.train.epochs
            self.on_progress(f"{stage}/{outcome.trial.id}", num_epochs, num_epochs, "")
            self.on_progress(stage, len(ended), num_all, note)

        def on_epoch(trial: Trial, epoch: dict[str, Any]) -> None:
            note = f"val {epoch['val_accuracy']:.3f}"
            self.on_progress(f"{stage}/{trial.id}", epoch["epoch"], trial.train.epochs, note)

        unfinished = self._without_ended(trials, ray_dir)
        ended |= {trial.id for trial in trials} - {trial.id for trial in unfinished}
        waiting = []
        for trial in unfinished:
            savepoint = keep_newest(ray_dir / trial.id)
            if trial.base_key not in bases:
                on_end(TrialOutcome(trial, None, "failed", f"its base {trial.base_key} failed"))
            elif savepoint is not None and savepoint.is_final:
                on_end(TrialOutcome(trial, savepoint, "done", None))  # the last driver died before its row
            else:
                waiting.append(trial)
        self.on_progress(stage, len(ended), num_all, "")
        started_s = time.monotonic()
        if len(ended) < num_all:
            left = replace(steering, num_trials=num_all - len(ended))
            job = replace(self._train_job(bases), prefix_depths=self._plan_prefixes(trials, resources))
            run_trials(
                waiting,
                job,
                resources,
                ray_dir,
                on_end=on_end,
                on_epoch=on_epoch,
                trackers=make_trackers(self.config.trackers, self.config.run_dir),
                steering=left,
            )
        self._without_ended(trials, ray_dir)
        budget_s = steering.time_budget_s
        is_out_of_time = budget_s is not None and time.monotonic() - started_s >= budget_s
        if len(ended) < num_all and not is_out_of_time:
            raise KeyboardInterrupt

    def settle(
        self, outcome: TrialOutcome, ray_dir: Path, *, stores: bool = True, drops: bool = True
    ) -> dict[str, Any]:
        """Writes a trial's row, its snapshot into the store if that is wanted, and lets go of its checkpoints.

        Args:
            drops: false where other trials may still need the checkpoints; they go when the job is done.
        """
        trial = outcome.trial
        num_blocks = num_body_blocks(trial.architecture)
        try:
            row = collect(self.store if stores else None, outcome, self._preprocessing(trial), num_blocks)
            row |= self._kept(outcome, row)
        except (RaysnapError, OSError) as error:
            row = trial_row(trial, num_blocks) | {"status": "failed", "error": f"not collected: {error}"}
        self.run_dir.add_row(row)
        if drops and is_over(row):
            drop_all(ray_dir / trial.id)  # the store holds every block of it now, if anybody wants them
        return row

    def _kept(self, outcome: TrialOutcome, row: dict[str, Any]) -> dict[str, Any]:
        """What a sweep's row says besides."""
        if self.metric is None:
            return {}
        if outcome.trial.role == "base":
            return {"objective": None, "predictions": None}
        is_kept = row["snapshot"] is not None and outcome.savepoint is not None
        predictions = keep_predictions(outcome.savepoint.path, self.run_dir.path, row["trial"]) if is_kept else None
        return {"objective": row["metrics"].get(self.metric), "predictions": predictions}

    def _preprocessing(self, trial: Trial) -> Preprocessing:
        return self._train_job({}).preprocessing_of(trial)

    def _plan_prefixes(self, trials: list[Trial], resources: ResourcesConfig) -> dict[str, int]:
        """How deep frozen blocks are cached for each trial; finished ones count too, so that a resumed run agrees."""
        config = self.config
        is_half = config.train.precision in ("bfloat16", "float16")
        is_half |= config.train.precision == "auto" and gpus_per_worker(resources) > 0
        return plan_trials(
            trials, config.image_size, self.num_items, config.prefix_cache_bytes, element_bytes=2 if is_half else 4
        )

    def _without_ended(self, trials: list[Trial], ray_dir: Path) -> list[Trial]:
        """The trials that are not over; what the others left on the disk is deleted."""
        over = {row["trial"] for row in last_rows(self.run_dir) if is_over(row)}
        for trial in trials:
            if trial.id in over:
                drop_all(ray_dir / trial.id)
        return [trial for trial in trials if trial.id not in over]

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
            keeps_predictions=self.metric is not None,
        )


def is_over(row: dict[str, Any]) -> bool:
    """Whether a resumed job leaves the row's trial as it is: not one that failed, or that only time ran out for."""
    return row["status"] in ENDED and row.get("stopped") != "time_budget"


def last_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """The newest row of each trial: a retry's row stands for the trial."""
    return list({row["trial"]: row for row in run.rows() if "trial" in row}.values())
