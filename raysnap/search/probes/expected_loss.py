"""Say what naming or dropping candidates may cost on new items: true scores as draws around a common mean.

A candidate's true score is the one that it would have on endless new items, with a probe that trained on all train
items. Its score so far measures it with two errors: the luck of the items so far, whose covariance the paired
contributions tell, and the drift of a probe that has trained on few of the items. True scores themselves are taken
as normal draws around a common mean, with a spread that the same scores tell (empirical Bayes; the spread is averaged
over what it may be, not set to its likeliest value). Candidates that were dropped stay in the evidence, with the few
items that they had: survivors were chosen for their scores, and would look too much alike on their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysnap.search.probes.score import Array

NUM_DRAWS = 4096
# Standard deviations of true scores that are considered: all up to 0.05 are as likely before a score is seen, and
# larger ones less. Below 0.002 candidates are equal.
SPREADS = np.concatenate([[0.0], np.geomspace(0.002, 0.5, 24)])
USUAL_SPREAD = 0.05
LOG_PRIOR = np.log(np.gradient(SPREADS)) - np.log1p((SPREADS / USUAL_SPREAD) ** 2)
# The common mean may be anywhere: its standard deviation, beside that of differences.
MEAN_SPREAD = 1.0
# Items on which candidates differ as if they were independent, added to those seen.
NUM_ADDED = 2
# The luck of items trained on beside that of items scored on, where nothing is known, and the candidates that it counts
# for where some is.
USUAL_LUCK, NUM_USUAL = 1.5, 8


@dataclass(frozen=True)
class Beliefs:
    """Draws from what is believed about some candidates that may be named, and about the best of all.

    Attributes:
        best_S: draws of the best true score of all candidates, those that can't be named any more included.
        true_SC: draws of true scores.
        final_SC: draws of what their expected values will be once all items have been used; less spread than true
            scores, as even all items leave doubt.
        expected_C: expected true scores.
    """

    best_S: Array
    true_SC: Array
    final_SC: Array
    expected_C: Array

    def loss_of(self, candidate: int) -> float:
        """Return how much better than this candidate the best one of all is expected to be."""
        return max(0.0, float((self.best_S - self.true_SC[:, candidate]).mean()))

    def losses_of_keeping(self) -> Array:
        """Return what is lost, of what the remaining items could find, by keeping only the first candidates.

        Returns:
            The loss for each number of them, `[C]`, falling to 0.
        """
        kept_SC = np.maximum.accumulate(self.final_SC, axis=1)
        return np.asarray((kept_SC[:, -1:] - kept_SC).mean(axis=0))


class Evidence:
    """What the rungs so far have measured of all candidates."""

    def __init__(self, num_candidates: int):
        self._score_C = np.zeros(num_candidates)
        self._num_items_C = np.zeros(num_candidates)
        self._drift_C = np.zeros(num_candidates)
        self._noise_CC = np.zeros((num_candidates, num_candidates))
        self._train_luck_C = np.zeros(num_candidates)

    def add(self, candidates: Sequence[int], contribution_CI: Array, drift_variance: float, luck: float = 1.0) -> None:
        """Add a rung: it replaces what earlier ones measured of these candidates, as it has all of their items.

        Args:
            contribution_CI: each candidate's contributions by item; its score is their mean. Scores are like
                accuracies: a difference of 0.01 is small, one of 0.3 is large.
            drift_variance: the variance, across candidates, of how their scores will still change as probes train on
                more items, apart from the luck of items.
            luck: how many times larger the variance of scores is than if the items scored on were all of their luck;
                that of items trained on comes to it.
        """
        self._score_C[candidates] = contribution_CI.mean(axis=1)
        self._num_items_C[candidates] = contribution_CI.shape[1]
        self._drift_C[candidates] = drift_variance
        noise_CC = _noise(contribution_CI)
        self._noise_CC[np.ix_(candidates, candidates)] = luck * noise_CC
        # Rows of the differences' covariance sum to 0, so that the mean of all is what all candidates have in common.
        self._train_luck_C[candidates] = max(0.0, luck - 1) * (np.diag(noise_CC) - noise_CC.mean())

    def weigh(self, nameable: Sequence[int], num_final: int, seed: int) -> Beliefs:
        """Return what is believed about the candidates that may be named, in their order.

        Args:
            num_final: items that these will have been scored on in the end.
        """
        measured = np.flatnonzero(self._num_items_C)
        position_C = np.searchsorted(measured, nameable)
        score_C = self._score_C[measured]
        num_items_C, drift_C = self._num_items_C[measured], self._drift_C[measured]
        noise_CC = _nearest_covariance(self._noise_CC[np.ix_(measured, measured)])
        final_items_C, final_drift_C = num_items_C.copy(), drift_C.copy()
        final_items_C[position_C] = np.maximum(num_items_C[position_C], num_final)
        final_drift_C[position_C] = 0.0
        error_CC = _error(noise_CC, num_items_C, drift_C)
        final_error_CC = _error(noise_CC, final_items_C, final_drift_C)
        centred_C = score_C - score_C.mean()
        beliefs = [_posterior(spread, error_CC, centred_C) for spread in SPREADS]
        log_weight_K = LOG_PRIOR + [fit for _, _, fit in beliefs]
        weight_K = np.exp(log_weight_K - log_weight_K.max())
        weight_K /= weight_K.sum()
        rng = np.random.default_rng(seed)
        true, final = [], []
        for spread, (mean_C, doubt_CC, _), count in zip(
            SPREADS, beliefs, rng.multinomial(NUM_DRAWS, weight_K), strict=True
        ):
            if count:
                _, final_doubt_CC, _ = _posterior(spread, final_error_CC, centred_C)
                moved_SC = mean_C + _draw(doubt_CC - final_doubt_CC, count, rng)
                final.append(moved_SC)
                true.append(moved_SC + _draw(final_doubt_CC, count, rng))
        true_SC, final_SC = np.concatenate(true), np.concatenate(final)
        # The luck of the probe that trains on all items is yet to come, and part of the true scores.
        is_partial_C = num_items_C < num_final
        own_C = np.sqrt(is_partial_C * self._train_luck_C[measured] / num_final)
        true_SC = true_SC + own_C * rng.standard_normal(true_SC.shape)
        expected_C = weight_K @ np.stack([mean_C for mean_C, _, _ in beliefs])
        return Beliefs(true_SC.max(axis=1), true_SC[:, position_C], final_SC[:, position_C], expected_C[position_C])


def soften(contribution_CI: Array, softened_CI: Array) -> Array:
    """Return contributions to judge candidates by: half softened, with differences as large as those that are not.

    Args:
        softened_CI: the same with less luck, and with differences on another scale.
    """
    exact_CI, soft_CI = (some_CI - some_CI.mean(axis=0) for some_CI in (contribution_CI, softened_CI))
    power = float(np.square(soft_CI).sum())
    if not power:
        return contribution_CI
    slope = max(1.0, float((exact_CI * soft_CI).sum() / power))
    return np.asarray((contribution_CI + slope * softened_CI) / 2)


def step_variance(change_CI: Array) -> float:
    """Return the variance across candidates of a change of their scores, without the luck of the items.

    Args:
        change_CI: how each item's contribution changed.
    """
    num_candidates, num_items = change_CI.shape
    if num_candidates == 1 or num_items == 1:
        return 0.0
    differing_CI = change_CI - change_CI.mean(axis=0)
    luck = differing_CI.var(axis=1, ddof=1).sum() / num_items
    return max(0.0, float((np.square(differing_CI.mean(axis=1)).sum() - luck) / (num_candidates - 1)))


def estimate_luck(contribution_CI: Array, half_I: Array) -> float:
    """Return how many times larger the variance of scores is than if the items scored on were all of their luck.

    The two halves of a cross-validation are two measurements of each candidate whose luck differs: one half is trained
    on and the other scored on, and the reverse. Few candidates tell little, so `USUAL_LUCK` counts as some more.

    Args:
        contribution_CI: contributions of the train items.
        half_I: which half each is in, 0 or 1.
    """
    num_candidates = len(contribution_CI)
    if num_candidates == 1 or len(np.unique(half_I)) < 2:
        return USUAL_LUCK
    differing_CI = contribution_CI - contribution_CI.mean(axis=0)
    first_CI, second_CI = differing_CI[:, half_I == 0], differing_CI[:, half_I == 1]
    found = np.square(first_CI.mean(axis=1) - second_CI.mean(axis=1)).sum()
    expected = sum(half_CI.var(axis=1).sum() / max(1, half_CI.shape[1] - 1) for half_CI in (first_CI, second_CI))
    if expected == 0:
        return USUAL_LUCK
    num_freedom = num_candidates - 1
    return float((num_freedom * found / expected + NUM_USUAL * USUAL_LUCK) / (num_freedom + NUM_USUAL))


def _posterior(spread: float, error_CC: Array, score_C: Array) -> tuple[Array, Array, float]:
    """Return true scores' mean and covariance given their spread, and the logarithm of how likely the scores are."""
    prior_CC = spread**2 * np.eye(len(score_C)) + MEAN_SPREAD**2
    total_CC = prior_CC + error_CC
    solved = np.linalg.solve(total_CC, np.column_stack([score_C, prior_CC]))
    _, log_volume = np.linalg.slogdet(total_CC)
    fit = -0.5 * (log_volume + score_C @ solved[:, 0])
    return prior_CC @ solved[:, 0], prior_CC - prior_CC @ solved[:, 1:], float(fit)


