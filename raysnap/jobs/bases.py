"""The snapshots that fine-tunes start from: random, torchvision's, a file's, one of the store, or one trained first."""

from __future__ import annotations

import logging
from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor

from raysnap.errors import WeightsError
from raysnap.jobs.data import JobData
from raysnap.jobs.job import Job
from raysnap.jobs.stage import Stage, run_stage
from raysnap.models.architecture import TORCHVISION, label, parse
from raysnap.models.blocks import num_classes_of, random_tensors, split_state_dict
from raysnap.models.lean_torchvision import models
from raysnap.models.weight_files import read_weights
from raysnap.planning.generate import RANDOM, check_weights
from raysnap.store.manifest import DatasetRecord
from raysnap.store.preprocessing import AnyPreprocessing
from raysnap.store.store import Store
from raysnap.training.trial import Trial, slug
from raysnap.tune.resources import spread_cpus

logger = logging.getLogger(__name__)


def make_bases(job: Job, data: JobData) -> dict[str, str | None]:
    """Return the id of the snapshot that fine-tunes start from, by their `base_key`; train it first where planned.

    A base that could not be trained is missing. Of a base that is trained from random weights there is no snapshot to
    start from, so its value is None while it is trained.
    """
    first = next(trial.dataset for trial in [*job.plan.trials, *job.plan.bases] if trial.dataset)
    num_classes = len(data.datasets[first].classes)
    bases = {trial.base_key: _start_of(job, trial, num_classes) for trial in job.plan.bases}
    trained = [trial for trial in job.plan.bases if trial.dataset]
    if not trained:
        return bases
    run_stage(job, data, Stage("base", trained, bases, spread_cpus(job.config.resources, len(trained))))
    made = {row.trial: row.snapshot for row in job.run_dir.trial_rows()}
    untrained = {key: base for key, base in bases.items() if key not in {trial.base_key for trial in trained}}
    return untrained | {trial.base_key: made[trial.id] for trial in trained if made.get(trial.id)}


def _start_of(job: Job, base: Trial, num_classes: int) -> str | None:
    """Return the id of the snapshot of a base's weights; None where its trial draws them at random."""
    weights = job.plan.weights[base.base_key]
    if weights == RANDOM and base.dataset is not None:
        return None
    preprocessing = job.plan.preprocessing_of(base)
    return store_base(job.store, weights, base.architecture, num_classes, base.seed, preprocessing)


def store_base(
    store: Store, weights: str, architecture: str, num_classes: int, seed: int, preprocessing: AnyPreprocessing
) -> str:
    """Return the id of the base snapshot, storing it if needed; `num_classes` and `seed` are for random ones.

    Raises:
        WeightsError: the weights can't be found or downloaded, or don't fit the architecture.
    """
    check_weights(weights, architecture, store)
    entry = _torchvision_weights(weights, architecture)
    dataset, prefix = None, label(architecture)
    if weights == RANDOM:
        blocks, name = random_tensors(architecture, num_classes, seed), f"{prefix}-random-{seed}"
    elif Path(weights).is_file():
        found = read_weights(Path(weights), architecture)
        if found.remark:
            logger.warning("base.weights %s: %s", weights, found.remark)
        blocks = found.blocks
        name = f"{prefix}-{Path(weights).stem}"
    elif entry is not None:
        blocks, name = split_state_dict(architecture, _download(entry)), f"{prefix}-{entry.name}"
        dataset = DatasetRecord(name="imagenet-1k", classes=tuple(entry.meta["categories"]))
    else:
        return store.manifest(weights).id
    written = store.put_snapshot(
        architecture=architecture,
        blocks=blocks,
        num_classes=num_classes_of(blocks[-1][1]),
        dataset=dataset,
        preprocessing=preprocessing,
    )
    given = store.give_name(slug(name), written.manifest.id)
    if given != slug(name):
        logger.warning("base.weights %s: named %s, as %s is another snapshot's name", weights, given, slug(name))
    return written.manifest.id


def _download(entry: Any) -> dict[str, Tensor]:
    """Return torchvision's weights, from its cache or the network, checked against the hash in their name."""
    try:
        return entry.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"base.weights {entry.name}: can't be downloaded from {entry.url}: {error}; put the file into torch.hub's "
            "checkpoints folder, or give its path as base.weights"
        ) from None


def _torchvision_weights(weights: str, architecture: str) -> Any | None:
    """Return the torchvision weights of that name, given as `IMAGENET1K_V1` or `ResNet18_Weights.IMAGENET1K_V1`."""
    if parse(architecture).family != TORCHVISION:
        return None
    known: type[Enum] = models.get_model_weights(architecture)
    kind, _, name = weights.rpartition(".")
    return known.__members__.get(name) if kind in ("", known.__name__) else None
