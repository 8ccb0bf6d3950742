"""One process of a trial: it opens its data and its base, fine-tunes, and reports savepoints; no Ray in it.

Both launch modes of `tune.run_trials` run this, with a callback that reports. The last report is the finished trial.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from raysnap.cluster.gpus import device_name
from raysnap.config.choices import Status
from raysnap.config.folders import StorePath
from raysnap.datasets.dataset import Dataset, Item, read_folder
from raysnap.datasets.splits import training_splits
from raysnap.models.blocks import build_model, in_float32, random_head, random_tensors
from raysnap.models.numerics import Numerics
from raysnap.models.tensor_bytes import block_digest
from raysnap.store.preprocessing import AnyPreprocessing, Preprocessing
from raysnap.store.store import Store, TokenizerReader
from raysnap.training.evaluation import write_predictions
from raysnap.training.feeds import LabelledItems
from raysnap.training.finetune import Save, finetune
from raysnap.training.freezing import StartModel
from raysnap.training.item_caches import open_cache, read_items
from raysnap.training.prefix_cache import PrefixCache, items_digest
from raysnap.training.savepoints import Savepoint, write_record
from raysnap.training.trial import Trial
from raysnap.training.worker import Worker

logger = logging.getLogger(__name__)

ReportCallback: TypeAlias = Callable[[dict[str, Any], Path | None], None]
"""Takes the metrics of an epoch, and the folder of a savepoint to keep where there is one."""

SAVED_EPOCH = "saved_epoch"
"""The metric that is reported only with savepoints that a fine-tune can continue from."""


@dataclass(frozen=True)
class TrainJob:
    """What every trial of a job needs to know; paths are absolute, as workers run in other folders.

    Attributes:
        dataset_dirs: the folder of each dataset that trials name.
        bases: the id of the snapshot that trials start from, by their `base_key`; None draws random weights from the
            trial's seed.
        preprocessing: of trials without an image size, where their base's weights don't say otherwise.
        prefix_depths: how many frozen blocks' outputs are cached for a trial, by its id; 0 for a trial not listed.
        prefix_cache_bytes: limit of those outputs, for all datasets together.
        keeps_predictions: whether the prediction for each test item is kept with the finished trial.
        mark: a file that the driver left in the run directory, which every process of a trial must see; None for none.
        inputs: how the weights of bases see their items, by `base_key`, where that is not the usual way.
    """

    store_dir: StorePath
    dataset_dirs: dict[str, Path]
    bases: dict[str, str | None]
    preprocessing: Preprocessing
    seed: int
    num_train: int | None
    num_val: int | None
    num_test: int | None
    prefix_depths: dict[str, int] = field(default_factory=dict)
    prefix_cache_bytes: int = 0
    keeps_predictions: bool = False
    mark: Path | None = None
    inputs: Mapping[str, AnyPreprocessing] = field(default_factory=dict)


def run_trial(
    trial: Trial,
    job: TrainJob,
    device: torch.device,
    report: ReportCallback,
    *,
    resume: Savepoint | None = None,
    node: str | None = None,
    worker: Worker = Worker(),  # noqa: B008 - frozen
) -> None:
    """Fine-tune one model and report its epochs, savepoints and end; in a worker group each process runs this.

    Args:
        node: the address of the node that this process runs on, for the record.

    Raises:
        OutOfMemory: the device or the machine has too little memory for the trial's batch size.
        TrainingDiverged: the loss became NaN or infinite.
        RaysnapError: the dataset or the base can't be read, or a frozen block changed.
    """
    started = time.perf_counter()
    dataset = read_folder(job.dataset_dirs[trial.trained_on])
    preprocessing = trial.preprocessing(job.preprocessing, job.inputs)
    splits = labelled_splits(dataset, job, preprocessing)
    model, base_digests, start_digests = _start_model(trial, job, len(dataset.classes))
    model.to(device)
    facts = {
        "trial": trial.id,
        "base": job.bases[trial.base_key],
        "frozen": base_digests[: trial.num_frozen],
        "batch_size": trial.train.batch_size,
        "inherited": _inherited(trial, resume),
    }
    if resume is not None and resume.record["base"] != facts["base"]:
        logger.warning("%s: its checkpoint started from another base; the trial restarts", trial.id)
        resume = None
    timings_s = {"data": time.perf_counter() - started, "checkpoint": 0.0}
    with tempfile.TemporaryDirectory(prefix="raysnap-") as folder:
        final_dir = Path(folder)
        result = finetune(
            StartModel(model, trial.num_frozen, start_digests, trial.architecture),
            splits,
            preprocessing,
            trial.train,
            seed=trial.seed,
            on_epoch=_epoch_callback(report, worker, facts, final_dir, timings_s),
            resume_dir=resume.path if resume else None,
            prefix=_prefix_cache(trial, job),
            views_seed=job.seed,
            worker=worker,
        )
        if worker.rank == 0:
            if job.keeps_predictions and result.predictions is not None:
                write_predictions(final_dir, trial, dataset, splits["test"], result.predictions)
            write_record(
                final_dir,
                status="done",
                epoch=len(result.history),
                stopped=result.cut_short_by,
                metrics=result.metrics,
                history=result.history,
                classes=dataset.classes,
                dataset_digest=dataset.digest,
                timings_s=result.timings_s | timings_s | {"total": time.perf_counter() - started},
                node=node,
                **_describe(model, trial, device),
                **facts,
            )
        end = {"status": Status.DONE.value, "kept": result.metrics}
        report(result.history[-1] | end, final_dir if worker.rank == 0 else None)


def _epoch_callback(
    report: ReportCallback, worker: Worker, facts: dict[str, Any], final_dir: Path, timings_s: dict[str, float]
) -> Callable[[dict[str, float], Save | None], None]:
    """Return the callback of epochs: all but the last are reported, with a savepoint where one is due.

    The last one's checkpoint goes to `final_dir`; it is reported with the result.
    """

    def on_epoch(entry: dict[str, float], save: Save | None) -> None:
        saving = time.perf_counter()
        if save is not None and save.is_final:
            if worker.rank == 0:
                save(final_dir)
        elif save is None or worker.rank:
            report(entry, None)
        else:
            with tempfile.TemporaryDirectory(prefix="raysnap-") as checkpoint_dir:
                save(Path(checkpoint_dir))
                write_record(Path(checkpoint_dir), status="training", epoch=int(entry["epoch"]), **facts)
                report(entry | {SAVED_EPOCH: entry["epoch"]}, Path(checkpoint_dir))
        timings_s["checkpoint"] += time.perf_counter() - saving

    return on_epoch


def _describe(model: nn.Sequential, trial: Trial, device: torch.device) -> dict[str, Any]:
    """Return the device, the precision and the numbers of parameters of a trained model."""
    parameters = list(model.parameters())
    return {
        "device": device_name(device),
        "precision": str(Numerics.choose(trial.train, device).dtype).removeprefix("torch."),
        "num_parameters": sum(p.numel() for p in parameters),
        "num_trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }


def _start_model(trial: Trial, job: TrainJob, num_classes: int) -> tuple[nn.Sequential, list[str], list[str]]:
    """Return the model that the trial starts from, with a fresh head, and the digests of its base's blocks.

    These twice: as they are in the store, and as they are in the model, which is float32 throughout.
    """
    base_id = job.bases[trial.base_key]
    if base_id is None:
        tensors = [block for _, block in random_tensors(trial.architecture, num_classes, trial.seed)]
        return build_model(trial.architecture, tensors), [], []
    store = Store.open(job.store_dir)
    digests = [block.digest for block in store.manifest(base_id).blocks]
    start_digests, tensors = list(digests), []
    for number, digest in enumerate(digests[:-1]):
        stored = store.read_block(digest)
        tensors.append(in_float32(stored))
        if any(tensors[-1][name] is not tensor for name, tensor in stored.items()):
            start_digests[number] = block_digest(tensors[-1])
    tensors.append(random_head(trial.architecture, num_classes, trial.seed))
    return build_model(trial.architecture, tensors), digests, start_digests


def _inherited(trial: Trial, resume: Savepoint | None) -> list[dict[str, Any]]:
    """Return the trials and epochs whose weights the trial copied, as `pbt` makes it do."""
    if resume is None:
        return []
    record = resume.record
    taken = [] if record["trial"] == trial.id else [{"trial": record["trial"], "epoch": record["epoch"]}]
    return [*record.get("inherited", []), *taken]


def _prefix_cache(trial: Trial, job: TrainJob) -> PrefixCache | None:
    depth = job.prefix_depths.get(trial.id, 0)
    if not depth or not job.prefix_cache_bytes:
        return None
    roots = tuple(job.dataset_dirs.values())
    return PrefixCache.beside(job.dataset_dirs[trial.trained_on], depth, job.prefix_cache_bytes, roots)


def labelled_splits(dataset: Dataset, job: TrainJob, preprocessing: AnyPreprocessing) -> dict[str, LabelledItems]:
    """Return the train, val and, where there is one, test items of a fine-tune, in the machine's cache of them.

    Raises:
        DataError: the dataset is too small, or too many of its items are bad.
    """
    items = training_splits(dataset, job.seed, job.num_train, job.num_val, job.num_test)
    tokenizers = TokenizerReader(job.store_dir)
    return {split: _labelled(split_items, dataset, preprocessing, tokenizers) for split, split_items in items.items()}


def _labelled(
    items: tuple[Item, ...], dataset: Dataset, preprocessing: AnyPreprocessing, tokenizers: TokenizerReader
) -> LabelledItems:
    cache = open_cache(items, dataset, preprocessing, tokenizers)
    good = cache.load(range(len(items)))
    return LabelledItems(
        read=lambda positions, edge: read_items(cache, [good[position] for position in positions], preprocessing, edge),
        labels=torch.tensor([items[position].label for position in good]),
        digest=items_digest(cache, good),
        names=tuple(items[position].path.relative_to(dataset.root).as_posix() for position in good),
        bad=tuple(cache.bad.values()),
    )
