"""Cross-validation: each train item is scored once, by a probe that has not seen it, and folds are fair."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysnap.search.probes.cross_validation import assign_folds, cross_validate
from raysnap.search.probes.proxies import ProbeSet, score_candidates


def clusters(num_items, num_classes, distance, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(num_items) % num_classes
    centres = np.random.default_rng(99).standard_normal((num_classes, 6)) * distance
    return (centres[labels] + rng.standard_normal((num_items, 6))).astype(np.float32), labels


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 5))
def test_folds_are_even_in_all_and_in_each_class(labels, num_folds):
    labels = np.array(labels)
    folds = assign_folds(labels, num_folds)
    for some in (folds, *(folds[labels == label] for label in set(labels.tolist()))):
        counts = np.bincount(some, minlength=num_folds)
        assert counts.sum() == len(some) and counts.max() - counts.min() <= 1


@pytest.mark.parametrize("proxy", ["linear", "sgd_linear", "knn"])
def test_scores_are_those_of_probes_without_the_fold(proxy):
    train, train_labels = clusters(24, 3, 1.0, 0)
    test, test_labels = clusters(9, 3, 1.0, 1)
    (score,) = cross_validate(proxy, ProbeSet([train], train_labels, [test], test_labels), 4, 0)
    folds, by_hand, softened = assign_folds(train_labels, 4), np.zeros(33), np.zeros(33)
    for fold in range(4):
        held = folds == fold
        both = np.concatenate([train[held], test])
        labels = np.concatenate([train_labels[held], test_labels])
        (one,) = score_candidates(proxy, [train[~held]], train_labels[~held], [both], labels, 0)
        by_hand[:24][held] = one.contribution_I[: held.sum()]
        by_hand[24:] += one.contribution_I[held.sum() :] / 4
        softened[:24][held] = one.softened_I[: held.sum()]
        softened[24:] += one.softened_I[held.sum() :] / 4
    assert score.softened_I == pytest.approx(softened)
    assert score.contribution_I.tolist() == by_hand.tolist()
    assert score.value == by_hand.mean()


@pytest.mark.parametrize("proxy", ["hscore", "logme"])
def test_transferability_scores_use_all_items_as_they_are(proxy):
    train, train_labels = clusters(24, 3, 1.0, 0)
    test, test_labels = clusters(9, 3, 1.0, 1)
    (score,) = cross_validate(proxy, ProbeSet([train], train_labels, [test], test_labels), 4, 0)
    (plain,) = score_candidates(proxy, [train], train_labels, [test], test_labels, 0)
    assert score.value == plain.value and len(score.contribution_I) == 33


def test_better_features_score_higher_and_noise_at_chance():
    train, train_labels = clusters(120, 4, 2.0, 0)
    noise = np.random.default_rng(1).standard_normal(train.shape).astype(np.float32)
    test, test_labels = clusters(40, 4, 2.0, 2)
    probes = ProbeSet([train, noise], train_labels, [test, noise[:40]], test_labels)
    good, bad = cross_validate("linear", probes, 4, 0)
    assert good.value > 0.9 and bad.value < 0.45


def test_too_few_items_for_all_folds_are_no_error():
    train, _ = clusters(3, 3, 1.0, 0)
    probes = ProbeSet([train], np.array([0, 1, 1]), [train], np.array([0, 1, 1]))
    (score,) = cross_validate("linear", probes, 4, 0)
    assert np.isfinite(score.contribution_I).all()
