"""The trial list of a job: sampled from one seed before Ray starts, the same on any machine.

Architectures and datasets take turns, so that every pair gets its share whatever the number of trials; the retrain
index of each trial is drawn from its architecture's distribution.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raysnap.config.load import Config, GenerateConfig, RetrainConfig, SynthesizeConfig, TrainConfig
from raysnap.errors import ConfigError
from raysnap.models.block_facts import num_body_blocks

MAX_SLUG_CHARACTERS = 80


class Trial(Config):
    """One fine-tune that is to be run.

    Attributes:
        id: stable name, in the order of the list; the run's rows, folders and refs go by it.
        dataset: a dataset name or the path of an ImageFolder; None for a base that is stored untrained.
        retrain_index: the last so many body blocks are trained, and the head; None trains everything.
        seed: of the new head, the order of the items and fresh views; fixed views follow from the job's seed.
        base: the base it starts from, where a job has more than one for an architecture.
        image_size: edge of the square that it sees, in pixels; None is the job's.
        point: what a sweep sampled for it, by dotted key, as it is shown; None outside sweeps.
        sample: which of the sweep's `num_samples` it belongs to, from 1.
    """

    id: str
    role: str
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
        """What the job's bases know the trial's by."""
        return self.base or self.architecture

    @property
    def num_frozen(self) -> int:
        """How many blocks at the front stay frozen, the stem counted."""
        if self.retrain_index is None:
            return 0
        return 1 + num_body_blocks(self.architecture) - self.retrain_index


def sample_trials(config: GenerateConfig) -> list[Trial]:
    """The fine-tunes of a generate job; equal for equal configurations, and more snapshots only add to the end.

    Raises:
        ConfigError: a `fixed` retrain index is larger than an architecture has blocks.
    """
    pairs = [(architecture, dataset) for dataset in config.datasets for architecture in config.architectures]
    turns = [pairs[turn % len(pairs)] for turn in range(config.num_snapshots)]
    indices = {
        architecture: draw_retrain_indices(
            config.retrain,
            architecture,
            len(turns),
            np.random.default_rng(derive_seed(config.seed, "retrain", architecture)),
        )
        for architecture in config.architectures
    }
    # A fixed value stands for a whole round over the pairs, so that every dataset gets every value.
    turns_per_value = len(pairs) if config.retrain.distribution == "fixed" else len(config.architectures)
    trials = []
    for number, (architecture, dataset) in enumerate(turns, start=1):
        retrain_index = indices[architecture][(number - 1) // turns_per_value]
        trials.append(
            Trial(
                id=f"{number:03d}-{architecture}-{slug(dataset)}-r{retrain_index}",
                role="finetune",
                architecture=architecture,
                dataset=dataset,
                retrain_index=retrain_index,
                seed=derive_seed(config.seed, "trial", number),
                train=config.train,
            )
        )
    return trials


def base_trials(config: GenerateConfig) -> list[Trial]:
    """One trial per architecture that makes the base which the others start from."""
    pretraining = config.base.pretraining
    return [
        Trial(
            id=f"base-{architecture}" + (f"-{slug(pretraining.dataset)}" if pretraining else ""),
            role="base",
            architecture=architecture,
            dataset=pretraining.dataset if pretraining else None,
            retrain_index=None,
            seed=derive_seed(config.seed, "base", architecture),
            train=pretraining.train if pretraining else config.train,
        )
        for architecture in config.architectures
    ]


@dataclass(frozen=True)
class Descent:
    """Where one synthetic snapshot comes from.

    Attributes:
        number: its position among the job's snapshots.
        parent: the number of the snapshot of its architecture that it derives from; None for a base.
        retrain_index: its last so many body blocks are its own, and the head.
        seed: of its own blocks.
    """

    number: int
    architecture: str
    parent: int | None
    retrain_index: int
    seed: int


def draw_descents(config: SynthesizeConfig) -> list[Descent]:
    """The snapshots of a synthesize job; architectures take turns, and the first of each is its base.

    Raises:
        ConfigError: a `fixed` retrain index is larger than an architecture has blocks.
    """
    indices = {
        architecture: draw_retrain_indices(
            config.retrain,
            architecture,
            config.num_snapshots,
            np.random.default_rng(derive_seed(config.seed, "retrain", architecture)),
        )
        for architecture in config.architectures
    }
    families: dict[str, list[int]] = {architecture: [] for architecture in config.architectures}
    descents = []
    for number in range(config.num_snapshots):
        architecture = config.architectures[number % len(config.architectures)]
        family, seed, parent = families[architecture], derive_seed(config.seed, "synthetic", number), None
        if family:
            drawn = np.random.default_rng(seed).integers(len(family)) if config.parent == "random" else 0
            parent = family[drawn]
        descents.append(Descent(number, architecture, parent, indices[architecture][len(family)], seed))
        family.append(number)
    return descents


def draw_retrain_indices(config: RetrainConfig, architecture: str, count: int, rng: np.random.Generator) -> list[int]:
    """`count` retrain indices in 0..L for an architecture with L body blocks; a longer list begins with a shorter one.

    Truncated normals are drawn on [0, n] with n = L + 1, rounded and clipped to 0..L.

    Raises:
        ConfigError: a `fixed` value is larger than L.
    """
    num_blocks = num_body_blocks(architecture)
    num_slots = num_blocks + 1
    match config.distribution:
        case "last_one_layer":
            return [1] * count
        case "uniform":
            return rng.integers(0, num_slots, size=count).tolist()
        case "fixed":
            values = config.values or (round((1 - config.freeze_fraction) * num_blocks),)
            if max(values) > num_blocks:
                raise ConfigError(
                    f"retrain.values: expected at most {num_blocks}, the blocks of {architecture} between stem and "
                    f"head, found {max(values)}"
                )
            return [values[turn % len(values)] for turn in range(count)]
        case name:
            share, spread = {"top_layers": (0.10, 2), "twenty_five_percent": (0.25, 2), "fifty_percent": (0.50, 4)}[
                name
            ]
            mean = share * num_slots
            deviation = mean / spread
            low, high = -mean / deviation, (num_slots - mean) / deviation
            draws = mean + deviation * truncated_normal(low, high, rng.uniform(size=count))
            return np.clip(np.rint(draws), 0, num_blocks).astype(int).tolist()


def truncated_normal(low: float, high: float, uniform: np.ndarray) -> np.ndarray:
    """What `scipy.stats.truncnorm` draws on [low, high] from these uniform numbers, for low < 0 < high.

    The same formula without the import of scipy.stats, which takes a second.
    """
    from scipy.special import (  # a third of a second, which who only reads trials need not wait
        log_ndtr,
        ndtr,
        ndtri_exp,
    )

    log_mass = np.log1p(-ndtr(low) - ndtr(-high))
    return ndtri_exp(np.logaddexp(log_ndtr(low), np.log(uniform) + log_mass))


def derive_seed(seed: int, *parts: object) -> int:
    """A seed for one purpose, in 0..2**32 - 1; unrelated purposes get unrelated seeds."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def slug(name: str) -> str:
    """A name, or the last part of a path, in at most 80 of the characters that file and ref names may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).name).strip("._-")[:MAX_SLUG_CHARACTERS] or "unnamed"
