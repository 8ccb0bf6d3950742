"""Score candidates on every item that a rung has: test items, and train items by probes that have not seen them.

Four of five items of a search are train items. Held out in turns, they tell candidates apart as test items do, for the
price of a few more probes and no more forward passes.
"""

from __future__ import annotations

from statistics import fmean

import numpy as np
import torch

from raysnap.config.choices import TRANSFERABILITY, Proxy
from raysnap.search.probes.proxies import CPU, ProbeSet, score_candidates, score_splits
from raysnap.search.probes.score import Array, Score


def cross_validate(
    proxy: Proxy, probes: ProbeSet, num_folds: int, seed: int, device: torch.device = CPU
) -> list[Score]:
    """Score each candidate on all items, the train items before the test items.

    The train items are split into folds, stratified by class. A probe fitted without a fold is scored on the fold and
    on the test items; an item's contribution is its mean over the probes that did not see it, 0 where there is none.

    Returns:
        A score per candidate, in their order, with N + T contributions.
    """
    if proxy in TRANSFERABILITY:
        return score_candidates(proxy, *probes, seed, device)
    num_train, num_test = len(probes.train_labels_N), len(probes.test_labels_T)
    fold_N = assign_folds(probes.train_labels_N, num_folds)
    held_out = [fold_N == fold for fold in range(num_folds)]
    held_out = [
        is_held_out_N for is_held_out_N in held_out if len(np.unique(probes.train_labels_N[~is_held_out_N])) > 1
    ]
    # Contributions, as they are and softened.
    found_2CI = np.zeros((2, len(probes.train_features), num_train + num_test))
    losses: list[list[float]] = [[] for _ in probes.train_features]
    for is_held_out_N, scores in zip(held_out, score_splits(proxy, probes, held_out, seed, device), strict=True):
        num_held_out = is_held_out_N.sum()
        for number, score in enumerate(scores):
            for found_I, given_I in zip(found_2CI[:, number], (score.contribution_I, score.softened_I), strict=True):
                found_I[:num_train][is_held_out_N] = given_I[:num_held_out]
                found_I[num_train:] += given_I[num_held_out:] / len(held_out)
            losses[number].append(score.loss)
    return [
        Score(float(contribution_I.mean()), fmean(loss or [0.0]), contribution_I, softened_I)
        for contribution_I, softened_I, loss in zip(*found_2CI, losses, strict=True)
    ]


def assign_folds(labels_N: Array, num_folds: int) -> Array:
    """Return the fold of each item, `[N]`: each class is dealt over the folds in turn, as evenly as it can be."""
    by_class = np.argsort(labels_N, kind="stable")
    fold_N = np.empty(len(labels_N), dtype=np.int64)
    fold_N[by_class] = np.arange(len(labels_N)) % num_folds
    return fold_N
