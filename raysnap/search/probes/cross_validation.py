"""Score candidates on every item that a rung has: test items, and train items by probes that have not seen them.

Four of five items of a search are train items. Held out in turns, they tell candidates apart as test items do, for the
price of a few more probes and no more forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch

from raysnap.config.choices import TRANSFERABILITY, Proxy
from raysnap.search.probes.proxies import CPU, score_candidates
from raysnap.search.probes.score import Array, Score


class ProbeSet(NamedTuple):
    """What probes of several candidates are fitted and scored on.

    Attributes:
        train_features: each candidate's features of the train items, float32 `[N, D]`; widths may differ.
        train_labels_N: the train items' classes, in stratified order.
        test_features: each candidate's features of the test items, float32 `[T, D]`.
    """

    train_features: Sequence[Array]
    train_labels_N: Array
    test_features: Sequence[Array]
    test_labels_T: Array


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
        return _score(proxy, probes, seed, device)
    num_train, num_test = len(probes.train_labels_N), len(probes.test_labels_T)
    fold_N = assign_folds(probes.train_labels_N, num_folds)
    folds = [fold for fold in range(num_folds) if len(np.unique(probes.train_labels_N[fold_N != fold])) > 1]
    # Contributions, as they are and softened.
    found_2CI = np.zeros((2, len(probes.train_features), num_train + num_test))
    losses: list[list[float]] = [[] for _ in probes.train_features]
    for fold in folds:
        is_held_out_N = fold_N == fold
        for number, score in enumerate(_score(proxy, _hold_out(probes, is_held_out_N), seed, device)):
            num_held_out = is_held_out_N.sum()
            for found_I, given_I in zip(found_2CI[:, number], (score.contribution_I, score.softened_I), strict=True):
                found_I[:num_train][is_held_out_N] = given_I[:num_held_out]
                found_I[num_train:] += given_I[num_held_out:] / len(folds)
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


def _hold_out(probes: ProbeSet, is_held_out_N: Array) -> ProbeSet:
    """Return probes without these train items, which they are scored on before the test items."""
    return ProbeSet(
        [features[~is_held_out_N] for features in probes.train_features],
        probes.train_labels_N[~is_held_out_N],
        [
            np.concatenate([train[is_held_out_N], test])
            for train, test in zip(probes.train_features, probes.test_features, strict=True)
        ],
        np.concatenate([probes.train_labels_N[is_held_out_N], probes.test_labels_T]),
    )


def _score(proxy: Proxy, probes: ProbeSet, seed: int, device: torch.device) -> list[Score]:
    return score_candidates(proxy, *probes, seed, device)
