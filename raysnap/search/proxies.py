"""Proxies: cheap scores of features that stand for fine-tuned accuracy.

Every proxy is a function from train and test features and labels to a `Score`; each item's part in it is kept, so
that candidates can be compared item by item.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import nn
from torch.nn import functional

from raysnap.choices import Proxy
from raysnap.search.axes import principal_axes
from raysnap.search.score import Array, Score, score_logits
from raysnap.search.transferability import hscore, logme

NUM_NEIGHBOURS = 5


def linear(train_ND: Array, train_labels_N: Array, test_TD: Array, test_labels_T: Array, seed: int) -> Score:  # noqa: ARG001
    """Score of a multinomial logistic regression, converged.

    Features are standardised with the train items' mean and deviation; the penalty is half the squared weights, once
    for the sum of all items' losses (scikit-learn's C = 1). The optimum lies in the span of the train items and does
    not change when that is rotated, so it is sought along the principal axes, each scaled to equal curvature: some
    tens of L-BFGS steps instead of some hundreds.
    """
    classes, targets_N = np.unique(train_labels_N, return_inverse=True)
    mean_D, deviation_D = train_ND.mean(axis=0, dtype=np.float64), train_ND.std(axis=0, dtype=np.float64)
    # A feature that is constant up to float32's rounding says nothing: it becomes 0 everywhere.
    deviation_D[deviation_D <= 1e-6 * np.abs(mean_D)] = np.inf
    inputs_ND, tests_TD = ((features - mean_D) / deviation_D for features in (train_ND, test_TD))
    axes_DR, variances_R = principal_axes(inputs_ND)
    scale_R = 1 / np.sqrt(1 + variances_R / max(2, len(classes)))
    axes_DR = axes_DR * scale_R
    weights_CR, bias_C = _fit_logistic_regression(inputs_ND @ axes_DR, targets_N, len(classes), scale_R)
    return score_logits(tests_TD @ axes_DR @ weights_CR.T + bias_C, classes, test_labels_T)


def sgd_linear(train_ND: Array, train_labels_N: Array, test_TD: Array, test_labels_T: Array, seed: int) -> Score:
    """Score of a linear layer trained as the published protocol does: SGD, lr 0.1, 100 epochs, batches of 128."""
    classes, targets_N = np.unique(train_labels_N, return_inverse=True)
    inputs, targets = torch.from_numpy(train_ND), torch.from_numpy(targets_N)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(inputs.shape[1], len(classes))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(100):
        for batch in torch.randperm(len(inputs), generator=generator).split(128):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(layer(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    with torch.inference_mode():
        logits_TC = layer(torch.from_numpy(test_TD)).double().numpy()
    return score_logits(logits_TC, classes, test_labels_T)


def knn(train_ND: Array, train_labels_N: Array, test_TD: Array, test_labels_T: Array, seed: int) -> Score:  # noqa: ARG001
    """Score of the most frequent class among an item's nearest train items by the cosine of their features.

    There are 5 neighbours, fewer where classes have fewer train items on average. Of train items that are equally
    near the earlier counts, of classes with equally many neighbours the first. A class's probability, for the loss,
    is its share of the neighbours after one more of each class.
    """
    classes, targets_N = np.unique(train_labels_N, return_inverse=True)
    num_neighbours = min(NUM_NEIGHBOURS, max(1, len(targets_N) // len(classes)))
    nearest_TN = np.argsort(-(_normalised(test_TD) @ _normalised(train_ND).T), axis=1, kind="stable")
    votes_TC = np.eye(len(classes))[targets_N[nearest_TN[:, :num_neighbours]]].sum(axis=1)
    return score_logits(np.log1p(votes_TC), classes, test_labels_T)


PROXIES: dict[Proxy, Callable[[Array, Array, Array, Array, int], Score]] = {
    "linear": linear,
    "sgd_linear": sgd_linear,
    "knn": knn,
    "hscore": hscore,
    "logme": logme,
}


def _normalised(features_ND: Array) -> Array:
    """The features at length 1, float64; those of length 0 as they are."""
    features_ND = features_ND.astype(np.float64)
    lengths_N1 = np.linalg.norm(features_ND, axis=1, keepdims=True)
    return features_ND / np.where(lengths_N1 > 0, lengths_N1, 1.0)


def _fit_logistic_regression(
    inputs_NR: Array, targets_N: Array, num_classes: int, scale_R: Array
) -> tuple[Array, Array]:
    """Weights `[C, R]` and bias `[C]` of least summed cross-entropy plus half the squared `weights * scale_R`."""
    num_items, num_dims = inputs_NR.shape
    one_hot_NC = np.eye(num_classes)[targets_N]
    penalty_R = scale_R**2

    def loss_and_gradient(flat: Array) -> tuple[float, Array]:
        weights_CR = flat[: num_classes * num_dims].reshape(num_classes, num_dims)
        bias_C = flat[num_classes * num_dims :]
        logits_NC = inputs_NR @ weights_CR.T + bias_C
        log_norm_N1 = logsumexp(logits_NC, axis=1, keepdims=True)
        error_NC = np.exp(logits_NC - log_norm_N1) - one_hot_NC
        loss = log_norm_N1.sum() - (logits_NC * one_hot_NC).sum() + 0.5 * (weights_CR**2 * penalty_R).sum()
        gradient_CR = error_NC.T @ inputs_NR + weights_CR * penalty_R
        return loss / num_items, np.concatenate([gradient_CR.ravel(), error_NC.sum(axis=0)]) / num_items

    start = np.zeros(num_classes * (num_dims + 1))
    options = {"maxiter": 1000, "gtol": 1e-6, "ftol": 1e-12}
    flat = minimize(loss_and_gradient, start, method="L-BFGS-B", jac=True, options=options).x
    return flat[: num_classes * num_dims].reshape(num_classes, num_dims), flat[num_classes * num_dims :]
