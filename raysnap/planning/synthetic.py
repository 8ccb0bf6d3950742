"""What a synthesize job will do: which blocks of each snapshot are re-initialised, drawn from one seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysnap.config.jobs import SynthesizeConfig
from raysnap.planning.generate import check_input_size, check_weights, weights_preprocessing
from raysnap.planning.sampling import draw_retrain_indices
from raysnap.store.store import Store
from raysnap.training.trial import derive_seed


@dataclass(frozen=True)
class Descent:
    """Where one synthetic snapshot comes from.

    Attributes:
        number: its position among the job's snapshots.
        parent: the number of the snapshot of its architecture that it derives from; None for a base.
        retrain_index: how many of its last body blocks are its own, like its head.
        seed: for its own blocks.
    """

    number: int
    architecture: str
    parent: int | None
    retrain_index: int
    seed: int


def plan_synthesize(config: SynthesizeConfig) -> list[Descent]:
    """Return the job's snapshots, checked against what is there; nothing is written.

    Raises:
        RaysnapError: an architecture is unknown, or the base's weights are not there.
    """
    descents = draw_descents(config)
    store = Store.find(config.store)
    for architecture in config.architectures:
        check_input_size(architecture, config.image_size)
        check_weights(config.base.weights, architecture, store)
        weights_preprocessing(config.base.weights, architecture, store, config.base.tokenizer)
    return descents


def draw_descents(config: SynthesizeConfig) -> list[Descent]:
    """Return the snapshots of a synthesize job; architectures take turns, and the first of each is its base.

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
