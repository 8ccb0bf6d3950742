"""One trial on Ray: in the process that Tune gave it, or in its own group of Train workers."""

from __future__ import annotations

import gc
import logging
import os
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import train, tune
from ray.exceptions import RayError
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util import get_node_ip_address

from raysnap.cluster.gpus import granted_device
from raysnap.cluster.places import check_mark
from raysnap.config.choices import Status
from raysnap.errors import ClusterError, OutOfMemory, RaysnapError, TrainingDiverged, describe_failure
from raysnap.system import giving_back_memory
from raysnap.training.savepoints import Savepoint, latest_savepoint, read_savepoint
from raysnap.training.trial import Trial
from raysnap.training.trial_loop import TrainJob, run_trial
from raysnap.training.worker import Worker
from raysnap.tune.gpu_memory import memory_of

logger = logging.getLogger(__name__)


MISPLACED = "is_misplaced"
"""In the result of a trial that failed because its node doesn't see the job's folders."""

GROUP_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # saves a process per trial; a preempted worker counts as one that died
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # every report waits for it; 2 s by default
}


def train_driver_fn(
    config: dict[str, Any], job: TrainJob, num_workers: int, ray_dir: Path, copies_weights: bool, packs_gpus: bool
) -> None:
    """Run one Tune trial: a TorchTrainer around the fine-tune, whose failure becomes the trial's result.

    Raises:
        RayError: a worker's process died; Tune restarts the trial.
    """
    trial = Trial.model_validate(config["trial"] | {"id": tune.get_context().get_trial_name()})
    each = config["share"]
    given = tune.get_checkpoint() if copies_weights else None
    savepoint = read_savepoint(Path(given.path)) if given else latest_savepoint(ray_dir / trial.id)
    if savepoint is not None and savepoint.is_final:
        tune.report({"status": Status.DONE.value})  # the process died after the last epoch, before Tune got its result
        return
    launch = (
        partial(_launch_group, num_workers, each, ray_dir) if num_workers else partial(_launch_here, each, packs_gpus)
    )
    has_part = packs_gpus and each["GPU"] < 1
    try:
        _check_node(trial, job)
        if has_part:
            launch(job, trial, savepoint)  # one that runs out of memory starts again with more
        else:
            retry_with_half_batch(trial, savepoint, partial(launch, job))
    except RayError:
        raise
    except ClusterError as error:
        tune.report({"status": Status.FAILED.value, "error": str(error), MISPLACED: True})
    except (OutOfMemory, torch.OutOfMemoryError, MemoryError) as error:
        tune.report({"status": Status.OUT_OF_MEMORY.value, "error": describe_failure(error)})
    except TrainingDiverged as error:
        tune.report({"status": Status.DIVERGED.value, "error": str(error)})
    except Exception as error:  # noqa: BLE001 - a trial's failure is a row, whatever it was
        logger.debug("trial %s failed\n%s", trial.id, traceback.format_exc())
        tune.report({"status": Status.FAILED.value, "error": describe_failure(error)})
    finally:
        if torch.cuda.is_initialized():
            _release_memory()  # for other trials on the GPU; on a CPU it would only cost time


def _check_node(trial: Trial, job: TrainJob) -> None:
    """Check that this process sees the job's folders, as its node may have joined after the job began.

    Raises:
        ClusterError: it doesn't.
    """
    if job.mark is not None:
        check_mark(job.mark, job.dataset_dirs.get(trial.trained_on))


def retry_with_half_batch(
    trial: Trial, resume: Savepoint | None, launch: Callable[[Trial, Savepoint | None], None]
) -> None:
    """Launch the trial; where memory was too small, launch it once more from its start at half its batch size.

    Raises:
        OutOfMemory: memory was too small even for half the batch size.
    """
    batch_size = resume.record["batch_size"] if resume else trial.train.batch_size
    try:
        launch(_with_batch_size(trial, batch_size), resume)
        return
    except OutOfMemory:
        if batch_size < trial.train.batch_size or batch_size == 1:
            raise
    # Only here, after the except block, are the error and the tensors in its frames freed.
    _release_memory()
    launch(_with_batch_size(trial, batch_size // 2), None)


def _with_batch_size(trial: Trial, batch_size: int) -> Trial:
    return trial.model_copy(update={"train": trial.train.model_copy(update={"batch_size": batch_size})})


def _release_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def _launch_here(
    each: dict[str, float], packs_gpus: bool, job: TrainJob, trial: Trial, resume: Savepoint | None
) -> None:
    """Run the trial in this process, which Tune gave the trial's GPU or a share of it."""
    use_gpu = each["GPU"] > 0
    node = get_node_ip_address()
    device = granted_device(each["GPU"], node)
    memory = memory_of(device) if use_gpu else None

    def report(metrics: dict[str, Any], checkpoint_dir: Path | None) -> None:
        if memory is not None:
            memory.check()
            metrics = metrics | {"gpu_peak_bytes": memory.peak_bytes(), "gpu_bytes": memory.total_bytes}
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(checkpoint_dir) if checkpoint_dir else None)

    def train_fn_per_worker() -> None:
        if memory is not None:
            memory.begin(each["GPU"] if packs_gpus else 1.0)
        with giving_back_memory():  # else this process keeps what trials of other depths took, up to twice as much
            run_trial(trial, job, device, report, resume=resume, node=node)

    TorchTrainer(train_fn_per_worker, scaling_config=ScalingConfig(num_workers=0, use_gpu=use_gpu)).fit()


def _launch_group(
    num_workers: int,
    each: dict[str, float],
    ray_dir: Path,
    job: TrainJob,
    trial: Trial,
    resume: Savepoint | None,
) -> None:
    """Run the trial in a group of Train workers, whose reports reach Tune through this process."""

    def report(metrics: dict[str, Any], checkpoint_dir: Path | None) -> None:
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(checkpoint_dir) if checkpoint_dir else None)

    def train_fn_per_worker() -> None:
        _check_node(trial, job)
        context = train.get_context()
        worker = Worker(rank=context.get_world_rank(), world_size=context.get_world_size())
        node = get_node_ip_address()
        device = granted_device(each["GPU"], node)
        if device.type == "cuda":
            device = get_device()  # one of those that Ray gave processes of this group on this node
        run_trial(trial, job, device, report, resume=resume, node=node, worker=worker)

    for name, value in GROUP_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    trainer = TorchTrainer(
        train_fn_per_worker,
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=each["GPU"] > 0, resources_per_worker=each),
        run_config=train.RunConfig(
            name=trial.id,
            storage_path=str(ray_dir / trial.id),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item] # its base is Train's, behind a decorator
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            failure_config=train.FailureConfig(max_failures=0),  # Tune counts the failures of both modes
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        raise _root_cause(list(error.worker_failures.values())) from None


def _root_cause(failures: list[Exception]) -> Exception:
    """Return the error that the other workers' errors followed from: a death, else raysnap's own, else the first.

    When one worker dies, the others' collectives fail as well; Ray reports the death separately.
    """
    for failure in failures:
        if type(failure).__module__.partition(".")[0] == "ray":
            return RayError(describe_failure(failure))
    own = [failure for failure in failures if isinstance(failure, RaysnapError)]
    return [*own, *failures][0]
