"""Scores of features and labels that train no classifier: H-score and LogME.

Neither learns from some items to be judged on others, so train and test items count alike.
"""

from __future__ import annotations

import numpy as np

from raysnap.search.axes import principal_axes
from raysnap.search.score import Array, Score, score_influences

# Natural logarithms of alpha / beta over the features' mean square along an axis; bounds keep the evidence finite.
LOG_RATIO_RANGE = (-14.0, 14.0)
NUM_GRID_POINTS = 57
NUM_REFINEMENTS = 24


def hscore(train_ND: Array, train_labels_N: Array, test_TD: Array, test_labels_T: Array, seed: int) -> Score:  # noqa: ARG001
    """Score of how far class means lie apart, measured by the features' own spread; 0 where they don't.

    `tr(S^-1 (1 - a) B)`: B is the covariance of items' class means (Bao et al. 2019, doi 10.1109/ICIP.2019.8803726),
    `S = (1 - a) Cov + a tr(Cov) / D I` the covariance, shrunk by the `a` of Ledoit and Wolf 2004 (Ibrahim et al. 2021,
    https://arxiv.org/abs/2110.06893). Covariances divide by the number of items.
    """
    features_ID, targets_I = _all_items(train_ND, train_labels_N, test_TD, test_labels_T)
    num_items, num_dims = features_ID.shape
    features_ID -= features_ID.mean(axis=0)
    axes_DR, sums_R = principal_axes(features_ID)
    inputs_IR = features_ID @ axes_DR
    shrinkage = _ledoit_wolf(inputs_IR, num_dims)
    mean_variance = sums_R.sum() / num_items / num_dims
    precision_R = 1 / ((1 - shrinkage) * sums_R / num_items + shrinkage * mean_variance)
    counts_C = np.bincount(targets_I)
    means_CR = np.eye(len(counts_C))[targets_I].T @ inputs_IR / counts_C[:, None]
    scaled_means_CR = means_CR * precision_R
    weight_C = counts_C / num_items
    value = (1 - shrinkage) * float(weight_C @ (means_CR * scaled_means_CR).sum(axis=1))
    # The derivative by an item's weight, through B and through S; the shrinkage itself is held.
    projected_IC = inputs_IR @ scaled_means_CR.T
    through_means_I = 2 * projected_IC[np.arange(num_items), targets_I] - (means_CR * scaled_means_CR).sum(1)[targets_I]
    through_cov_I = (1 - shrinkage) * (projected_IC**2 @ weight_C)
    through_mean_variance_I = (inputs_IR**2).sum(axis=1) / num_dims * (weight_C @ (scaled_means_CR**2).sum(axis=1))
    influence_I = (1 - shrinkage) * (through_means_I - through_cov_I - shrinkage * through_mean_variance_I)
    return score_influences(value, influence_I)


def logme(train_ND: Array, train_labels_N: Array, test_TD: Array, test_labels_T: Array, seed: int) -> Score:  # noqa: ARG001
    """Score by the evidence of Bayesian linear regressions, one per class, in nats per item and class.

    `log p(y | F)` for y = 1 on the class's items and 0 elsewhere, weights of precision alpha and noise of precision
    beta that maximise it (You et al. 2021, https://arxiv.org/abs/2102.11005). Given alpha / beta the best
    beta is known, so the maximum is sought along that ratio alone: where the published fixed-point iteration
    converges it ends there, and where it runs away, as for targets that features fit exactly, the range bounds it.
    """
    features_ID, targets_I = _all_items(train_ND, train_labels_N, test_TD, test_labels_T)
    num_items = len(features_ID)
    axes_DR, sums_R = principal_axes(features_ID)
    basis_IR = features_ID @ axes_DR / np.sqrt(sums_R)
    one_hot_IC = np.eye(targets_I.max() + 1)[targets_I]
    along_RC = basis_IR.T @ one_hot_IC
    outside_C = np.maximum(one_hot_IC.sum(axis=0) - (along_RC**2).sum(axis=0), 0.0)
    scale = sums_R.mean() if len(sums_R) else 1.0
    ratio_C = scale * np.exp(_best_log_ratios(sums_R / scale, along_RC**2, outside_C, num_items))
    shrunk_RC = sums_R[:, None] / (sums_R[:, None] + ratio_C)
    noise_C = (outside_C + (along_RC**2 * (1 - shrunk_RC)).sum(axis=0)) / num_items
    evidence_C = -num_items / 2 * (np.log(2 * np.pi * noise_C) + 1) + np.log1p(-shrunk_RC).sum(axis=0) / 2
    # At the maximum only the item's own terms of the evidence move with its weight.
    residual_IC = one_hot_IC - basis_IR @ (shrunk_RC * along_RC)
    own_IC = -(residual_IC**2 / noise_C + basis_IR**2 @ shrunk_RC) / 2
    return score_influences(float(evidence_C.mean() / num_items), own_IC.mean(axis=1))


def _all_items(train_ND: Array, train_labels_N: Array, test_TD: Array, test_labels_T: Array) -> tuple[Array, Array]:
    """Features of all items, float64 `[N + T, D]`, and their classes numbered from 0."""
    labels = np.concatenate([train_labels_N, test_labels_T])
    features_ID = np.concatenate([train_ND, test_TD]).astype(np.float64)
    return features_ID, np.unique(labels, return_inverse=True)[1]


def _ledoit_wolf(inputs_IR: Array, num_dims: int) -> float:
    """The shrinkage of Ledoit and Wolf 2004 for centred inputs in `num_dims` dimensions."""
    num_items = len(inputs_IR)
    norms_I = (inputs_IR**2).sum(axis=1)
    variances_R = (inputs_IR**2).mean(axis=0)
    spread = float((variances_R**2).sum() - variances_R.sum() ** 2 / num_dims)
    error = float((norms_I**2).mean() - (variances_R**2).sum()) / num_items
    return min(error, spread) / spread if error > 0 and spread > 0 else 0.0


def _best_log_ratios(sums_R: Array, squares_RC: Array, outside_C: Array, num_items: int) -> Array:
    """Log of the alpha / beta of most evidence for each class: the best of a grid, then ever smaller steps."""

    def evidence(log_ratio_CG: Array) -> Array:
        kept_CGR = 1 / (1 + sums_R * np.exp(-log_ratio_CG)[..., None])
        noise_CG = outside_C[:, None] + np.einsum("cgr,rc->cg", kept_CGR, squares_RC)
        return np.log(kept_CGR).sum(axis=2) - num_items * np.log(noise_CG)

    grid_G, width = np.linspace(*LOG_RATIO_RANGE, NUM_GRID_POINTS, retstep=True)
    kept_GR = 1 / (1 + sums_R * np.exp(-grid_G)[:, None])
    noise_GC = outside_C + kept_GR @ squares_RC
    best_C = grid_G[(np.log(kept_GR).sum(axis=1)[:, None] - num_items * np.log(noise_GC)).argmax(axis=0)]
    for _ in range(NUM_REFINEMENTS):
        width /= 2
        steps_CG = np.clip(best_C[:, None] + width * np.array([-1.0, 0.0, 1.0]), *LOG_RATIO_RANGE)
        best_C = steps_CG[np.arange(len(best_C)), evidence(steps_CG).argmax(axis=1)]
    return best_C
