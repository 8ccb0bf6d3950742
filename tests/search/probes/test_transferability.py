"""H-score and LogME: the published formulas, written down a second time, and a value for every kind of features."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf

from raysnap.search.probes.confidence import tied_with
from tests.support.search_stores import one_thread, scored

SCORES = ("hscore", "logme")
SHAPES = {
    "wide": (30, 20, 120, 4, 0.3),
    "tall": (150, 50, 8, 3, 0.5),
    "square": (25, 15, 40, 3, 0.5),
    "many classes": (60, 30, 32, 12, 1.0),
    "separable": (60, 20, 16, 3, 6.0),
    "noise": (60, 40, 10, 4, 0.0),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


def drawn(num_train, num_test, num_dims, num_classes, spread, seed=0):
    """Positive features of Gaussian classes: train features and labels, test features and labels."""
    rng = np.random.default_rng(seed)
    centres = spread * rng.standard_normal((num_classes, num_dims))
    labels = rng.integers(0, num_classes, num_train + num_test)
    features = np.abs(centres[labels] + rng.standard_normal((len(labels), num_dims)) + 1).astype(np.float32)
    return features[:num_train], labels[:num_train], features[num_train:], labels[num_train:]


def together(arrays):
    train, labels, test, test_labels = arrays
    return np.concatenate([train, test]).astype(np.float64), np.concatenate([labels, test_labels])


def hscore_by_the_formula(features, labels):
    """tr(pinv(shrunk covariance) (1 - shrinkage) covariance of class means), with scikit-learn's Ledoit-Wolf."""
    centred = features - features.mean(axis=0)
    estimate = LedoitWolf(assume_centered=True).fit(centred)
    means = np.stack([centred[labels == label].mean(axis=0) for label in labels])
    between = means.T @ means / len(labels)
    return np.trace(np.linalg.pinv(estimate.covariance_, rcond=1e-15) @ between) * (1 - estimate.shrinkage_)


def logme_by_the_density(features, labels):
    """Mean over classes and items of the largest Gaussian density of the targets, `N(0, I / beta + F F^T / alpha)`."""

    def least(targets):
        def negative_log_density(logs):
            covariance = np.exp(-logs[1]) * np.eye(len(targets)) + np.exp(-logs[0]) * features @ features.T
            return -multivariate_normal(cov=covariance).logpdf(targets)

        starts = [(0.0, 0.0), (3.0, 3.0), (-3.0, 2.0), (6.0, 2.0)]
        options = {"xatol": 1e-6, "fatol": 1e-9, "maxiter": 2000}
        return min(minimize(negative_log_density, x, method="Nelder-Mead", options=options).fun for x in starts)

    return -np.mean([least((labels == label).astype(float)) for label in np.unique(labels)]) / len(labels)


def logme_by_fixed_point(features, labels):
    """Return the iteration of the paper's algorithm 1, to convergence."""
    num_items, num_dims = features.shape
    eigenvalues, vectors = np.linalg.eigh(features.T @ features)
    evidences = []
    for label in np.unique(labels):
        targets = (labels == label).astype(float)
        alpha = beta = 1.0
        for _ in range(3000):
            effective = (beta * eigenvalues / (alpha + beta * eigenvalues)).sum()
            mean = beta * vectors @ ((vectors.T @ (features.T @ targets)) / (alpha + beta * eigenvalues))
            residual = ((features @ mean - targets) ** 2).sum()
            alpha, beta = effective / (mean**2).sum(), (num_items - effective) / residual
        log_determinant = np.log(alpha + beta * eigenvalues).sum()
        evidence = num_items * np.log(beta) + num_dims * np.log(alpha) - num_items * np.log(2 * np.pi)
        evidence += -beta * residual - alpha * (mean**2).sum() - log_determinant
        evidences.append(evidence / 2 / num_items)
    return np.mean(evidences)


@pytest.mark.parametrize("shape", SHAPES)
def test_hscore_is_the_shrunk_formula_of_train_and_test_items(shape):
    arrays = drawn(*SHAPES[shape])
    assert scored("hscore", *arrays).value == pytest.approx(hscore_by_the_formula(*together(arrays)), rel=1e-6)


@pytest.mark.parametrize("shape", ["wide", "square", "noise", "separable"])
def test_logme_is_the_largest_density_of_the_targets(shape):
    arrays = drawn(*SHAPES[shape])
    assert scored("logme", *arrays).value == pytest.approx(logme_by_the_density(*together(arrays)), abs=1e-6)


