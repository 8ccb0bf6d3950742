"""One trial: what is trained on which dataset, its id and its seed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysnap.config.choices import Role
from raysnap.config.strict import Config
from raysnap.config.train import TrainConfig
from raysnap.models.block_facts import num_body_blocks
from raysnap.store.preprocessing import AnyPreprocessing, Preprocessing

MAX_SLUG_CHARACTERS = 80


class Trial(Config):
    """One fine-tune to be run.

    Attributes:
        id: stable name, which the run's rows, folders and refs use; ids sort in the order of the trial list.
        dataset: a dataset name or the path of an ImageFolder; None for a base that is stored untrained.
        retrain_index: how many of the last body blocks are trained with the head; None trains everything.
        seed: for the new head, the order of the items and fresh views; fixed views follow from the job's seed.
        base: the base it starts from, where a job has several for an architecture.
        image_size: edge of its square inputs, in pixels, or number of tokens of its texts; None is the job's.
        point: what a sweep sampled for it, by dotted key, as shown to people; None outside sweeps.
        sample: which of the sweep's `num_samples` it belongs to, from 1.
    """

    id: str
    role: Role
    architecture: str
    dataset: str | None
    retrain_index: int | None
    seed: int
    train: TrainConfig
    base: str | None = None
    image_size: int | None = None
    point: dict[str, Any] | None = None
    sample: int | None = None

    @property
    def base_key(self) -> str:
        """The key of the trial's base among the job's bases."""
        return self.base or self.architecture

    @property
    def num_frozen(self) -> int:
        """How many blocks at the front stay frozen, stem included."""
        if self.retrain_index is None:
            return 0
        return 1 + num_body_blocks(self.architecture) - self.retrain_index

    @property
    def trained_on(self) -> str:
        """The dataset of a trial that is known to be trained."""
        assert self.dataset is not None
        return self.dataset

    def preprocessing(self, of_job: Preprocessing, of_bases: Mapping[str, AnyPreprocessing]) -> AnyPreprocessing:
        """Return how the trial sees its items: as its base's weights do, at its own size or the job's.

        Args:
            of_job: of trials without a size whose base is not among `of_bases`.
            of_bases: how weights see their items, by `base_key`; a size of another's changes that alone.
        """
        own = of_bases.get(self.base_key)
        if own is not None:
            return own.sized(self.image_size or of_job.image_size)
        return of_job if self.image_size is None else Preprocessing.cropping(self.image_size)


def derive_seed(seed: int, *parts: object) -> int:
    """Return a seed for one purpose, in 0..2**32 - 1; different purposes get unrelated seeds."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def slug(name: str) -> str:
    """Return a name, or the last part of a path, in at most 80 characters that file and ref names may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).name).strip("._-")[:MAX_SLUG_CHARACTERS] or "unnamed"
