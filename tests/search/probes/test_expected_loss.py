"""Expected loss: what is stated is what is lost, on candidates whose true scores are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from raysnap.search.probes.expected_loss import USUAL_LUCK, Evidence, estimate_luck, soften, step_variance


def simulate(num_candidates, num_items, spread, seed, drift=0.0):
    """Return true accuracies, and whether each candidate is right on each item; some items are harder than others."""
    rng = np.random.default_rng(seed)
    true = np.clip(0.6 + spread * rng.standard_normal(num_candidates), 0.02, 0.98)
    now = np.clip(true + drift * rng.standard_normal(num_candidates), 0.02, 0.98)
    noise = (rng.standard_normal((num_candidates, num_items)) + rng.standard_normal(num_items)) / np.sqrt(2)
    return true, (noise < norm.ppf(now)[:, None]).astype(np.float64)


def weigh(right, drift_variance, num_final, seed):
    """Return what one rung with all candidates says of them."""
    evidence = Evidence(len(right))
    evidence.add(range(len(right)), right, drift_variance)
    return evidence.weigh(range(len(right)), num_final, seed)


@pytest.mark.parametrize("num_items", [60, 250])
@pytest.mark.parametrize(("num_candidates", "spread"), [(2, 0.05), (8, 0.03), (36, 0.0), (36, 0.03), (36, 0.1)])
def test_the_stated_loss_covers_the_actual_one(num_candidates, spread, num_items):
    stated, actual = [], []
    for seed in range(30):
        true, right = simulate(num_candidates, num_items, spread, seed)
        beliefs = weigh(right, 0.0, 1000, seed)
        leader = int(beliefs.expected_C.argmax())
        stated.append(beliefs.loss_of(leader))
        actual.append(true.max() - true[leader])
    error = np.std(actual) / np.sqrt(len(actual))
    assert np.mean(actual) <= np.mean(stated) + 2 * error
    if spread and num_candidates > 2:
        assert np.mean(stated) <= 1.5 * np.mean(actual) + 0.004, "nor is it far too careful"


def test_survivors_are_not_taken_for_all():
    """Those chosen for their luck on some items are judged beside the dropped ones, on more items."""
    stated, actual = [], []
    for seed in range(40):
        true, right = simulate(36, 200, 0.02, seed)
        kept = np.argsort(-right[:, :60].mean(axis=1), kind="stable")[:6]
        evidence = Evidence(36)
        evidence.add(range(36), right[:, :60], 0.0)
        evidence.add(kept, right[kept], 0.0)
        beliefs = evidence.weigh(kept, 1000, seed)
        leader = int(beliefs.expected_C.argmax())
        stated.append(beliefs.loss_of(leader))
        actual.append(true.max() - true[kept[leader]])
    assert np.mean(actual) <= np.mean(stated) + 2 * np.std(actual) / np.sqrt(40)


def test_drift_is_covered_too():
    stated, actual = [], []
    for seed in range(40):
        true, right = simulate(24, 400, 0.04, seed, drift=0.04)
        beliefs = weigh(right, 0.04**2, 1000, seed)
        leader = int(beliefs.expected_C.argmax())
        stated.append(beliefs.loss_of(leader))
        actual.append(true.max() - true[leader])
    assert np.mean(actual) <= np.mean(stated) + 2 * np.std(actual) / np.sqrt(40)


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 60), st.floats(0, 0.2), st.integers(0, 99))
def test_losses_are_in_order(num_candidates, num_items, spread, seed):
    """Remaining items show at most what is lost; keeping more loses less, keeping all nothing."""
    _, right = simulate(num_candidates, num_items, spread, seed)
    beliefs = weigh(right, 0.0, 200, seed)
    losses = beliefs.losses_of_keeping()
    assert losses[0] <= beliefs.loss_of(0) + 0.01
    assert (np.diff(losses) <= 0).all() and losses[-1] == pytest.approx(0)


def test_once_all_items_are_used_no_more_can_be_gained():
    _, right = simulate(10, 300, 0.05, 0)
    ordered = right[np.argsort(-right.mean(axis=1))]
    assert weigh(ordered, 0.0, 300, 0).losses_of_keeping()[0] == pytest.approx(0, abs=1e-3)


def test_what_is_hard_for_all_costs_nothing():
    """Only differences count: items that all get wrong change the loss as much as items that all get right."""
    _, right = simulate(6, 200, 0.1, 0)
    hard, easy = (np.concatenate([right, np.full((6, 200), value)], axis=1) for value in (0.0, 1.0))
    losses = [weigh(some, 0.0, 1000, 0).loss_of(int(some.mean(axis=1).argmax())) for some in (hard, easy)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_single_candidate_loses_nothing():
    beliefs = weigh(np.array([[1.0, 0.0, 1.0]]), 0.0, 10, 0)
    assert beliefs.loss_of(0) == pytest.approx(0) and beliefs.losses_of_keeping() == pytest.approx(0)


def test_a_hopeless_majority_is_dropped_on_few_items():
    rng = np.random.default_rng(0)
    right = np.concatenate([rng.random((3, 60)) < 0.8, rng.random((40, 60)) < 0.2]).astype(float)
    order = np.argsort(-right.mean(axis=1), kind="stable")
    assert weigh(right[order], 0.0, 1000, 0).losses_of_keeping()[2] < 0.001


def test_no_difference_on_few_items_is_no_certainty():
    assert weigh(np.ones((2, 3)), 0.0, 1000, 0).loss_of(0) > 0.001


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_a_change_is_separated_from_the_luck_of_items(spread):
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        change = spread * rng.standard_normal((20, 1)) + 0.4 * rng.standard_normal((20, 200))
        found.append(step_variance(change))
    assert np.mean(found) == pytest.approx(spread**2, rel=0.3, abs=3e-4)


def test_equal_seeds_say_the_same():
    _, right = simulate(5, 50, 0.05, 0)
    assert weigh(right, 0.0, 100, 7).true_SC.tolist() == weigh(right, 0.0, 100, 7).true_SC.tolist()


@pytest.mark.parametrize("train_luck", [0.0, 0.05, 0.1])
def test_the_luck_of_train_items_is_seen_between_halves(train_luck):
    """Each half's probes have a luck of their own, which all items scored by them share."""
    found = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        half = np.arange(200) % 2
        rates = 0.6 + train_luck * rng.standard_normal((30, 2))
        found.append(estimate_luck((rng.random((30, 200)) < rates[:, half]).astype(float), half))
    item_variance = 0.24 / 100
    weight = 29 / 37
    expected = weight * (1 + train_luck**2 / item_variance) + (1 - weight) * USUAL_LUCK
    assert np.mean(found) == pytest.approx(expected, rel=0.15)


def test_nothing_is_known_of_the_luck_of_one_candidate_or_half():
    assert estimate_luck(np.ones((1, 10)), np.arange(10) % 2) == USUAL_LUCK
    assert estimate_luck(np.ones((3, 10)), np.zeros(10)) == USUAL_LUCK
    assert estimate_luck(np.ones((3, 10)), np.arange(10) % 2) == USUAL_LUCK


def test_softened_contributions_differ_as_much_as_exact_ones():
    rng = np.random.default_rng(0)
    true, right = simulate(12, 400, 0.1, 0)
    softened = 0.3 * (true[:, None] + 0.05 * rng.standard_normal(right.shape))
    found = soften(right, softened)
    assert np.ptp(found.mean(axis=1)) == pytest.approx(np.ptp(right.mean(axis=1)), rel=0.3)
    errors = [np.std(some.mean(axis=1) - some.mean() - (true - true.mean())) for some in (found, right)]
    assert errors[0] < errors[1]


def test_where_softened_ones_are_equal_the_exact_ones_judge():
    _, right = simulate(5, 50, 0.1, 0)
    assert soften(right, np.full(right.shape, 0.7)) is right
