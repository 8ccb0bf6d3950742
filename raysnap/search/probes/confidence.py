"""Say how certain a ranking is: an interval for each score, and a paired bootstrap over items that finds ties."""

from __future__ import annotations

import math

import numpy as np

NUM_RESAMPLES = 2000
LEVEL = 0.95
NORMAL_QUANTILE = 1.959964  # of the middle 95 %
RESAMPLES_ITEMS = 2**21


def interval_of(contribution_I: np.ndarray, *, is_share: bool) -> tuple[float, float]:
    """Return the 95 % interval of a score, which is the mean of its items' contributions.

    Args:
        is_share: whether each item is right or not: then it is Wilson's interval, which few items don't mislead.
    """
    num_items, mean = len(contribution_I), float(contribution_I.mean())
    z2 = NORMAL_QUANTILE**2
    if not is_share:
        half = NORMAL_QUANTILE * float(contribution_I.std()) / math.sqrt(num_items)
        return mean - half, mean + half
    middle = (mean + z2 / (2 * num_items)) / (1 + z2 / num_items)
    spread = mean * (1 - mean) / num_items + z2 / (4 * num_items**2)
    half = NORMAL_QUANTILE * math.sqrt(spread) / (1 + z2 / num_items)
    return max(0.0, middle - half), min(1.0, middle + half)


def tied_with(best_I: np.ndarray, others_CI: np.ndarray, seed: int) -> np.ndarray:
    """Return for each other candidate whether it is statistically tied with the best, bool `[C]`.

    A score is the mean of the items' contributions (to an accuracy: right or not). The same resamples of the items,
    with replacement, are drawn for all candidates; a candidate is tied when the best is not ahead in at least
    95 % of them. Two items are added, one won and one lost by the usual lead, as few items would decide too
    early: four items that only the best has right are not enough, five are, as in an exact sign test at 95 %.
    """
    if len(others_CI) == 0:
        return np.zeros(0, dtype=bool)
    lead_CI = best_I.astype(np.float64) - others_CI.astype(np.float64)
    num_leads_C = np.maximum(1, np.count_nonzero(lead_CI, axis=1))
    usual_C1 = np.sqrt((lead_CI**2).sum(axis=1) / num_leads_C)[:, None]
    lead_CI = np.concatenate([lead_CI, usual_C1, -usual_C1], axis=1)
    num_items = lead_CI.shape[1]
    rng = np.random.default_rng(seed)
    num_ahead_C = np.zeros(len(lead_CI))
    resamples_at_once = max(1, RESAMPLES_ITEMS // num_items)
    for start in range(0, NUM_RESAMPLES, resamples_at_once):
        num_resamples = min(resamples_at_once, NUM_RESAMPLES - start)
        drawn_BK = rng.integers(num_items, size=(num_resamples, num_items))
        # Counting all rows at once, each in its own bins, is four times as fast as multinomial draws.
        drawn_BK += num_items * np.arange(num_resamples)[:, None]
        weights_BI = np.bincount(drawn_BK.ravel(), minlength=num_resamples * num_items).reshape(num_resamples, -1)
        # Whole numbers far below 2**53: exact in float64, whose matrix product is many times faster.
        num_ahead_C += (lead_CI @ weights_BI.T.astype(np.float64) > 0).sum(axis=1)
    return num_ahead_C / NUM_RESAMPLES < LEVEL
