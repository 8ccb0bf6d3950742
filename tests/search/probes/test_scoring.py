"""Many candidates in one call: each gets the score it has alone, whatever the others, their order and the threads."""

import numpy as np
import pytest
import torch

from raysnap.search.probes import proxies
from raysnap.search.probes.proxies import PROXIES, score_candidates
from raysnap.search.probes.score import ProbeBatch
from tests.support.search_stores import one_thread, scored

WIDTHS = (24, 64, 24, 90, 64)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


def drawn(num_train=60, num_test=25, widths=WIDTHS, num_classes=4, seed=0):
    """Features of candidates of several widths, whose classes lie ever further apart, and the items' labels."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_train + num_test - num_classes)])
    features = []
    for number, width in enumerate(widths):
        centres = 0.15 * (number + 1) * rng.standard_normal((num_classes, width))
        features.append((centres[labels] + rng.standard_normal((len(labels), width))).astype(np.float32))
    trains, tests = [one[:num_train] for one in features], [one[num_train:] for one in features]
    return trains, labels[:num_train], tests, labels[num_train:]


def bits(score):
    return score.value, score.loss, score.contribution_I.tobytes()


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_score_does_not_depend_on_the_other_candidates(proxy):
    trains, labels, tests, test_labels = drawn()
    together = [bits(score) for score in score_candidates(proxy, trains, labels, tests, test_labels, 3)]
    alone = [
        bits(scored(proxy, train, labels, test, test_labels, 3)) for train, test in zip(trains, tests, strict=True)
    ]
    assert together == alone
    order = [3, 0, 4, 1]
    some = score_candidates(proxy, [trains[k] for k in order], labels, [tests[k] for k in order], test_labels, 3)
    assert [bits(score) for score in some] == [together[k] for k in order]
    assert len(set(together)) == len(WIDTHS), "a law about equal scores needs scores that differ"


@pytest.mark.parametrize(("num_train", "width"), [(19, 77), (61, 512), (150, 130), (101, 45), (300, 600), (420, 512)])
def test_lock_step_scores_equal_those_of_one_by_one(num_train, width):
    """Odd sizes: each candidate's numbers begin anywhere within a cache line, and some converge before others."""
    trains, labels, tests, test_labels = drawn(num_train=num_train, widths=(width,) * 7, num_classes=5)
    together = score_candidates("linear", trains, labels, tests, test_labels, 0)
    alone = [scored("linear", train, labels, test, test_labels) for train, test in zip(trains, tests, strict=True)]
    assert [bits(score) for score in together] == [bits(score) for score in alone]


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_score_is_the_same_to_the_bit_on_one_thread_and_on_two(proxy, monkeypatch):
    trains, labels, tests, test_labels = drawn(num_train=150, widths=(96, 200, 96))
    expected = [bits(score) for score in score_candidates(proxy, trains, labels, tests, test_labels, 0)]
    monkeypatch.setattr(proxies, "THREAD_NUMBERS", 1)
    torch.set_num_threads(2)
    try:
        found = [bits(score) for score in score_candidates(proxy, trains, labels, tests, test_labels, 0)]
        assert torch.get_num_threads() == 2, "the caller's threads are given back"
    finally:
        torch.set_num_threads(1)
    assert found == expected


@pytest.mark.parametrize("proxy", PROXIES)
def test_equal_candidates_have_equal_scores(proxy):
    trains, labels, tests, test_labels = drawn(widths=(30, 40))
    found = score_candidates(
        proxy, [trains[0], *trains, trains[0].copy()], labels, [tests[0], *tests, tests[0]], test_labels, 0
    )
    assert bits(found[0]) == bits(found[1]) == bits(found[3]) != bits(found[2])


@pytest.mark.parametrize("proxy", PROXIES)
def test_without_candidates_there_are_no_scores(proxy):
    assert score_candidates(proxy, [], np.array([0, 1]), [], np.array([0]), 0) == []


@pytest.mark.parametrize("proxy", ["linear", "sgd_linear"])
def test_candidates_in_lock_step_score_as_alone(proxy):
    trains, labels, tests, test_labels = drawn(num_train=80, num_test=200, widths=(48,) * 5)
    trains[1], tests[1] = np.ones_like(trains[1]), np.ones_like(tests[1])
    train_BND, test_BTD = (torch.from_numpy(np.stack(features)) for features in (trains, tests))
    batch = ProbeBatch(train_BND, np.tile(labels, (5, 1)), test_BTD, np.tile(test_labels, (5, 1)))
    found = PROXIES[proxy](batch, 0)
    expected = score_candidates(proxy, trains, labels, tests, test_labels, 0)
    assert [one.loss for one in found] == pytest.approx([one.loss for one in expected], rel=1e-3)
    assert [one.value for one in found] == pytest.approx([one.value for one in expected], abs=0.011)


@pytest.mark.parametrize("proxy", ["linear", "sgd_linear", "knn"])
def test_two_items_are_enough_to_train_on(proxy):
    train = np.array([[1.0, 0.0, 2.0], [-1.0, 0.5, 2.0]], dtype=np.float32)
    score = scored(proxy, train, np.array([4, 9]), train, np.array([4, 9]))
    assert score.value == 1.0 and 0 < score.loss < 1


@pytest.mark.parametrize("exponent", [-30, -10, 10, 30])
def test_linear_does_not_depend_on_the_features_scale(exponent):
    (train,), labels, (test,), test_labels = drawn(widths=(40,))
    expected = scored("linear", train, labels, test, test_labels)
    factor = np.float32(10.0**exponent)
    found = scored("linear", train * factor, labels, test * factor, test_labels)
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert np.array_equal(found.contribution_I, expected.contribution_I)
