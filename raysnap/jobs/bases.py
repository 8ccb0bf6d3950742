"""The snapshots that fine-tunes start from: random, torchvision's, a file's, or one that the store already holds."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision import models

from raysnap.errors import WeightsError
from raysnap.models.blocks import num_classes_of, random_tensors, split_state_dict
from raysnap.models.weight_files import read_blocks
from raysnap.planning.generate import RANDOM, check_weights
from raysnap.store.manifest import DatasetRecord, Preprocessing
from raysnap.store.store import Store
from raysnap.training.trial import slug


def store_base(
    store: Store, weights: str, architecture: str, num_classes: int, seed: int, preprocessing: Preprocessing
) -> str:
    """The id of the base snapshot, which is in the store afterwards; `num_classes` and `seed` are for random ones.

    Raises:
        WeightsError: the weights can't be had, or don't fit the architecture.
    """
    check_weights(weights, architecture, store)
    entry = _torchvision_weights(weights, architecture)
    dataset = None
    if weights == RANDOM:
        blocks, name = random_tensors(architecture, num_classes, seed), f"{architecture}-random-{seed}"
    elif Path(weights).is_file():
        blocks = read_blocks(Path(weights), architecture)
        name = f"{architecture}-{Path(weights).stem}"
    elif entry is not None:
        blocks, name = split_state_dict(architecture, _download(entry)), f"{architecture}-{entry.name}"
        dataset = DatasetRecord(name="imagenet-1k", classes=tuple(entry.meta["categories"]))
    else:
        return store.manifest(weights).id
    written = store.put_snapshot(
        architecture=architecture,
        blocks=blocks,
        num_classes=num_classes_of(blocks[-1][1]),
        dataset=dataset,
        preprocessing=preprocessing,
        name=slug(name),
    )
    return written.manifest.id


def _download(entry: Any) -> dict[str, Tensor]:
    """torchvision's weights, from its cache or the network, checked against the hash in their name."""
    try:
        return entry.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"base.weights {entry.name}: can't be downloaded from {entry.url}: {error}; put the file into torch.hub's "
            "checkpoints folder, or give its path as base.weights"
        ) from None


def _torchvision_weights(weights: str, architecture: str) -> Any | None:
    """The torchvision weights of that name, given as `IMAGENET1K_V1` or `ResNet18_Weights.IMAGENET1K_V1`."""
    known: type[Enum] = models.get_model_weights(architecture)
    kind, _, name = weights.rpartition(".")
    return known.__members__.get(name) if kind in ("", known.__name__) else None
