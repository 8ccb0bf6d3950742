"""Fine-tunes on Ray: Tune gives each trial its actor, Train's TorchTrainer runs the loop in it or in a worker group.

With `num_workers: 0` the trainer is in local mode: the fine-tune runs in the trial's own process, which Tune gave the
GPU and reuses from trial to trial. With more, each trial's actor drives a group of Train workers, which get the GPUs.
What goes wrong inside a fine-tune becomes the trial's result, so that neither the actor nor the other trials suffer. A
process that dies is restarted by Tune, and the trial continues from its latest savepoint.

Tune keeps what it knows of every trial until its experiment ends. A long list therefore runs as several experiments,
one after the other, so that neither memory nor Tune's files grow with the list.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.trainable import wrap_function

from raysnap.cluster.waiting import told_waits
from raysnap.config.choices import Status
from raysnap.config.parts import ResourcesConfig
from raysnap.errors import ClusterError, describe_failure
from raysnap.training.savepoints import Savepoint, keep_only, latest_savepoint
from raysnap.training.trial import Trial
from raysnap.training.trial_loop import TrainJob
from raysnap.tune.driver import MISPLACED, train_driver_fn
from raysnap.tune.memory_kills import taken_as_deaths
from raysnap.tune.options import RUN_ALL, TrialOutcome, TuneOptions
from raysnap.tune.resources import DRIVER_RESOURCES
from raysnap.tune.schedulers import QueueOrder
from raysnap.tune.searcher import TrialFeed
from raysnap.tune.slots import Share, Slots
from raysnap.tune.tracker_callback import TrackerCallback
from raysnap.tune.trackers import EventFiles, Tracker

MIN_TRIALS, TRIALS_PER_SLOT = 500, 50
"""Of one experiment: at its end slots wait for its last trial, and processes start again."""

MAX_MISPLACED = 3
"""Trials that fail because their node doesn't see the job's folders, before the job ends."""

TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # its tables come in spite of `verbose=0`, and count trials that are never drawn
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # four files per trial that say what its row and event file say
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that diverged reports that, without the metric
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # for a restore that is never used: rows say what is done
}


def run_trials(
    trials: list[Trial],
    job: TrainJob,
    resources: ResourcesConfig,
    ray_dir: Path,
    *,
    on_end: Callable[[TrialOutcome], None],
    on_epoch: Callable[[Trial, dict[str, Any]], None],
    on_checkpoint: Callable[[str, Path], None] = lambda trial, path: None,
    trackers: Sequence[Tracker] = (),
    options: TuneOptions = RUN_ALL,
) -> None:
    """Run the trials on the Ray that is up, and call back in this process as each one ends.

    A trial continues from the latest savepoint in its folder of `ray_dir`.

    Args:
        trials: the trials to run; the options may suggest further ones.
        ray_dir: folder for the trials' event files and checkpoints; on a cluster one that all nodes share.
        on_end: called once per trial that ended; a trial without a call was interrupted, or never started within the
            time budget.
        on_checkpoint: called with a trial's id and the folder of its latest checkpoint, which the next one removes.
        trackers: what records the trials in addition to the event files in `ray_dir`.

    Raises:
        ClusterError: the cluster has no room for a trial and may never get it, or several trials met the same node that
            doesn't see the job's folders or whose GPU can't be used.
        KeyboardInterrupt: the process was interrupted.
    """
    ray_dir = ray_dir.resolve()
    slots = Slots(resources, options.measured)
    slots.check(trials)
    trainable = _trainable(job, resources.num_workers, slots.packs_gpus, ray_dir, copies_weights=options.copies_weights)
    feed = TrialFeed(trials, slots, options.suggestions() if options.suggestions else None)
    put_back = None if options.copies_weights else feed.put_back
    driver_callback = _DriverCallback(
        ray_dir, trials, options, slots, on_end, on_epoch, on_checkpoint, put_back, resources.max_failures
    )
    tracker_callback = TrackerCallback([EventFiles(ray_dir), *trackers])
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)  # it misses the files that no logger writes

    def run_experiment(space: dict[str, Any], **search: Any) -> None:
        left_s = driver_callback.left_s()
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                trial_name_creator=_given_id,
                trial_dirname_creator=_given_id,
                scheduler=options.scheduler or QueueOrder(),
                time_budget_s=None if left_s == math.inf else left_s,
                **search,
            ),
            run_config=tune.RunConfig(
                name=ray_dir.name,
                storage_path=str(ray_dir.parent),
                callbacks=[driver_callback, tracker_callback],
                failure_config=tune.FailureConfig(max_failures=resources.max_failures),
                verbose=0,
            ),
        )
        tuner.fit()

    _delete_state(ray_dir)

    def waiting_shares() -> list[Share]:
        return slots.taken if resources.num_workers or not driver_callback.num_running else []

    with taken_as_deaths(), told_waits("a trial", waiting_shares):
        if options.copies_weights:  # Tune has to know a whole population at once
            whole = tune.grid_search([trial.model_dump(mode="json") for trial in trials])
            space = {"trial": whole, "share": slots.largest_share(trials)}
            run_experiment(space, max_concurrent_trials=resources.max_concurrent)
            _delete_state(ray_dir)
        else:
            while feed.has_next() and not feed.num_running and driver_callback.left_s() > 0:
                num_trials, num_before = max(MIN_TRIALS, TRIALS_PER_SLOT * slots.num), feed.num_given
                run_experiment({}, search_alg=feed, num_samples=num_trials, max_concurrent_trials=num_trials)
                _delete_state(ray_dir)
                if not feed.is_exhausted and feed.num_given - num_before < num_trials:
                    break  # an interrupt came between two trials, of which Tune says nothing
    driver_callback.end_out_of_time()


def _trainable(job: TrainJob, num_workers: int, packs_gpus: bool, ray_dir: Path, *, copies_weights: bool) -> Any:
    """Return Tune's trainable, whose processes Ray's dashboard shows by the name of the job's run and stage."""
    run_driver = tune.with_parameters(
        train_driver_fn,
        job=job,
        num_workers=num_workers,
        ray_dir=ray_dir,
        copies_weights=copies_weights,
        packs_gpus=packs_gpus,
    )
    bundle = partial(_bundle, is_driver=num_workers > 0)
    trainable = wrap_function(tune.with_resources(run_driver, bundle), name=f"{ray_dir.parents[1].name}-{ray_dir.name}")
    trainable.__name__ = trainable.__qualname__ = "RaysnapTrial"
    return trainable


