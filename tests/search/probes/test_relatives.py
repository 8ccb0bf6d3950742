"""Relatives: what tried snapshots say of untried ones is worth what it claims."""

import numpy as np
import pytest

from raysnap.search.probes.relatives import Relatives

NOISE_SD = 0.015


def draw_world(seed, *, num_snapshots=300, kind_sd=0.05, own_sd=0.03, slope=0.02):
    """Return traits, promises and true scores of a random population."""
    rng = np.random.default_rng(seed)
    trait_NT = np.stack([rng.integers(count, size=num_snapshots) for count in (3, 8)], axis=1)
    promise_N = rng.standard_normal(num_snapshots)
    effects = [kind_sd * rng.standard_normal(count) for count in (3, 8)]
    truth_N = sum(effect[trait_N] for effect, trait_N in zip(effects, trait_NT.T, strict=True))
    return trait_NT.astype(str), promise_N, truth_N + slope * promise_N + own_sd * rng.standard_normal(num_snapshots)


def observe(world, tried, seed):
    trait_NT, promise_N, truth_N = world
    noise = NOISE_SD * np.random.default_rng(seed + 1000).standard_normal(len(truth_N))
    return Relatives(trait_NT, promise_N, tried, (truth_N + noise)[tried], np.full(len(tried), NOISE_SD**2))


def test_the_expected_loss_is_what_is_lost_on_average():
    stated, actual = [], []
    for seed in range(16):
        world = draw_world(seed)
        relatives = observe(world, np.arange(40), seed)
        named = int(np.argmax(relatives.score_K))
        stated.append(relatives.expected_loss(named, seed))
        actual.append(max(0.0, world[2][40:].max() - world[2][named]))
    error = np.std(actual) / np.sqrt(len(actual))
    assert np.mean(stated) == pytest.approx(np.mean(actual), abs=3 * error)
    assert np.mean(actual) > 0.02, "there is something to lose"


def test_picked_relatives_are_far_better_than_others():
    gains = []
    for seed in range(8):
        world = draw_world(seed)
        picked = observe(world, np.arange(40), seed).pick_promising(12, seed)
        assert len(set(picked)) == 12 and min(picked) >= 40
        gains.append(world[2][picked].max() - world[2][40:52].max())
    assert np.mean(gains) > 2 * np.std(gains) / np.sqrt(len(gains)) and np.mean(gains) > 0.02


def test_nothing_untried_is_no_loss():
    world = draw_world(0, num_snapshots=20)
    relatives = observe(world, np.arange(20), 0)
    assert relatives.expected_loss(3, 0) == 0.0 and relatives.pick_promising(5, 0) == []


@pytest.mark.parametrize("num_tried", [1, 2])
def test_few_or_equal_scores_give_finite_answers(num_tried):
    trait_NT, promise_N, _ = draw_world(0, num_snapshots=10)
    relatives = Relatives(trait_NT, promise_N, np.arange(num_tried), np.zeros(num_tried), np.zeros(num_tried))
    assert 0 <= relatives.expected_loss(0, 0) < 1e-6
    assert len(relatives.pick_promising(3, 0)) == 3


def test_a_hopeless_kind_is_left_alone():
    trait_NT = np.array([["good"], ["bad"]] * 50)
    score_N = np.where(trait_NT[:, 0] == "good", 0.8, 0.2)
    tried = np.arange(20)
    relatives = Relatives(trait_NT, np.zeros(100), tried, score_N[tried], np.full(20, 1e-4))
    assert set(trait_NT[relatives.pick_promising(20, 0), 0]) == {"good"}
