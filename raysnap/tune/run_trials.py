"""Fine-tunes on Ray: Tune gives each trial its actor, Train's TorchTrainer runs the loop in it or in a worker group.

With `num_workers: 0` the trainer is in local mode: the fine-tune runs in the trial's own process, which Tune gave the
GPU and reuses from trial to trial. With more, each trial's actor drives a group of Train workers, which get the GPUs.
What goes wrong inside a fine-tune becomes the trial's result, so that neither the actor nor the other trials suffer. A
process that dies is restarted by Tune, and the trial continues from its latest savepoint.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune

from raysnap.config.choices import Status
from raysnap.config.parts import ResourcesConfig
from raysnap.errors import describe_failure
from raysnap.training.savepoints import Savepoint, latest_savepoint
from raysnap.training.trial import Trial
from raysnap.training.trial_loop import TrainJob
from raysnap.tune.driver import train_driver_fn
from raysnap.tune.options import RUN_ALL, TrialOutcome, TuneOptions
from raysnap.tune.resources import DRIVER_RESOURCES, gpus_per_worker, num_groups
from raysnap.tune.tracker_callback import TrackerCallback
from raysnap.tune.trackers import EventFiles, Tracker


def run_trials(
    trials: list[Trial],
    job: TrainJob,
    resources: ResourcesConfig,
    ray_dir: Path,
    *,
    on_end: Callable[[TrialOutcome], None],
    on_epoch: Callable[[Trial, dict[str, Any]], None],
    trackers: Sequence[Tracker] = (),
    options: TuneOptions = RUN_ALL,
) -> None:
    """Run the trials on the Ray that is up, and call back in this process as each one ends.

    A trial continues from the latest savepoint in its folder of `ray_dir`.

    Args:
        trials: the trials to run; a searcher suggests further ones.
        ray_dir: folder for Ray's own result files and the checkpoints; on a cluster one that all nodes share.
        on_end: called once per trial that ended; a trial without a call was interrupted, or never started within the
            time budget.
        trackers: what records the trials in addition to the event files in `ray_dir`.

    Raises:
        KeyboardInterrupt: the process was interrupted.
    """
    ray_dir = ray_dir.resolve()
    each = {"CPU": resources.cpus, "GPU": gpus_per_worker(resources)}
    trainable = tune.with_parameters(
        train_driver_fn,
        job=job,
        num_workers=resources.num_workers,
        each=each,
        ray_dir=ray_dir,
        copies_weights=options.copies_weights,
    )
    at_once = num_groups(resources, each) if resources.num_workers else resources.max_concurrent
    driver_callback = _DriverCallback(ray_dir, trials, options.time_budget_s, on_end, on_epoch)
    space = {"trial": tune.grid_search([trial.model_dump(mode="json") for trial in trials])}
    tuner = tune.Tuner(
        tune.with_resources(trainable, DRIVER_RESOURCES if resources.num_workers else each),
        param_space=space if options.searcher is None else {},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=at_once,
            trial_name_creator=_given_id,
            trial_dirname_creator=_given_id,
            scheduler=options.scheduler,
            search_alg=options.searcher(trials) if options.searcher else None,
            num_samples=1 if options.searcher is None else options.num_trials,
            time_budget_s=options.time_budget_s,
        ),
        run_config=tune.RunConfig(
            name=ray_dir.name,
            storage_path=str(ray_dir.parent),
            callbacks=[driver_callback, TrackerCallback([EventFiles(ray_dir), *trackers])],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=None if options.copies_weights else 1),
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
            verbose=0,
        ),
    )
    # A trial that diverged or ran out of memory reports that, without the metric that a scheduler compares.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    tuner.fit()
    driver_callback.end_out_of_time()


def _given_id(tune_trial: Any) -> str:
    return tune_trial.config["trial"]["id"]


def _trial_id(tune_trial: Any) -> str:
    """Return a trial's id, which it keeps when it takes over another's configuration."""
    return str(tune_trial)


class _DriverCallback(tune.Callback):
    """Calls the driver's `on_epoch` and `on_end` as Tune gets a trial's results.

    Tune pickles its callbacks for its own restore; this one is empty there, as it is of no use in another process.
    """

    def __init__(
        self,
        ray_dir: Path,
        trials: list[Trial],
        time_budget_s: float | None,
        on_end: Callable[[TrialOutcome], None],
        on_epoch: Callable[[Trial, dict[str, Any]], None],
    ):
        self._ray_dir = ray_dir
        self._planned = {trial.id: trial for trial in trials}
        self._until_s = math.inf if time_budget_s is None else time.monotonic() + time_budget_s
        self._on_end = on_end
        self._on_epoch = on_epoch
        self._started_s: dict[str, float] = {}
        self._history: dict[str, list[dict[str, Any]]] = {}
        self._running: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._started_s.setdefault(_trial_id(trial), time.monotonic())
        self._running[_trial_id(trial)] = trial

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:  # noqa: ARG002
        if "epoch" in result:
            self._history.setdefault(_trial_id(trial), []).append(_entry(result))
            self._on_epoch(self._trial(trial), result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        result = trial.last_result or {}
        savepoint = latest_savepoint(self._ray_dir / _trial_id(trial)) if result.get("status") == Status.DONE else None
        if savepoint is not None and savepoint.is_final:
            self._end(trial, savepoint, Status.DONE, None)
        elif result.get("error"):
            self._end(trial, None, Status(result["status"]), result["error"])
        elif "epoch" in result and "status" not in result:
            stopped = "time_budget" if time.monotonic() >= self._until_s else "scheduler"
            self._end(trial, None, Status.STOPPED, None, stopped)
        else:
            self._end(trial, None, Status.FAILED, "the trial ended without a whole checkpoint")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._end(trial, None, Status.FAILED, f"its process died: {_cause_of_death(trial)}")

    def end_out_of_time(self) -> None:
        """End the trials that Tune stopped without calling back, as it does when the time budget is used up."""
        if time.monotonic() >= self._until_s:
            for trial in list(self._running.values()):
                self._end(trial, None, Status.STOPPED, None, "time_budget")

    def _trial(self, tune_trial: Any) -> Trial:
        """Return the planned trial with the settings that it trains with now."""
        found = Trial.model_validate(tune_trial.config["trial"])
        planned = self._planned.get(_trial_id(tune_trial))
        return found if planned is None else planned.model_copy(update={"train": found.train})

    def _end(
        self, trial: Any, savepoint: Savepoint | None, status: Status, error: str | None, stopped: str | None = None
    ) -> None:
        name = _trial_id(trial)
        self._running.pop(name, None)
        history = tuple(self._history.get(name, ()))
        outcome = TrialOutcome(
            self._trial(trial), savepoint, status, error, self._started_s.get(name), stopped, history
        )
        self._on_end(outcome)


def _entry(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a trial reported of an epoch, without what Tune adds."""
    own = ("epoch", "train_loss", "lr", "epoch_s")
    return {name: value for name, value in result.items() if name in own or name.startswith("val_")}


def _cause_of_death(tune_trial: Any) -> str:
    """Return in one line why Tune gave up a trial."""
    try:
        error = cloudpickle.loads(Path(tune_trial.pickled_error_file).read_bytes())
    except (TypeError, OSError):
        return "no reason was recorded"
    return describe_failure(getattr(error, "cause", None) or error)
