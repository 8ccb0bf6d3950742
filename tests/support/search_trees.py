"""Prefix trees of snapshots that share more or less of one base."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

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


@dataclass(frozen=True)
class FakeShape:
    """The part of a block's shape that a walk is planned from."""

    output_bytes: int


@st.composite
def random_trees(draw):
    """Return a small tree of shared prefixes, and how many bytes each of its blocks puts out per item."""
    depth = draw(st.integers(1, 6))
    all_digits = draw(st.lists(st.lists(st.integers(0, 1), min_size=depth, max_size=depth), min_size=1, max_size=6))
    candidates = [
        candidate(str(number), [digest(f"{0 if position == 0 else digit}{position}") for position, digit in pairs])
        for number, pairs in enumerate(list(enumerate(digits)) for digits in all_digits)
    ]
    shapes = tuple(FakeShape(1000 * draw(st.sampled_from((1, 10, 100, 300, 900)))) for _ in range(depth))
    kept = draw(st.sets(st.integers(0, len(candidates) - 1), min_size=1))
    return build_tree(candidates, sharing=True), shapes, kept
