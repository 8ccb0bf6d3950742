"""Proxies that are accuracies: scikit-learn's own answers, and a score for every kind of features and labels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from raysnap.search.probes.proxies import PROXIES
from tests.support.search_stores import one_thread, scored

ACCURACIES = ("linear", "sgd_linear", "knn")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


def drawn(num_train, num_test, num_dims, num_classes, *, spread=1.0, seed=0):
    """Gaussian classes: train features and labels, test features and labels; each class is in train."""
    rng = np.random.default_rng(seed)
    centres = spread * rng.standard_normal((num_classes, num_dims))
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_train + num_test - num_classes)])
    features = (centres[labels] + rng.standard_normal((len(labels), num_dims))).astype(np.float32)
    return features[:num_train], labels[:num_train], features[num_train:], labels[num_train:]


def probabilities_by_scikit_learn(train, labels, test, penalty_scale=1.0):
    scaler = StandardScaler().fit(train.astype(np.float64))
    model = LogisticRegression(C=penalty_scale, tol=1e-10, max_iter=20_000)
    model.fit(scaler.transform(train.astype(np.float64)), labels)
    return model.classes_, model.predict_proba(scaler.transform(test.astype(np.float64)))


@pytest.mark.parametrize(
    ("num_train", "num_dims", "num_classes", "spread"),
    [
        (40, 300, 4, 0.1),
        (300, 30, 4, 0.3),
        (50, 50, 3, 0.5),
        (120, 512, 10, 0.2),
        (60, 5, 3, 10.0),
        (12, 64, 12, 1.0),
    ],
    ids=["wide", "tall", "square", "many classes", "separable", "one item per class"],
)
def test_linear_is_scikit_learns_logistic_regression(num_train, num_dims, num_classes, spread):
    train, labels, test, test_labels = drawn(num_train, 80, num_dims, num_classes, spread=spread)
    classes, probabilities = probabilities_by_scikit_learn(train, labels, test)
    score = scored("linear", train, labels, test, test_labels)
    margin = np.diff(np.sort(probabilities, axis=1)[:, -2:], axis=1).ravel()
    is_right = classes[probabilities.argmax(axis=1)] == test_labels
    assert np.array_equal(score.contribution_I[margin > 1e-4], is_right[margin > 1e-4])
    assert score.value == pytest.approx(score.contribution_I.mean())
    assert score.loss == pytest.approx(log_loss(test_labels, probabilities, labels=classes), rel=1e-4)
    given = probabilities[np.arange(80), np.searchsorted(classes, test_labels)]
    assert score.softened_I == pytest.approx(given, abs=1e-3)


def test_linear_is_multinomial_for_two_classes_too():
    train, labels, test, test_labels = drawn(60, 50, 40, 2, spread=0.2)
    _, probabilities = probabilities_by_scikit_learn(train, labels, test, penalty_scale=2.0)
    score = scored("linear", train, labels, test, test_labels)
    assert score.loss == pytest.approx(log_loss(test_labels, probabilities), rel=1e-4)


@pytest.mark.parametrize("proxy", ["linear", "knn"])
@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(3, 40), st.integers(1, 60), st.integers(2, 5))
def test_scores_are_finite_and_the_share_of_right_items(proxy, seed, num_train, num_dims, classes):
    arrays = drawn(max(num_train, classes), 15, num_dims, classes, seed=seed)
    score = scored(proxy, *arrays, 0)
    assert score.contribution_I.shape == (15,) and set(score.contribution_I) <= {0.0, 1.0}
    assert score.value == score.contribution_I.mean() and math.isfinite(score.loss)
    assert ((score.softened_I >= 0) & (score.softened_I <= 1)).all()


@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3, 12345.678, 3e8])
def test_features_that_are_constant_in_train_change_nothing(value):
    train, labels, test, test_labels = drawn(40, 60, 10, 3, spread=0.4)
    constant = np.full((len(train), 3), value, dtype=np.float32)
    rounded = np.nextafter(constant, np.float32(np.inf))
    for more in (constant, np.where(np.arange(len(train))[:, None] % 2 == 0, constant, rounded)):
        if value == 0.0 and more is not constant:
            continue
        score = scored(
            "linear", np.hstack([train, more]), labels, np.hstack([test, constant[:1].repeat(60, 0)]), test_labels
        )
        expected = scored("linear", train, labels, test, test_labels)
        assert score.loss == pytest.approx(expected.loss, rel=1e-4)
        assert np.array_equal(score.contribution_I, expected.contribution_I)


@pytest.mark.parametrize(
    ("num_train", "num_classes", "num_neighbours"), [(100, 4, 5), (40, 10, 4), (20, 20, 1), (25, 5, 5), (9, 4, 2)]
)
def test_knn_is_scikit_learns_by_cosine(num_train, num_classes, num_neighbours):
    train, labels, test, test_labels = drawn(num_train, 300, 6, num_classes, spread=0.7)
    train[3] = 0.0
    model = KNeighborsClassifier(num_neighbours, metric="cosine", algorithm="brute").fit(
        train.astype(np.float64), labels
    )
    votes = np.rint(model.predict_proba(test.astype(np.float64)) * num_neighbours)
    if num_neighbours > 1:
        assert (np.sort(votes)[:, -1] == np.sort(votes)[:, -2]).sum() >= 20, "ties are there to be settled"
    score = scored("knn", train, labels, test, test_labels)
    assert np.array_equal(score.contribution_I, model.predict(test.astype(np.float64)) == test_labels)
    probabilities = (votes + 1) / (num_neighbours + num_classes)
    log_likelihood = np.log(probabilities[np.arange(300), test_labels])
    assert score.loss == pytest.approx(-log_likelihood.mean())


def test_of_equally_near_train_items_knn_counts_the_earlier():
    train = np.tile(np.float32([[1.0, 0.0]]), (12, 1))
    for labels in (np.repeat([0, 1], 6), np.repeat([1, 0], 6)):
        score = scored("knn", train, labels, train[:1], labels[:1], 0)
        assert score.value == 1.0


def test_constant_features_find_the_most_frequent_class():
    train, test = np.ones((10, 4), dtype=np.float32), np.ones((5, 4), dtype=np.float32)
    score = scored("linear", train, np.array([0] * 6 + [1] * 4), test, np.array([0, 0, 0, 1, 1]), 0)
    assert score.value == 0.6
    assert score.loss == pytest.approx(-0.6 * math.log(0.6) - 0.4 * math.log(0.4), rel=1e-3)


@pytest.mark.parametrize("proxy", ACCURACIES)
def test_a_class_that_only_test_has_is_never_right(proxy):
    train, labels, test, _ = drawn(40, 30, 20, 3, spread=3.0)
    for stranger in (-1, 1.5, 7):
        labels_with_gaps = labels * 2
        score = scored(proxy, train, labels_with_gaps, test, np.full(30, stranger), 0)
        assert score.value == 0.0 and not score.contribution_I.any()
        assert score.loss == pytest.approx(-math.log(1e-12))


@pytest.mark.parametrize("proxy", ACCURACIES)
@pytest.mark.parametrize("num_items", [1, 2])
def test_a_first_rung_of_one_class_answers_with_that_class(proxy, num_items):
    train = np.random.default_rng(0).standard_normal((num_items, 6)).astype(np.float32)
    test = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    score = scored(proxy, train, np.full(num_items, 3), test, np.array([3, 3, 3, 0]), 0)
    assert score.contribution_I.tolist() == [True, True, True, False]


@pytest.mark.parametrize("proxy", ACCURACIES)
def test_separable_classes_are_found_and_noise_is_not(proxy):
    assert scored(proxy, *drawn(80, 40, 16, 4, spread=3.0)).value >= 0.95
    assert scored(proxy, *drawn(80, 400, 16, 4, spread=0.0)).value <= 0.4


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_proxy_changes_neither_arrays_nor_generators(proxy):
    arrays = drawn(40, 20, 16, 4)
    copies = [array.copy() for array in arrays]
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    scored(proxy, *arrays, 0)
    assert all(map(np.array_equal, arrays, copies))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_sgd_linear_follows_its_seed_and_linear_needs_none():
    arrays = drawn(200, 60, 16, 4, spread=0.3)
    first, again, other = (scored("sgd_linear", *arrays, seed) for seed in (1, 1, 2))
    assert first.loss == again.loss and np.array_equal(first.contribution_I, again.contribution_I)
    assert first.loss != other.loss
    assert scored("linear", *arrays, 1).loss == scored("linear", *arrays, 2).loss


def test_sgd_linear_trains_as_published():
    """100 epochs of SGD with lr 0.1 on batches of at most 128, on the features as they are."""
    train, labels, test, test_labels = drawn(100, 50, 8, 3, spread=0.5)
    score = scored("sgd_linear", train, labels, test, test_labels, 5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layer = torch.nn.Linear(8, 3)
    inputs, targets = torch.from_numpy(train), torch.from_numpy(labels)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    for _ in range(100):
        error = (inputs @ weight.T + bias).softmax(dim=1) - torch.eye(3)[targets]
        weight -= 0.1 * error.T @ inputs / len(inputs)
        bias -= 0.1 * error.mean(dim=0)
    logits = torch.from_numpy(test) @ weight.T + bias
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(test_labels)).item()
    assert score.loss == pytest.approx(expected, rel=1e-3)


def test_after_an_overflow_of_sgd_nothing_is_right():
    train, labels, test, test_labels = drawn(40, 20, 8, 3)
    score = scored("sgd_linear", train * np.float32(1e25), labels, test * np.float32(1e25), test_labels)
    assert score.value == 0.0 and score.loss == pytest.approx(-math.log(1e-12))
