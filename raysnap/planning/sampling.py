"""The trial list of a job: sampled from one seed before Ray starts, the same on any machine.

Architectures and datasets take turns, so that every pair gets its share whatever the number of trials. The retrain
index of each trial is drawn from its architecture's distribution.
"""

from __future__ import annotations

import numpy as np

from raysnap.config.choices import Role
from raysnap.config.jobs import GenerateConfig
from raysnap.config.parts import RetrainConfig
from raysnap.errors import ConfigError
from raysnap.models.architecture import label
from raysnap.models.block_facts import num_body_blocks
from raysnap.training.trial import Trial, derive_seed, slug


def sample_trials(config: GenerateConfig) -> list[Trial]:
    """Return the fine-tunes of a generate job, equal for equal configurations; more snapshots only append.

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
    # A fixed value is used for a whole round over the pairs, so that every dataset gets every value.
    turns_per_value = len(pairs) if config.retrain.distribution == "fixed" else len(config.architectures)
    trials = []
    for number, (architecture, dataset) in enumerate(turns, start=1):
        drawn = indices[architecture][(number - 1) // turns_per_value]
        trains_all = config.retrain.stem and drawn == num_body_blocks(architecture)
        trials.append(
            Trial(
                id=f"{number:03d}-{label(architecture)}-{slug(dataset)}-r{'all' if trains_all else drawn}",
                role=Role.FINETUNE,
                architecture=architecture,
                dataset=dataset,
                retrain_index=None if trains_all else drawn,
                seed=derive_seed(config.seed, "trial", number),
                train=config.train,
            )
        )
    return trials


def base_trials(config: GenerateConfig) -> list[Trial]:
    """Return one trial per architecture, which makes the base that the others start from."""
    pretraining = config.base.pretraining
    return [
        Trial(
            id=f"base-{label(architecture)}" + (f"-{slug(pretraining.dataset)}" if pretraining else ""),
            role=Role.BASE,
            architecture=architecture,
            dataset=pretraining.dataset if pretraining else None,
            retrain_index=None,
            seed=derive_seed(config.seed, "base", architecture),
            train=pretraining.train if pretraining else config.train,
        )
        for architecture in config.architectures
    ]


def draw_retrain_indices(config: RetrainConfig, architecture: str, count: int, rng: np.random.Generator) -> list[int]:
    """Draw `count` retrain indices in 0..L for an architecture with L body blocks; a longer list starts with a shorter.

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
            values = config.values or (round((1 - (config.freeze_fraction or 0.0)) * num_blocks),)
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
    """Return what `scipy.stats.truncnorm` draws on [low, high] from these uniform numbers, for low < 0 < high.

    The same formula without the import of scipy.stats, which takes a second.
    """
    from scipy.special import (  # takes 0.3 s, which reading trials need not wait for
        log_ndtr,
        ndtr,
        ndtri_exp,
    )

    log_mass = np.log1p(-ndtr(low) - ndtr(-high))
    return ndtri_exp(np.logaddexp(log_ndtr(low), np.log(uniform) + log_mass))
