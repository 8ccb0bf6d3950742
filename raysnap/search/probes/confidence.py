"""Say how certain a ranking is: a paired bootstrap over items finds statistical ties, and survivors of a rung."""

from __future__ import annotations

import numpy as np

NUM_RESAMPLES = 2000
LEVEL = 0.95
RESAMPLES_ITEMS = 2**21

# The part of a rung's items in a resample that forecasts which candidate leads in the end. The scores so far vary, and
# so do the last ones, of probes that train on more items: their difference varies twice as much as either, and so do
# resamples of half of the items. Among equally good candidates this errs as often as it says, where resamples of all
# items erred three times as often (docs/search_quality.md).
FORECAST_SHARE = 0.5


def tied_with(
    best_I: np.ndarray, others_CI: np.ndarray, seed: int, confidence: float = LEVEL, drawn_share: float = 1.0
) -> np.ndarray:
    """Return for each other candidate whether it is statistically tied with the best, bool `[C]`.

    A score is the mean of the items' contributions (to an accuracy: right or not). The same resamples of the items,
    with replacement, are drawn for all candidates; a candidate is tied when the best is not ahead in at least
    `confidence` of them. Two items are added, one won and one lost by the usual lead, as few items would decide too
    early: four items that only the best has right are not enough, five are, as in an exact sign test at 95 %.

    Args:
        drawn_share: the part of the items that a resample takes; smaller ones vary more.
    """
    if len(others_CI) == 0:
        return np.zeros(0, dtype=bool)
    lead_CI = best_I.astype(np.float64) - others_CI.astype(np.float64)
    num_leads_C = np.maximum(1, np.count_nonzero(lead_CI, axis=1))
    usual_C1 = np.sqrt((lead_CI**2).sum(axis=1) / num_leads_C)[:, None]
    lead_CI = np.concatenate([lead_CI, usual_C1, -usual_C1], axis=1)
    num_items = lead_CI.shape[1]
    num_drawn = max(1, round(drawn_share * num_items))
    rng = np.random.default_rng(seed)
    num_ahead_C = np.zeros(len(lead_CI))
    resamples_at_once = max(1, RESAMPLES_ITEMS // num_items)
    for start in range(0, NUM_RESAMPLES, resamples_at_once):
        num_resamples = min(resamples_at_once, NUM_RESAMPLES - start)
        drawn_BK = rng.integers(num_items, size=(num_resamples, num_drawn))
        # Counting all rows at once, each in its own bins, is four times as fast as multinomial draws.
        drawn_BK += num_items * np.arange(num_resamples)[:, None]
        weights_BI = np.bincount(drawn_BK.ravel(), minlength=num_resamples * num_items).reshape(num_resamples, -1)
        # Whole numbers far below 2**53: exact in float64, whose matrix product is many times faster.
        num_ahead_C += (lead_CI @ weights_BI.T.astype(np.float64) > 0).sum(axis=1)
    return num_ahead_C / NUM_RESAMPLES < confidence


def find_survivors(
    ordered_CI: np.ndarray, num_kept: int, confidence: float, num_decisions: int, seed: int
) -> tuple[np.ndarray, float]:
    """Decide which candidates stay: the first `num_kept`, and those statistically tied with the last of these.

    Args:
        ordered_CI: the candidates' contributions by item, the best candidate first.
        confidence: probability with which this decision and the later ones together must be right that every candidate
            they drop ends behind the last one that they keep on all items; 0 keeps `num_kept`.
        num_decisions: how many decisions these are. Each gets its share, as if they erred independently; one that drops
            no candidate can't err, and leaves its share to the others.

    Returns:
        Which candidates stay, bool `[C]`, and the confidence that the later decisions must have together.
    """
    is_kept_C = np.arange(len(ordered_CI)) < num_kept
    level = confidence ** (1 / num_decisions)
    if confidence > 0 and not is_kept_C.all():
        is_kept_C[num_kept:] = tied_with(ordered_CI[num_kept - 1], ordered_CI[num_kept:], seed, level, FORECAST_SHARE)
        confidence = confidence if is_kept_C.all() else confidence / level
    return is_kept_C, confidence