def _bundle(config: Mapping[str, Any], *, is_driver: bool) -> tune.PlacementGroupFactory:
    """Return what Ray reserves for the actor of a trial: its share, or next to nothing where it drives a group."""
    return tune.PlacementGroupFactory([DRIVER_RESOURCES if is_driver else config["share"]])


def _delete_state(ray_dir: Path) -> None:
    """Delete what Tune writes of a whole experiment, which nothing reads."""
    for path in ray_dir.glob("*"):
        if path.is_file():
            path.unlink()


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
        options: TuneOptions,
        slots: Slots,
        on_end: Callable[[TrialOutcome], None],
        on_epoch: Callable[[Trial, dict[str, Any]], None],
        on_checkpoint: Callable[[str, Path], None],
        put_back: Callable[[Trial], None] | None,
        max_failures: int,
    ):
        self._ray_dir = ray_dir
        self._planned = {trial.id: trial for trial in trials}
        self._keeps_checkpoints = options.copies_weights
        self._slots = slots
        self._until_s = math.inf if options.time_budget_s is None else time.monotonic() + options.time_budget_s
        self._on_end = on_end
        self._on_epoch = on_epoch
        self._on_checkpoint = on_checkpoint
        self._put_back = put_back
        self._left_to_put_back: dict[str, int] = defaultdict(lambda: max_failures)
        self._recovered: set[str] = set()
        self._started_s: dict[str, float] = {}
        self._history: dict[str, list[dict[str, Any]]] = {}
        self._running: dict[str, Any] = {}
        self._num_misplaced: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:  # noqa: ARG002
        """End the job if a node fails one trial after the other, as it would soon have failed them all."""
        for error, num_trials in self._num_misplaced.items():
            if num_trials >= MAX_MISPLACED:
                raise ClusterError(f"{num_trials} trials ended where they can't run: {error}; then --resume")

    @property
    def num_running(self) -> int:
        return len(self._running)

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._started_s.setdefault(_trial_id(trial), time.monotonic())
        self._recovered.discard(_trial_id(trial))
        self._running[_trial_id(trial)] = trial

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:  # noqa: ARG002
        if "epoch" in result:
            self._history.setdefault(_trial_id(trial), []).append(_entry(result))
            self._slots.learn(self._trial(trial), result.get("gpu_peak_bytes"), result.get("gpu_bytes"))
            self._on_epoch(self._trial(trial), result)

    def on_checkpoint(self, iteration: int, trials: list, trial: Any, checkpoint: Any, **info: Any) -> None:  # noqa: ARG002
        """Delete a trial's older checkpoints; where Tune does it, it rewrites its whole state each time."""
        if not self._keeps_checkpoints:
            keep_only(self._ray_dir / _trial_id(trial), Path(checkpoint.path).name)
        self._on_checkpoint(_trial_id(trial), Path(checkpoint.path))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        result = trial.last_result or {}
        savepoint = latest_savepoint(self._ray_dir / _trial_id(trial)) if result.get("status") == Status.DONE else None
        if savepoint is not None and savepoint.is_final:
            self._end(trial, savepoint, Status.DONE, None)
        elif self._slots.gives_more(trial.config["share"], result):
            self._history.pop(_trial_id(trial), None)
            shutil.rmtree(trial.local_path, ignore_errors=True)  # else Tune names the folder of its next start anew
        elif result.get("error"):
            self._end(trial, None, Status(result["status"]), result["error"])
            self._num_misplaced[result["error"]] += bool(result.get(MISPLACED))
        elif "epoch" in result and "status" not in result:
            stopped = "scheduler" if self.left_s() else "time_budget"
            self._end(trial, None, Status.STOPPED, None, stopped)
        else:
            self._end(trial, None, Status.FAILED, "the trial ended without a whole checkpoint")

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._recovered.add(_trial_id(trial))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """End the trial, unless Tune counted one death twice, as it does if a process dies between two trials."""
        name = _trial_id(trial)
        if self._put_back is not None and name in self._recovered and self._left_to_put_back[name] > 0:
            self._left_to_put_back[name] -= 1
            shutil.rmtree(trial.local_path, ignore_errors=True)  # else Tune gives the trial a folder of another name
            self._put_back(self._trial(trial))
            return
        self._end(trial, None, Status.FAILED, f"its process died: {_cause_of_death(trial)}")

    def left_s(self) -> float:
        """Return how many seconds of the time budget are left; infinitely many without one."""
        return max(0.0, self._until_s - time.monotonic())

    def end_out_of_time(self) -> None:
        """End the trials that Tune stopped without calling back, as it does when the time budget is used up."""
        if not self.left_s():
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
        self._recovered.discard(name)
        history = tuple(self._history.pop(name, ()))
        result = trial.last_result or {}
        self._on_end(
            TrialOutcome(
                self._trial(trial),
                savepoint,
                status,
                error,
                self._started_s.pop(name, None),
                stopped,
                history,
                gpu_share=trial.config["share"]["GPU"] or None,
                gpu_peak_bytes=result.get("gpu_peak_bytes"),
                gpu_bytes=result.get("gpu_bytes"),
            )
        )


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
