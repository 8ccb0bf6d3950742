"""Say what naming or dropping candidates may cost on new items: true scores as draws around a common mean.

A candidate's true score is the one that it would have on endless new items, with a probe that trained on all train
items. The scores so far measure it with two errors: the luck of the items so far, whose covariance the paired
contributions tell, and the luck of a probe that has trained on few items, its drift. True scores themselves are taken
as normal draws around a common mean, with a spread that the same scores tell (empirical Bayes; the spread is averaged
over what it may be, not set to its likeliest value). All of this concerns differences between candidates, so a question
that is hard for all of them costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from raysnap.search.probes.score import Array

NUM_DRAWS = 4096
# Standard deviations of true scores that are considered: all up to 0.05 are as likely before a score is seen, and
# larger ones less. Below 0.002 candidates are equal.
SPREADS_K = np.concatenate([[0.0], np.geomspace(0.002, 0.5, 40)])
USUAL_SPREAD = 0.05
LOG_PRIOR_K = np.log(np.gradient(SPREADS_K)) - np.log1p((SPREADS_K / USUAL_SPREAD) ** 2)
# Items on which candidates differ as if they were independent, added to those seen.
NUM_ADDED = 2


@dataclass(frozen=True)
class Beliefs:
    """Draws from what is believed about some candidates, relative to their mean.

    Attributes:
        true_SC: draws of true scores.
        final_SC: draws of what their expected values will be once all items have been used; less spread than true
            scores, as even all items leave doubt.
        expected_C: expected true scores.
    """

    true_SC: Array
    final_SC: Array
    expected_C: Array

    def loss_of(self, candidate: int) -> float:
        """Return how much better than this candidate the best one is expected to be."""
        return float(self.true_SC.max(axis=1).mean() - self.expected_C[candidate])

    def gain_of_rest(self) -> float:
        """Return how much better a candidate the remaining items are expected to find."""
        return max(0.0, float(self.final_SC.max(axis=1).mean() - self.expected_C.max()))

    def losses_of_keeping(self) -> tuple[Array, Array]:
        """Return what is lost by keeping only the first candidates, for each number of them.

        Returns:
            Two arrays `[C]`: how much better the best of all is expected to be than the best of those kept, and the
            same for what the remaining items could show of it.
        """
        return tuple(
            drawn_SC.max(axis=1).mean() - np.maximum.accumulate(drawn_SC, axis=1).mean(axis=0)
            for drawn_SC in (self.true_SC, self.final_SC)
        )


def weigh(contribution_CI: Array, drift_variance: float, num_final: int, seed: int) -> Beliefs:
    """Return what the contributions of the items so far say about true scores.

    Args:
        contribution_CI: each candidate's contributions by item; its score is their mean. Scores are like accuracies: a
            difference of 0.01 is small, one of 0.3 is large.
        drift_variance: the variance, across candidates, of how their scores will still change as probes train on more
            items, apart from the luck of the items scored on.
        num_final: items that will have been used in the end.
    """
    num_candidates, num_items = contribution_CI.shape
    rng = np.random.default_rng(seed)
    contrasts_JC = _contrasts(num_candidates)
    along_JI = contrasts_JC @ contribution_CI
    noise_J, axes_JJ = np.linalg.eigh(_noise(along_JI, contribution_CI))
    contrasts_JC, along_J = axes_JJ.T @ contrasts_JC, axes_JJ.T @ along_JI.mean(axis=1)
    error_J = noise_J / num_items + drift_variance
    final_error_J = np.minimum(error_J, noise_J / max(num_items, num_final))
    variance_K1 = SPREADS_K[:, None] ** 2
    total_KJ = variance_K1 + error_J
    fit_K = -0.5 * (np.log(total_KJ) + along_J**2 / total_KJ).sum(axis=1)
    weight_K = softmax(fit_K + LOG_PRIOR_K)
    mean_KJ = along_J * variance_K1 / total_KJ
    doubt_KJ, final_doubt_KJ = (variance_K1 * error / (variance_K1 + error) for error in (error_J, final_error_J))
    spread_S = rng.choice(len(SPREADS_K), size=NUM_DRAWS, p=weight_K)
    normal_SJ, final_normal_SJ = rng.standard_normal((2, NUM_DRAWS, num_candidates - 1))
    final_SJ = mean_KJ[spread_S] + np.sqrt(np.maximum(0.0, doubt_KJ - final_doubt_KJ))[spread_S] * normal_SJ
    true_SJ = final_SJ + np.sqrt(final_doubt_KJ)[spread_S] * final_normal_SJ
    return Beliefs(true_SJ @ contrasts_JC, final_SJ @ contrasts_JC, weight_K @ mean_KJ @ contrasts_JC)


def step_variance(change_CI: Array) -> float:
    """Return the variance across candidates of a change of their scores, without the luck of the items.

    Args:
        change_CI: how each item's contribution changed.
    """
    num_candidates, num_items = change_CI.shape
    if num_candidates == 1 or num_items == 1:
        return 0.0
    along_JI = _contrasts(num_candidates) @ change_CI
    luck = along_JI.var(axis=1, ddof=1).mean() / num_items
    return max(0.0, float(np.square(along_JI.mean(axis=1)).mean() - luck))


def _contrasts(num_candidates: int) -> Array:
    """Return orthonormal differences between candidates, `[C - 1, C]`: each row sums to 0."""
    centred_CC = np.eye(num_candidates) - 1 / num_candidates
    return np.linalg.qr(centred_CC[:, :-1])[0].T


def _noise(along_JI: Array, contribution_CI: Array) -> Array:
    """Return the covariance of one item's contributions along the contrasts, `[J, J]`.

    It is shrunk towards independent candidates of equal variance, as if by some more items: few items may not differ
    at all, and fewer items than candidates leave directions without any variance.
    """
    num_contrasts, num_items = along_JI.shape
    centred_JI = along_JI - along_JI.mean(axis=1, keepdims=True)
    num_freedom = max(1, num_items - 1)
    usual = np.square(centred_JI).sum() / num_freedom / max(1, num_contrasts)
    alone = contribution_CI.var(axis=1).mean() + 1 / (4 * num_items)
    added = num_contrasts / 2 * usual + NUM_ADDED * alone
    num_all = num_freedom + num_contrasts / 2 + NUM_ADDED
    return np.asarray((centred_JI @ centred_JI.T + added * np.eye(num_contrasts)) / num_all)
