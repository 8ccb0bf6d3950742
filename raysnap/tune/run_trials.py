"""Fine-tunes on Ray: Tune gives each trial its actor, Train's TorchTrainer runs the loop in it or in a worker group.

With `num_workers: 0` the trainer is in local mode: the loop runs in the trial's own process, which Tune gave the GPU
and reuses from trial to trial. With more, each trial's actor drives a group of Train workers, which get the GPUs. What
goes wrong inside a fine-tune becomes the trial's result, so that neither the actor nor the other trials suffer; a
process that dies is Tune's to begin again, and the trial goes on from its newest savepoint.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import cloudpickle, train, tune
from ray.exceptions import RayError
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback

from raysnap.config.load import ResourcesConfig
from raysnap.errors import OutOfMemory, RaysnapError, TrainingDiverged, describe_failure
from raysnap.planning.sampling import Trial
from raysnap.training.savepoints import Savepoint, newest_savepoint, read_savepoint
from raysnap.training.trial_loop import TrainJob
from raysnap.training.trial_loop import train as train_loop
from raysnap.training.worker import Worker
from raysnap.tune.tracker_callback import Tracking
from raysnap.tune.trackers import EventFiles, Tracker

logger = logging.getLogger(__name__)

# A trial's actor that only drives a worker group must take something, and CPUs are what its workers wait for.
DRIVER_RESOURCES = {"memory": 1}

GROUP_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less per trial; a preempted worker is one that died
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # every report waits for it, 2 s by default
}


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended: with a savepoint to collect, or with an error and its kind.

    Attributes:
        trial: as it ended: `pbt` changes what a trial trains with.
        started_s: when Tune started it, on `time.monotonic`; None where another driver saw it start.
        stopped: what ended it before its time, of one that is `stopped`: `scheduler` or `time_budget`.
        history: the epochs that this driver saw of it.
        ended_s: when it ended, on the same clock, where its row is written later.
    """

    trial: Trial
    savepoint: Savepoint | None
    status: str
    error: str | None
    started_s: float | None = None
    stopped: str | None = None
    history: tuple[dict[str, Any], ...] = ()
    ended_s: float | None = None


MakeSearcher = Callable[[list[Trial]], Any]
"""Takes the trials that are waiting, gives a Tune searcher that makes them, and then others."""


@dataclass(frozen=True)
class Steering:
    """What Tune does besides running every trial that it is given to its end.

    Attributes:
        scheduler: a Tune scheduler; None runs all.
        searcher: makes a Tune searcher in place of a list of trials; None where the list is all.
        num_trials: how many the searcher makes.
        time_budget_s: after so many seconds what runs is stopped and what waits is left; None is no limit.
        breeds: whether a trial may go on with another's checkpoint, in place of its own newest.
    """

    scheduler: Any = None
    searcher: MakeSearcher | None = None
    num_trials: int = 0
    time_budget_s: float | None = None
    breeds: bool = False


FIFO = Steering()


def run_trials(
    trials: list[Trial],
    job: TrainJob,
    resources: ResourcesConfig,
    ray_dir: Path,
    *,
    on_end: Callable[[TrialOutcome], None],
    on_epoch: Callable[[Trial, dict[str, Any]], None],
    trackers: Sequence[Tracker] = (),
    steering: Steering = FIFO,
) -> None:
    """Runs the trials on the Ray that is up, and calls back in this process as each one ends.

    A trial goes on from the newest savepoint in its folder of `ray_dir`.

    Args:
        trials: what waits to be run; a searcher adds to it.
        ray_dir: folder for Ray's own result files and the checkpoints; on a cluster one that all nodes share.
        on_end: called once per trial that ended; a trial without a call was interrupted, or never began within the
            time budget.
        trackers: who is told of the trials besides the event files in `ray_dir`.

    Raises:
        KeyboardInterrupt: the process was told to end.
    """
    ray_dir = ray_dir.resolve()
    each = {"CPU": resources.cpus, "GPU": gpus_per_worker(resources)}
    trainable = tune.with_parameters(
        train_driver_fn,
        job=job,
        num_workers=resources.num_workers,
        each=each,
        ray_dir=ray_dir,
        breeds=steering.breeds,
    )
    at_once = _num_groups(resources, each) if resources.num_workers else resources.max_concurrent
    announcer = _Announcer(ray_dir, trials, steering.time_budget_s, on_end, on_epoch)
    space = {"trial": tune.grid_search([trial.model_dump(mode="json") for trial in trials])}
    tuner = tune.Tuner(
        tune.with_resources(trainable, DRIVER_RESOURCES if resources.num_workers else each),
        param_space=space if steering.searcher is None else {},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=at_once,
            trial_name_creator=_given_id,
            trial_dirname_creator=_given_id,
            scheduler=steering.scheduler,
            search_alg=steering.searcher(trials) if steering.searcher else None,
            num_samples=1 if steering.searcher is None else steering.num_trials,
            time_budget_s=steering.time_budget_s,
        ),
        run_config=tune.RunConfig(
            name=ray_dir.name,
            storage_path=str(ray_dir.parent),
            callbacks=[announcer, Tracking([EventFiles(ray_dir), *trackers])],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=None if steering.breeds else 1),
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
            verbose=0,
        ),
    )
    # A trial that diverged or ran out of memory reports that, and has no metric that a scheduler could go by.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    tuner.fit()
    announcer.end_out_of_time()


