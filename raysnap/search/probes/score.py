"""What a proxy says of a snapshot's features: a value, and each item's part in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

Array = np.ndarray


@dataclass(frozen=True)
class Score:
    """How well a snapshot's features do by a proxy.

    Attributes:
        value: the larger the better; the share of test items that are right, or a transferability score.
        loss: what orders equal values, the smaller the better: mean cross-entropy, 0 where a proxy has none.
        contribution_I: each item's part, float64, whose mean is `value`; two candidates' parts are compared item by
            item. Of an accuracy 1 for each test item that is right and 0 for the others; of a transferability score
            the value plus the item's influence on it, for the train items and then the test items.
    """

    value: float
    loss: float
    contribution_I: Array


def score_logits(logits_TC: Array, classes: Array, labels_T: Array) -> Score:
    """The accuracy of logits over the classes that were seen in training; a class never seen is never right.

    Nor is an item whose logits overflowed, as they may where SGD diverged. Of equal logits the first class is meant.
    """
    is_finite_T = np.isfinite(logits_TC).all(axis=1)
    logits_TC = np.where(is_finite_T[:, None], logits_TC, 0.0)
    is_right_T = (classes[logits_TC.argmax(axis=1)] == labels_T) & is_finite_T
    log_probability_TC = logits_TC - logsumexp(logits_TC, axis=1, keepdims=True)
    position_T = np.searchsorted(classes, labels_T).clip(max=len(classes) - 1)
    is_seen_T = (classes[position_T] == labels_T) & is_finite_T
    log_likelihood_T = np.where(is_seen_T, log_probability_TC[np.arange(len(labels_T)), position_T], np.log(1e-12))
    return Score(float(is_right_T.mean()), float(-log_likelihood_T.mean()), is_right_T.astype(np.float64))


def score_influences(value: float, influence_I: Array) -> Score:
    """The score of a value that is no mean, with the items' influences on it, up to a constant, as their parts.

    An influence is the value's derivative by an item's weight (the infinitesimal jackknife), so that the mean of
    resampled parts is the resampled score to first order.
    """
    return Score(value, 0.0, value + influence_I - influence_I.mean())
