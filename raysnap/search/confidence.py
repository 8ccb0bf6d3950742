"""How sure a ranking is: a paired bootstrap over test items says who can't be told from the best."""

from __future__ import annotations

import numpy as np

NUM_RESAMPLES = 2000
LEVEL = 0.95


def tied_with(best_is_right_T: np.ndarray, others_is_right_CT: np.ndarray, seed: int) -> np.ndarray:
    """For each other candidate whether its accuracy may well be the best's, bool `[C]`.

    The same resamples of the test items (with replacement) are drawn for all candidates; a candidate is tied when the
    best is not ahead in at least 95 % of them.
    """
    num_items = len(best_is_right_T)
    if len(others_is_right_CT) == 0:
        return np.zeros(0, dtype=bool)
    rng = np.random.default_rng(seed)
    weights_BT = rng.multinomial(num_items, np.full(num_items, 1 / num_items), size=NUM_RESAMPLES)
    # Whole numbers far below 2**53: exact in float64, whose matrix product is many times faster.
    lead_CT = best_is_right_T.astype(np.float64) - others_is_right_CT.astype(np.float64)
    is_ahead_CB = lead_CT @ weights_BT.T.astype(np.float64) > 0
    return is_ahead_CB.mean(axis=1) < LEVEL
