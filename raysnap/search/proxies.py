"""Proxies: cheap scores of features that stand for fine-tuned accuracy.

Every proxy is a function from train and test features and labels to a `Score`; what it says about each test item is
kept, so that candidates can be compared item by item.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import nn
from torch.nn import functional

from raysnap.choices import Proxy

Array = np.ndarray


@dataclass(frozen=True)
class Score:
    """How well a proxy does on the test items.

    Attributes:
        value: accuracy, the larger the better.
        loss: mean cross-entropy, which orders equal accuracies; the smaller the better.
        is_right_T: for each test item whether its class was found, bool `[T]`.
    """

    value: float
    loss: float
    is_right_T: Array


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
    axes_DR, variances_R = _principal_axes(inputs_ND)
    scale_R = 1 / np.sqrt(1 + variances_R / max(2, len(classes)))
    axes_DR = axes_DR * scale_R
    weights_CR, bias_C = _fit_logistic_regression(inputs_ND @ axes_DR, targets_N, len(classes), scale_R)
    return _score(tests_TD @ axes_DR @ weights_CR.T + bias_C, classes, test_labels_T)


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
    return _score(logits_TC, classes, test_labels_T)


PROXIES: dict[Proxy, Callable[[Array, Array, Array, Array, int], Score]] = {"linear": linear, "sgd_linear": sgd_linear}


def _principal_axes(inputs_ND: Array) -> tuple[Array, Array]:
    """Orthonormal axes `[D, R]` of the inputs' span, and the sum of squares along each, `[R]`."""
    is_wide = inputs_ND.shape[0] < inputs_ND.shape[1]
    sums_R, vectors = np.linalg.eigh(inputs_ND @ inputs_ND.T if is_wide else inputs_ND.T @ inputs_ND)
    is_kept_R = sums_R > 1e-10 * max(sums_R[-1], 1e-300)
    sums_R, vectors = sums_R[is_kept_R], vectors[:, is_kept_R]
    return (inputs_ND.T @ vectors / np.sqrt(sums_R) if is_wide else vectors), sums_R


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


def _score(logits_TC: Array, classes: Array, labels_T: Array) -> Score:
    """The score of logits over the classes that were seen in training; a class never seen is never right.

    Nor is an item whose logits overflowed, as they may where SGD diverged.
    """
    is_finite_T = np.isfinite(logits_TC).all(axis=1)
    logits_TC = np.where(is_finite_T[:, None], logits_TC, 0.0)
    is_right_T = (classes[logits_TC.argmax(axis=1)] == labels_T) & is_finite_T
    log_probability_TC = logits_TC - logsumexp(logits_TC, axis=1, keepdims=True)
    position_T = np.searchsorted(classes, labels_T).clip(max=len(classes) - 1)
    is_seen_T = (classes[position_T] == labels_T) & is_finite_T
    log_likelihood_T = np.where(is_seen_T, log_probability_TC[np.arange(len(labels_T)), position_T], np.log(1e-12))
    return Score(float(is_right_T.mean()), float(-log_likelihood_T.mean()), is_right_T)
