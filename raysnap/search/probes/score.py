"""The score of a snapshot's features by a proxy: a value, and each item's contribution to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = np.ndarray


class ProbeBatch(NamedTuple):
    """What a proxy scores in lock-step: train and test items of equal shapes, whose train items have equal classes.

    Attributes:
        train_BND: features of the train items, float32.
        train_labels_BN: their classes.
        test_BTD: features of the test items, float32.
        test_labels_BT: their classes.
    """

    train_BND: Tensor
    train_labels_BN: Array
    test_BTD: Tensor
    test_labels_BT: Array


@dataclass(frozen=True)
class Score:
    """How good a snapshot's features are by a proxy.

    Attributes:
        value: larger is better; the share of test items that are right, or a transferability score.
        loss: orders equal values, smaller is better: mean cross-entropy, 0 where a proxy has none.
        contribution_I: each item's contribution, float64, whose mean is `value`; two candidates are compared item by
            item. To an accuracy: 1 for each test item that is right and 0 for the others. To a transferability score:
            the value plus the item's influence on it, for the train items and then the test items.
        softened_I: contributions with less luck, by which few items tell candidates apart. To an accuracy: the
            probability that the probe gave to the item's class, which hardly changes where the probe is all but
            undecided. To a transferability score: the contributions.
    """

    value: float
    loss: float
    contribution_I: Array
    softened_I: Array


def score_logits(logits_TC: Array, classes: Array, labels_T: Array) -> Score:
    """Score logits over the training classes by their accuracy; an item of any other class is never right.

    Nor is an item whose logits overflowed, as they may where SGD diverged. Of equal logits the first class counts.
    """
    is_finite_T = np.isfinite(logits_TC).all(axis=1)
    logits_TC = np.where(is_finite_T[:, None], logits_TC, 0.0)
    is_right_T = (classes[logits_TC.argmax(axis=1)] == labels_T) & is_finite_T
    logits_TC = logits_TC - logits_TC.max(axis=1, keepdims=True)
    log_probability_TC = logits_TC - np.log(np.exp(logits_TC).sum(axis=1, keepdims=True))
    position_T = np.searchsorted(classes, labels_T).clip(max=len(classes) - 1)
    is_known_T = (classes[position_T] == labels_T) & is_finite_T
    log_likelihood_T = np.where(is_known_T, log_probability_TC[np.arange(len(labels_T)), position_T], np.log(1e-12))
    contribution_T = is_right_T.astype(np.float64)
    value, loss = float(is_right_T.mean()), float(-log_likelihood_T.mean())
    return Score(value, loss, contribution_T, np.exp(log_likelihood_T))


def score_influences(value: float, influence_I: Array) -> Score:
    """Score by a value that is no mean; the items' influences on it, up to a constant, are their contributions.

    An influence is the value's derivative by an item's weight (the infinitesimal jackknife), so that the mean of
    resampled contributions is the resampled score to first order.
    """
    contribution_I = value + influence_I - influence_I.mean()
    return Score(value, 0.0, contribution_I, contribution_I)
