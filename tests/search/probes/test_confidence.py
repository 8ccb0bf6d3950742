"""Confidence: equal candidates tie, clearly worse ones don't, and a tie means what it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysnap.search.probes.confidence import tied_with


def right(rate, num_items, seed):
    return np.random.default_rng(seed).random(num_items) < rate


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 2**31))
def test_a_candidate_right_where_the_best_is_is_tied(is_right, seed):
    best = np.array(is_right)
    assert tied_with(best, np.stack([best, best]), seed).tolist() == [True, True]


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(0, 2**31))
def test_a_candidate_better_than_the_best_is_tied(is_right, seed):
    best = np.array(is_right)
    assert tied_with(best, (best | True)[None], seed).all()


@pytest.mark.parametrize("num_items", [100, 1000])
def test_clearly_worse_is_not_tied_and_slightly_worse_is(num_items):
    best = right(0.9, num_items, 0)
    worse, slightly = best.copy(), best.copy()
    worse[np.flatnonzero(best)[: num_items // 5]] = False
    slightly[np.flatnonzero(best)[:2]] = False
    assert tied_with(best, np.stack([worse, slightly]), 0).tolist() == [False, True]


@pytest.mark.parametrize(("num_items", "is_told"), [(1, False), (4, False), (5, True), (20, True)])
def test_few_items_do_not_tell_even_who_is_wrong_on_all_of_them(num_items, is_told):
    """As in an exact sign test: 5 wins without a loss are below 5 %, 4 are not."""
    assert tied_with(np.ones(num_items), np.zeros((1, num_items)), 0).tolist() == [not is_told]


def test_the_lead_that_is_told_grows_with_the_noise_around_it():
    steady = np.ones(100, dtype=bool)
    steady_other = steady.copy()
    steady_other[:6] = False
    noisy, noisy_other = right(0.5, 100, 1), right(0.5, 100, 2)
    noisy_other = noisy_other & (np.cumsum(noisy_other) <= noisy.sum() - 6)
    assert noisy.sum() - noisy_other.sum() == 6
    assert not tied_with(steady, steady_other[None], 0)[0]
    assert tied_with(noisy, noisy_other[None], 0)[0]


def test_every_candidate_is_judged_by_the_same_resamples():
    best, others = right(0.8, 50, 0), np.stack([right(rate, 50, 1) for rate in (0.9, 0.7, 0.5, 0.2)])
    together = tied_with(best, others, 3)
    assert [tied_with(best, other[None], 3)[0] for other in others] == together.tolist()
    assert together.tolist() == tied_with(best, others, 3).tolist()
    assert tied_with(best, others[::-1], 3).tolist() == together[::-1].tolist()


def test_no_other_candidates_give_no_ties():
    assert tied_with(right(0.5, 10, 0), np.zeros((0, 10), dtype=bool), 0).shape == (0,)


def test_equal_candidates_are_separated_as_the_level_says():
    """One of two equals leads by chance; a one-sided test at 95 % on that lead errs in about 10 % of all draws."""
    told = 0
    for draw in range(100):
        one, other = right(0.7, 150, [draw, 0]), right(0.7, 150, [draw, 1])
        best, second = (one, other) if one.sum() >= other.sum() else (other, one)
        told += not tied_with(best, second[None], draw)[0]
    assert 2 <= told <= 22


def test_a_true_lead_of_fifteen_points_is_told_in_most_draws():
    told = sum(
        not tied_with(right(0.8, 200, [draw, 0]), right(0.65, 200, [draw, 1])[None], draw)[0] for draw in range(30)
    )
    assert told >= 24