@pytest.mark.parametrize("shape", ["tall", "noise", "separable"])
def test_logme_is_where_the_published_iteration_ends(shape):
    arrays = drawn(*SHAPES[shape])
    assert scored("logme", *arrays).value == pytest.approx(logme_by_fixed_point(*together(arrays)), abs=1e-6)


@pytest.mark.parametrize("proxy", SCORES)
def test_the_better_separated_the_classes_the_higher_the_score(proxy):
    values = [scored(proxy, *drawn(100, 40, 24, 4, spread, seed=3)).value for spread in (0.0, 0.5, 1.5, 5.0)]
    assert values == sorted(values)


@pytest.mark.parametrize("proxy", SCORES)
def test_scale_and_rotation_of_features_change_no_score(proxy):
    train, labels, test, test_labels = drawn(40, 20, 12, 3, 0.8)
    expected = scored(proxy, train, labels, test, test_labels).value
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0]
    for change in (lambda features: features * np.float32(1000), lambda features: features @ rotation):
        assert scored(proxy, change(train), labels, change(test), test_labels).value == pytest.approx(
            expected, rel=1e-4
        )


@pytest.mark.parametrize("proxy", SCORES)
@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 6), st.integers(1, 30), st.integers(1, 6))
def test_every_score_is_finite_and_the_mean_of_its_parts(proxy, seed, num_train, num_test, num_dims, num_classes):
    found = scored(proxy, *drawn(num_train, num_test, num_dims, num_classes, 1.0, seed), 0)
    assert math.isfinite(found.value) and found.loss == 0.0
    assert found.contribution_I.shape == (num_train + num_test,) and np.isfinite(found.contribution_I).all()
    assert found.contribution_I.mean() == pytest.approx(found.value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("proxy", SCORES)
@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3, 1e30])
def test_constant_features_score_no_better_than_real_ones(proxy, value):
    train, labels, test, test_labels = drawn(40, 20, 6, 3, 2.0)
    constant = [np.full_like(features, value) for features in (train, test)]
    found = scored(proxy, constant[0], labels, constant[1], test_labels)
    assert math.isfinite(found.value) and np.isfinite(found.contribution_I).all()
    assert found.value < scored(proxy, train, labels, test, test_labels).value
    if proxy == "hscore":
        assert found.value == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("proxy", SCORES)
@pytest.mark.parametrize("num_items", [1, 2, 5])
def test_items_of_one_class_have_a_finite_score(proxy, num_items):
    features = np.random.default_rng(0).standard_normal((num_items + 1, 6)).astype(np.float32)
    labels = np.full(num_items + 1, 7)
    found = scored(proxy, features[:-1], labels[:-1], features[-1:], labels[-1:], 0)
    assert math.isfinite(found.value) and np.isfinite(found.contribution_I).all()


@pytest.mark.parametrize("proxy", SCORES)
def test_features_that_are_the_labels_beat_all_others(proxy):
    train, labels, test, test_labels = drawn(40, 20, 6, 3, 2.0)
    exact = [np.eye(3, 6, dtype=np.float32)[own] for own in (labels, test_labels)]
    found = scored(proxy, exact[0], labels, exact[1], test_labels)
    assert math.isfinite(found.value)
    assert found.value > scored(proxy, train, labels, test, test_labels).value


@pytest.mark.parametrize("proxy", SCORES)
def test_the_parts_scatter_as_the_score_does_from_draw_to_draw(proxy):
    """What the paired bootstrap stands on: an item's part is the value plus the item's influence on it."""
    rng = np.random.default_rng(5)
    centres = 0.6 * rng.standard_normal((3, 6))
    found = []
    for _ in range(120):
        labels = rng.integers(0, 3, 400)
        features = (centres[labels] + rng.standard_normal((400, 6))).astype(np.float32)
        found.append(scored(proxy, features[:250], labels[:250], features[250:], labels[250:], 0))
    scatter = np.std([one.value for one in found])
    foretold = np.mean([np.std(one.contribution_I) for one in found]) / math.sqrt(400)
    assert foretold == pytest.approx(scatter, rel=0.25)


@pytest.mark.parametrize("proxy", SCORES)
def test_a_clear_lead_is_told_and_a_candidate_ties_with_itself(proxy):
    good, poor = (scored(proxy, *drawn(150, 50, 12, 3, spread, 2), 0).contribution_I for spread in (1.5, 0.2))
    assert tied_with(good, np.stack([good, poor]), 0).tolist() == [True, False]
