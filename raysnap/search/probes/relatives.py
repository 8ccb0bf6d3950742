"""Forecast the scores of snapshots that were not tried from those of their relatives that were.

Scores are draws of a normal model: a common mean, an effect of each trait's value (an architecture, a base, a dataset),
a slope along the promise, and what is a snapshot's own, seen through the noise of the items. How much each part matters
is estimated from the scores, by maximum a posteriori; draws of all scores given the observed ones follow by Matheron's
rule (https://arxiv.org/abs/2002.09309, equation 6).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

NUM_DRAWS = 1024
DRAWS_AT_ONCE = 128
# Before any score is seen, each part is thought to move scores by this share of their spread, within a factor of e.
USUAL_SD, LOG_SD_SPREAD = 0.4, 1.0
LOG_SD_BOUNDS = (-5.0, 2.0)


@dataclass(frozen=True)
class Relatives:
    """What is known of some snapshots, and the scores of those that were tried.

    Attributes:
        trait_NT: each snapshot's traits; equal values in a column are a trait in common.
        promise_N: a number that may move with the score, in standard deviations.
        tried_K: positions of the snapshots that were tried.
        score_K: their scores, up to a common constant.
        variance_K: variances of these scores' noise.
    """

    trait_NT: np.ndarray
    promise_N: np.ndarray
    tried_K: np.ndarray
    score_K: np.ndarray
    variance_K: np.ndarray

    def expected_loss(self, named: int, seed: int) -> float:
        """Return by how much the best untried snapshot is expected to score above the tried one at position `named`.

        Draws in which none does count as 0.
        """
        untried = self._untried
        if len(untried) == 0:
            return 0.0
        gains = [np.maximum(0.0, draw_ND[untried].max(axis=0) - draw_ND[named]) for draw_ND in self._draws(seed)]
        return float(np.mean(gains))

    def pick_promising(self, count: int, seed: int) -> list[int]:
        """Return the positions of up to `count` untried snapshots: those that are the best in most draws."""
        untried = self._untried
        if len(untried) == 0:
            return []
        best = np.concatenate([draw_ND[untried].argmax(axis=0) for draw_ND in self._draws(seed)])
        num_times = np.bincount(best, minlength=len(untried))
        return [int(position) for position in untried[np.argsort(-num_times, kind="stable")[:count]]]

    @cached_property
    def _untried(self) -> np.ndarray:
        return np.setdiff1d(np.arange(len(self.promise_N)), self.tried_K)

    def _draws(self, seed: int) -> Iterator[np.ndarray]:
        """Yield draws of all scores given those observed, `[N, DRAWS_AT_ONCE]` at a time."""
        scale = max(float(self.score_K.std()), float(np.sqrt(self.variance_K.mean())), 1e-9)
        score_K, variance_K = (self.score_K - self.score_K.mean()) / scale, self.variance_K / scale**2
        sd_P = _fit(np.stack([*self._parts(self.tried_K)]).astype(float), score_K, variance_K)
        *trait_sds, promise_sd, own_sd = sd_P
        kernel_NK = np.ones((len(self.promise_N), len(score_K)))
        for part_NK, sd in zip(self._parts(np.arange(len(self.promise_N))), sd_P, strict=True):
            kernel_NK += sd**2 * part_NK
        factor = cho_factor(kernel_NK[self.tried_K] + np.diag(variance_K))
        rng = np.random.default_rng(seed)
        for _ in range(NUM_DRAWS // DRAWS_AT_ONCE):
            draw_ND = own_sd * rng.standard_normal((len(self.promise_N), DRAWS_AT_ONCE))
            draw_ND += rng.standard_normal(DRAWS_AT_ONCE)
            draw_ND += promise_sd * self.promise_N[:, None] * rng.standard_normal(DRAWS_AT_ONCE)
            for code_N, sd in zip(self._code_TN, trait_sds, strict=True):
                draw_ND += sd * rng.standard_normal((code_N.max() + 1, DRAWS_AT_ONCE))[code_N]
            noise_KD = np.sqrt(variance_K)[:, None] * rng.standard_normal((len(score_K), DRAWS_AT_ONCE))
            draw_ND += kernel_NK @ cho_solve(factor, score_K[:, None] - draw_ND[self.tried_K] - noise_KD)
            yield scale * draw_ND

    @cached_property
    def _code_TN(self) -> np.ndarray:  # noqa: N802 - dimensions
        return np.stack([np.unique(value_N, return_inverse=True)[1] for value_N in self.trait_NT.T])

    def _parts(self, position_M: np.ndarray) -> Iterator[np.ndarray]:
        """Yield for each part of the model the correlation of these snapshots with the tried ones, `[M, K]`."""
        for code_N in self._code_TN:
            yield code_N[position_M, None] == code_N[self.tried_K]
        yield np.outer(self.promise_N[position_M], self.promise_N[self.tried_K])
        yield position_M[:, None] == self.tried_K


def _fit(part_PKK: np.ndarray, score_K: np.ndarray, variance_K: np.ndarray) -> np.ndarray:
    """Return the most probable standard deviation of each part, given standardised scores and their noise."""

    def misfit(log_sd_P: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the negative log of the posterior density, up to a constant, and its gradient."""
        variance_P = np.exp(2 * log_sd_P)
        factor = cho_factor(1.0 + np.tensordot(variance_P, part_PKK, axes=1) + np.diag(variance_K), lower=True)
        inverse_KK = cho_solve(factor, np.eye(len(score_K)))
        weight_K = inverse_KK @ score_K
        slope_P = variance_P * np.tensordot(part_PKK, inverse_KK - np.outer(weight_K, weight_K))
        surprise_P = (log_sd_P - usual_P) / LOG_SD_SPREAD
        value = score_K @ weight_K / 2 + np.log(np.diag(factor[0])).sum() + surprise_P @ surprise_P / 2
        return float(value), slope_P + surprise_P / LOG_SD_SPREAD

    usual_P = np.full(len(part_PKK), np.log(USUAL_SD))
    bounds = [LOG_SD_BOUNDS] * len(usual_P)
    found = minimize(misfit, usual_P, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(np.exp(found.x))