def _draw(covariance_CC: Array, count: int, rng: np.random.Generator) -> Array:
    """Draw normal vectors around 0, `[count, C]`."""
    variance_C, axes_CC = np.linalg.eigh((covariance_CC + covariance_CC.T) / 2)
    normal_SC = rng.standard_normal((count, len(variance_C)))
    return np.asarray(normal_SC * np.sqrt(np.maximum(0.0, variance_C)) @ axes_CC.T)


def _nearest_covariance(matrix_CC: Array) -> Array:
    """Return the nearest matrix that is a covariance: rungs measured parts of it on different items."""
    variance_C, axes_CC = np.linalg.eigh(matrix_CC)
    return np.asarray(axes_CC * np.maximum(0.0, variance_C) @ axes_CC.T)


def _error(noise_CC: Array, num_items_C: Array, drift_C: Array) -> Array:
    """Return the covariance of the scores' errors; of two candidates' items, one has all that the other has."""
    return np.asarray(noise_CC / np.maximum.outer(num_items_C, num_items_C) + np.diag(drift_C))


def _noise(contribution_CI: Array) -> Array:
    """Return the covariance of one item's contributions, `[C, C]`.

    Differences between candidates are shrunk towards independent ones of equal variance, as if by some more items: few
    items may not differ at all, and fewer items than candidates leave directions without any variance.
    """
    num_candidates, num_items = contribution_CI.shape
    num_freedom, num_contrasts = max(1, num_items - 1), num_candidates - 1
    common_I = contribution_CI.mean(axis=0)
    differing_CI = contribution_CI - common_I
    differing_CI = differing_CI - differing_CI.mean(axis=1, keepdims=True)
    centring_CC = np.eye(num_candidates) - 1 / num_candidates
    usual = np.square(differing_CI).sum() / num_freedom / max(1, num_contrasts)
    alone = contribution_CI.var(axis=1).mean() + 1 / (4 * num_items)
    added = num_contrasts / 2 * usual + NUM_ADDED * alone
    total_CC = differing_CI @ differing_CI.T + added * centring_CC
    return np.asarray(total_CC / (num_freedom + num_contrasts / 2 + NUM_ADDED) + common_I.var())
