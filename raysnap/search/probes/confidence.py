"""How sure a ranking is: a paired bootstrap over items says who can't be told from another, and who stays in a rung."""

from __future__ import annotations

import numpy as np

NUM_RESAMPLES = 2000
LEVEL = 0.95
RESAMPLES_ITEMS = 2**21

# The part of a rung's items in a resample that asks who will lead in the end. There is chance in the scores so far, and
# as much in the last ones, of probes that train on more items: their difference varies twice as much as either, and so
# do resamples of half of the items. Among equally good candidates this errs as often as it says, where resamples of all
# items erred three times as often (docs/search_quality.md).
FORECAST_SHARE = 0.5


def tied_with(
    best_I: np.ndarray, others_CI: np.ndarray, seed: int, confidence: float = LEVEL, drawn_share: float = 1.0
) -> np.ndarray:
    """For each other candidate whether its score may well be the best's, bool `[C]`.

    A score is the mean of an item's parts in it (of an accuracy: right or not). The same resamples of the items (with
    replacement) are drawn for all candidates; a candidate is tied when the best is not ahead in at least `confidence`
    of them. To the items come two more, one won and one lost by the usual lead, as few items would tell too much:
    four that the best alone has right do not, five do, as in an exact sign test at 95 %.

    Args:
        drawn_share: the part of the items that a resample takes; fewer vary more.
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
        # Counting all rows at once, each in bins of its own, is four times as fast as multinomial draws.
        drawn_BK += num_items * np.arange(num_resamples)[:, None]
        weights_BI = np.bincount(drawn_BK.ravel(), minlength=num_resamples * num_items).reshape(num_resamples, -1)
        # Whole numbers far below 2**53: exact in float64, whose matrix product is many times faster.
        num_ahead_C += (lead_CI @ weights_BI.T.astype(np.float64) > 0).sum(axis=1)
    return num_ahead_C / NUM_RESAMPLES < confidence


def find_survivors(
    ordered_CI: np.ndarray, num_kept: int, confidence: float, num_decisions: int, seed: int
) -> tuple[np.ndarray, float]:
    """Whether each candidate stays, bool `[C]`: the first `num_kept`, and who can't be told from the last of these.

    Args:
        ordered_CI: the candidates' parts by item, the best candidate first.
        confidence: how sure this decision and those to come must be together that whoever they drop will be behind the
            last of those they keep on all items; 0 keeps `num_kept`.
        num_decisions: how many these are. Each gets its share, as if they erred independently; one that drops nobody
            can't err, and leaves all to the others.

    Returns:
        Who stays, and how sure the later decisions must be together.
    """
    is_kept_C = np.arange(len(ordered_CI)) < num_kept
    level = confidence ** (1 / num_decisions)
    if confidence > 0 and not is_kept_C.all():
        is_kept_C[num_kept:] = tied_with(ordered_CI[num_kept - 1], ordered_CI[num_kept:], seed, level, FORECAST_SHARE)
        confidence = confidence if is_kept_C.all() else confidence / level
    return is_kept_C, confidence