def gpus_per_worker(resources: ResourcesConfig) -> float:
    """The GPUs of each process that trains: as told, else one where the cluster has any."""
    if resources.gpus is not None:
        return resources.gpus
    return min(1.0, ray.cluster_resources().get("GPU", 0.0))


def widen(resources: ResourcesConfig, num_trials: int) -> ResourcesConfig:
    """The resources with so many CPUs per trial that `num_trials` trials fill a cluster that has no GPU."""
    available = ray.cluster_resources()
    if resources.gpus or resources.num_workers or available.get("GPU"):
        return resources
    share = available.get("CPU", 1.0) // num_trials
    return resources.model_copy(update={"cpus": max(resources.cpus, share)})


def _num_groups(resources: ResourcesConfig, each: dict[str, float]) -> int:
    """How many worker groups fit the cluster at once: Tune sees only their drivers and would start them all."""
    available = ray.cluster_resources()
    wanted = {name: amount * resources.num_workers for name, amount in each.items() if amount}
    fitting = min(int(available.get(name, 0.0) // amount) for name, amount in wanted.items())
    return max(1, min(fitting, resources.max_concurrent or fitting))


def _given_id(tune_trial: Any) -> str:
    return tune_trial.config["trial"]["id"]


def _trial_id(tune_trial: Any) -> str:
    """A trial's id, which it keeps when it takes over another's configuration."""
    return str(tune_trial)


class _Announcer(tune.Callback):
    """Tells the driver of each epoch and each end as Tune hears of it.

    Tune pickles its callbacks for a restore of its own; what is told here is of no use in another process.
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
        savepoint = newest_savepoint(self._ray_dir / _trial_id(trial)) if result.get("status") == "done" else None
        if savepoint is not None and savepoint.is_final:
            self._end(trial, savepoint, "done", None)
        elif result.get("error"):
            self._end(trial, None, result["status"], result["error"])
        elif "epoch" in result and "status" not in result:
            stopped = "time_budget" if time.monotonic() >= self._until_s else "scheduler"
            self._end(trial, None, "stopped", None, stopped)
        else:
            self._end(trial, None, "failed", "the trial ended without a whole checkpoint")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._end(trial, None, "failed", f"its process died: {_last_words(trial)}")

    def end_out_of_time(self) -> None:
        """Tells of the trials that Tune stopped without a word, which it does when their time is over."""
        if time.monotonic() >= self._until_s:
            for trial in list(self._running.values()):
                self._end(trial, None, "stopped", None, "time_budget")

    def _trial(self, tune_trial: Any) -> Trial:
        """The trial that was planned, with what it trains with now."""
        found = Trial.model_validate(tune_trial.config["trial"])
        planned = self._planned.get(_trial_id(tune_trial))
        return found if planned is None else planned.model_copy(update={"train": found.train})

    def _end(
        self, trial: Any, savepoint: Savepoint | None, status: str, error: str | None, stopped: str | None = None
    ) -> None:
        name = _trial_id(trial)
        self._running.pop(name, None)
        history = tuple(self._history.get(name, ()))
        outcome = TrialOutcome(
            self._trial(trial), savepoint, status, error, self._started_s.get(name), stopped, history
        )
        self._on_end(outcome)


def _entry(result: dict[str, Any]) -> dict[str, Any]:
    """What a trial said of an epoch, without what Tune adds."""
    own = ("epoch", "train_loss", "lr", "epoch_s")
    return {name: value for name, value in result.items() if name in own or name.startswith("val_")}


def _last_words(tune_trial: Any) -> str:
    """Why Tune gave a trial up, in one line."""
    try:
        error = cloudpickle.loads(Path(tune_trial.pickled_error_file).read_bytes())
    except (TypeError, OSError):
        return "no reason was recorded"
    return describe_failure(getattr(error, "cause", None) or error)


def train_driver_fn(
    config: dict[str, Any], job: TrainJob, num_workers: int, each: dict[str, float], ray_dir: Path, breeds: bool
) -> None:
    """One Tune trial: a TorchTrainer around the fine-tune, whose failure becomes the trial's result.

    Raises:
        RayError: a worker's process died; Tune begins the trial again.
    """
    trial = Trial.model_validate(config["trial"] | {"id": tune.get_context().get_trial_name()})
    given = tune.get_checkpoint() if breeds else None
    savepoint = read_savepoint(Path(given.path)) if given else newest_savepoint(ray_dir / trial.id)
    if savepoint is not None and savepoint.is_final:
        tune.report({"status": "done"})  # the process died after the last epoch, before Tune heard of it
        return
    launch = partial(_launch_group, num_workers, each, ray_dir) if num_workers else partial(_launch_here, each)
    try:
        with_less_memory(trial, savepoint, partial(launch, job))
    except RayError:
        raise
    except (OutOfMemory, torch.OutOfMemoryError, MemoryError) as error:
        tune.report({"status": "oom", "error": describe_failure(error)})
    except TrainingDiverged as error:
        tune.report({"status": "diverged", "error": str(error)})
    except Exception as error:  # noqa: BLE001 - a trial's failure is a row, whatever it was
        logger.debug("trial %s failed\n%s", trial.id, traceback.format_exc())
        tune.report({"status": "failed", "error": describe_failure(error)})
    finally:
        if torch.cuda.is_initialized():
            _release_memory()  # to those who share the GPU; on a CPU it would only cost time


def with_less_memory(trial: Trial, resume: Savepoint | None, launch: Callable[[Trial, Savepoint | None], None]) -> None:
    """Launches the trial, and once more from its beginning at half its batch size where memory was too small.

    Raises:
        OutOfMemory: memory was too small for half the batch size, too.
    """
    batch_size = resume.record["batch_size"] if resume else trial.train.batch_size
    try:
        launch(_with_batch_size(trial, batch_size), resume)
        return
    except OutOfMemory:
        if batch_size < trial.train.batch_size or batch_size == 1:
            raise
    # Only here, after the except block, are the error and the tensors in its frames let go.
    _release_memory()
    launch(_with_batch_size(trial, batch_size // 2), None)


def _with_batch_size(trial: Trial, batch_size: int) -> Trial:
    return trial.model_copy(update={"train": trial.train.model_copy(update={"batch_size": batch_size})})


def _release_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def _launch_here(each: dict[str, float], job: TrainJob, trial: Trial, resume: Savepoint | None) -> None:
    """Runs the loop in this process, which Tune gave the trial's GPU."""
    use_gpu = each["GPU"] > 0

    def report(metrics: dict[str, Any], checkpoint_dir: Path | None) -> None:
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(checkpoint_dir) if checkpoint_dir else None)

    def train_fn_per_worker() -> None:
        device = torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")
        train_loop(trial, job, device, report, resume=resume)

    TorchTrainer(train_fn_per_worker, scaling_config=ScalingConfig(num_workers=0, use_gpu=use_gpu)).fit()


def _launch_group(
    num_workers: int,
    each: dict[str, float],
    ray_dir: Path,
    job: TrainJob,
    trial: Trial,
    resume: Savepoint | None,
) -> None:
    """Runs the loop in a group of Train workers, whose reports reach Tune through this process."""

    def report(metrics: dict[str, Any], checkpoint_dir: Path | None) -> None:
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(checkpoint_dir) if checkpoint_dir else None)

    def train_fn_per_worker() -> None:
        context = train.get_context()
        worker = Worker(rank=context.get_world_rank(), world_size=context.get_world_size())
        train_loop(trial, job, get_device(), report, resume=resume, worker=worker)

    for name, value in GROUP_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    trainer = TorchTrainer(
        train_fn_per_worker,
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=each["GPU"] > 0, resources_per_worker=each),
        run_config=train.RunConfig(
            name=trial.id,
            storage_path=str(ray_dir / trial.id),
            callbacks=[TuneReportCallback()],
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            failure_config=train.FailureConfig(max_failures=0),  # Tune counts the failures of both modes
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        raise _cause(list(error.worker_failures.values())) from None


def _cause(failures: list[Exception]) -> Exception:
    """Which of the workers' errors the others followed from: a death, else raysnap's own, else the first.

    When one worker dies, the others' collectives fail as well; what Ray says of the dead one is an error of its own.
    """
    for failure in failures:
        if type(failure).__module__.partition(".")[0] == "ray":
            return RayError(describe_failure(failure))
    own = [failure for failure in failures if isinstance(failure, RaysnapError)]
    return [*own, *failures][0]
