"""Fine-tunes on Ray: Tune gives each trial its actor and GPU, Train's TorchTrainer runs the loop inside it.

With `num_workers: 0` the trainer is in local mode: the loop runs in the trial's own process, which Tune reuses from
trial to trial. The loop is `finetune`, which knows nothing of Ray; what it trained goes into the trial's checkpoint,
and the driver collects it. A trial that fails reports its error as its result, so that neither the actor nor the other
trials suffer.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from raysnap.blocks import build_model, random_head, random_tensors
from raysnap.config import ResourcesConfig
from raysnap.data import Dataset, Item, read_folder, training_splits
from raysnap.errors import TrainingDiverged, describe_failure
from raysnap.finetune import LabelledPixels, finetune
from raysnap.manifest import Preprocessing
from raysnap.objects import canonical_block_bytes
from raysnap.pixels import PixelCache
from raysnap.store import Store
from raysnap.trials import Trial

logger = logging.getLogger(__name__)

RECORD_NAME = "trial.json"


@dataclass(frozen=True)
class TrainJob:
    """What every trial of a job needs to know; paths are absolute, as workers run in other folders.

    Attributes:
        dataset_dirs: the folder of each dataset that trials name.
        bases: the id of the snapshot that each architecture's trials start from; None is random weights, drawn
            from the trial's seed.
    """

    store_dir: Path
    dataset_dirs: dict[str, Path]
    bases: dict[str, str | None]
    preprocessing: Preprocessing
    seed: int
    num_train: int | None
    num_val: int | None
    num_test: int | None


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended: with a checkpoint, or with an error and its kind."""

    trial: Trial
    checkpoint_dir: Path | None
    status: str
    error: str | None


def run_trials(
    trials: list[Trial],
    job: TrainJob,
    resources: ResourcesConfig,
    ray_dir: Path,
    *,
    on_end: Callable[[TrialOutcome], None],
    on_epoch: Callable[[Trial, dict[str, Any]], None],
) -> None:
    """Runs the trials on the Ray that is up, and calls back in this process as each one ends.

    Args:
        ray_dir: folder for Ray's own result files; on a cluster one that all nodes share.
        on_end: called once per trial that ended; a trial without a call was interrupted.
    """
    num_gpus = resources.gpus if resources.gpus is not None else min(1.0, ray.cluster_resources().get("GPU", 0.0))
    trainable = tune.with_resources(
        tune.with_parameters(train_driver_fn, job=job, use_gpu=num_gpus > 0), {"CPU": resources.cpus, "GPU": num_gpus}
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([trial.model_dump(mode="json") for trial in trials])},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=resources.max_concurrent,
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name=ray_dir.name,
            storage_path=str(ray_dir.parent.resolve()),
            callbacks=[_Announcer(on_end, on_epoch)],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            verbose=0,
        ),
    )
    tuner.fit()


def widen(resources: ResourcesConfig, num_trials: int) -> ResourcesConfig:
    """The resources with so many CPUs per trial that `num_trials` trials fill a cluster that has no GPU."""
    available = ray.cluster_resources()
    if resources.gpus or available.get("GPU"):
        return resources
    share = available.get("CPU", 1.0) // num_trials
    return resources.model_copy(update={"cpus": max(resources.cpus, share)})


def _trial_id(tune_trial: Any) -> str:
    return tune_trial.config["trial"]["id"]


