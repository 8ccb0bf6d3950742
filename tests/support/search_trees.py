"""Prefix trees of snapshots that share more or less of one base."""

import numpy as np

from raysnap.config.parts import RetrainConfig
from raysnap.planning.sampling import draw_retrain_indices
from raysnap.search.plan.tree import build_tree
from tests.support.search_stores import candidate, digest

NUM_BLOCKS = 9


def tree_of(all_digits, sharing=True):
    candidates = [
        candidate(str(number), [digest(f"{position}{digit}") for position, digit in enumerate(digits)])
        for number, digits in enumerate(all_digits)
    ]
    return build_tree(candidates, sharing=sharing)


def star(num_snapshots, distribution="twenty_five_percent", seed=0):
    """Snapshots that share all but their last blocks with one base."""
    config = RetrainConfig(distribution=distribution)
    indices = draw_retrain_indices(config, "resnet18", num_snapshots, np.random.default_rng(seed))
    return tree_of(
        [
            [0 if index < NUM_BLOCKS - retrained else number + 1 for index in range(NUM_BLOCKS)]
            for number, retrained in enumerate(indices)
        ]
    )