class _Announcer(tune.Callback):
    """Tells the driver of each epoch and each end as Tune hears of it.

    Tune pickles its callbacks for a restore of its own; what is told here is of no use in another process.
    """

    def __init__(self, on_end: Callable[[TrialOutcome], None], on_epoch: Callable[[Trial, dict[str, Any]], None]):
        self._on_end = on_end
        self._on_epoch = on_epoch

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:  # noqa: ARG002
        if "epoch" in result:
            self._on_epoch(Trial.model_validate(trial.config["trial"]), result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        result = trial.last_result or {}
        checkpoint = trial.checkpoint
        self._on_end(
            TrialOutcome(
                trial=Trial.model_validate(trial.config["trial"]),
                checkpoint_dir=Path(checkpoint.path) if checkpoint else None,
                status=result.get("status", "failed"),
                error=result.get("error") or (None if checkpoint else "the trial ended without a checkpoint"),
            )
        )

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        error = trial.get_pickled_error()
        reason = describe_failure(error) if error else "its process died"
        self._on_end(TrialOutcome(Trial.model_validate(trial.config["trial"]), None, "failed", reason))


def train_driver_fn(config: dict[str, Any], job: TrainJob, use_gpu: bool) -> None:
    """One Tune trial: a TorchTrainer in local mode around the fine-tune, whose failure becomes the trial's result."""
    trial = Trial.model_validate(config["trial"])
    failure: dict[str, str] = {}

    def train_fn_per_worker() -> None:
        try:
            _train(trial, job, "cuda" if use_gpu and torch.cuda.is_available() else "cpu")
        except TrainingDiverged as error:
            failure.update(status="diverged", error=str(error))
        except Exception as error:  # noqa: BLE001 - a trial's failure is a row, whatever it was
            logger.debug("trial %s failed\n%s", trial.id, traceback.format_exc())
            failure.update(status="failed", error=describe_failure(error))

    TorchTrainer(train_fn_per_worker, scaling_config=ScalingConfig(num_workers=0, use_gpu=use_gpu)).fit()
    if failure:
        tune.report(failure)


def _train(trial: Trial, job: TrainJob, device: str) -> None:
    """Fine-tunes one model and reports its checkpoint, which holds the trained blocks and a record of how it went."""
    started = time.perf_counter()
    store = Store.open(job.store_dir)
    base_id = job.bases[trial.architecture]
    base_blocks = store.manifest(base_id).blocks if base_id else ()
    dataset = read_folder(job.dataset_dirs[trial.dataset])
    splits = labelled_splits(dataset, job)
    if base_id:
        tensors = [store.read_block(block.digest) for block in base_blocks[:-1]]
        tensors.append(random_head(trial.architecture, len(dataset.classes), trial.seed))
    else:
        tensors = [block for _, block in random_tensors(trial.architecture, len(dataset.classes), trial.seed)]
    model = build_model(trial.architecture, tensors).to(device)
    data_s = time.perf_counter() - started
    result = finetune(
        model,
        trial.num_frozen,
        splits,
        job.preprocessing,
        trial.train,
        seed=trial.seed,
        base_digests=[block.digest for block in base_blocks],
        report=lambda epoch: None if epoch["epoch"] == trial.train.epochs else tune.report(epoch),
    )
    checkpointing = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="raysnap-") as checkpoint_dir:
        for block in list(model)[trial.num_frozen :]:
            tensors = {name: tensor.cpu() for name, tensor in block.tensors().items()}
            (Path(checkpoint_dir) / f"{block.name}.safetensors").write_bytes(canonical_block_bytes(tensors))
        record = {
            "metrics": result.metrics,
            "history": result.history,
            "base": base_id,
            "classes": dataset.classes,
            "dataset_digest": dataset.digest,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "num_trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "timings_s": result.timings_s
            | {
                "data": data_s,
                "checkpoint": time.perf_counter() - checkpointing,
                "total": time.perf_counter() - started,
            },
        }
        (Path(checkpoint_dir) / RECORD_NAME).write_text(json.dumps(record))
        last = result.history[-1] | {"status": "done"} | result.metrics
        tune.report(last, checkpoint=tune.Checkpoint.from_directory(checkpoint_dir))


def labelled_splits(dataset: Dataset, job: TrainJob) -> dict[str, LabelledPixels]:
    """The train, val and, where there is one, test items of a fine-tune, decoded into the machine's pixel cache.

    Raises:
        DataError: the dataset is too small, or too many of its images are bad.
    """
    items = training_splits(dataset, job.seed, job.num_train, job.num_val, job.num_test)
    return {split: _labelled(split_items, dataset, job) for split, split_items in items.items()}


def _labelled(items: tuple[Item, ...], dataset: Dataset, job: TrainJob) -> LabelledPixels:
    cache = PixelCache.open(items, dataset.root, job.preprocessing.resize_size)
    good = cache.load(range(len(items)))
    return LabelledPixels(
        read=lambda positions, crop_size: cache.read([good[position] for position in positions], crop_size),
        labels=torch.tensor([items[position].label for position in good]),
    )
