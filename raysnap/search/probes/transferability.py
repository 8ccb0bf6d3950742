"""Score features and labels without training a classifier: H-score and LogME.

Neither learns from some items to be tested on others, so train and test items count the same.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from raysnap.search.probes.axes import principal_axes
from raysnap.search.probes.score import Array, ProbeBatch, Score, score_influences

# Natural logarithms of alpha / beta over the features' mean square along an axis; bounds keep the evidence finite.
LOG_RATIO_RANGE = (-14.0, 14.0)
NUM_GRID_POINTS = 57
NUM_REFINEMENTS = 24


def hscore(batch: ProbeBatch, seed: int) -> list[Score]:  # noqa: ARG001
    """Score by the distance between class means, relative to the features' own spread; 0 where there is none.

    `tr(S^-1 (1 - a) B)`: B is the covariance of items' class means (Bao et al. 2019, doi 10.1109/ICIP.2019.8803726),
    `S = (1 - a) Cov + a tr(Cov) / D I` the covariance, shrunk by the `a` of Ledoit and Wolf 2004 (Ibrahim et al. 2021,
    https://arxiv.org/abs/2110.06893). Covariances divide by the number of items.
    """
    return [
        _hscore(features_ID, _all_targets(*labels).to(features_ID.device))
        for features_ID, *labels in zip(_all_items(batch), batch.train_labels_BN, batch.test_labels_BT, strict=True)
    ]


def logme(batch: ProbeBatch, seed: int) -> list[Score]:  # noqa: ARG001
    """Score by the evidence of Bayesian linear regressions, one per class, in nats per item and class.

    `log p(y | F)` for y = 1 on the class's items and 0 elsewhere, weights of precision alpha and noise of precision
    beta that maximise it (You et al. 2021, https://arxiv.org/abs/2102.11005). Given alpha / beta the best
    beta is known, so the maximum is searched along that ratio alone: where the published fixed-point iteration
    converges, it ends there; where it diverges, as for targets that features fit exactly, the range bounds it.
    """
    return [
        _logme(features_ID, _all_targets(*labels).to(features_ID.device))
        for features_ID, *labels in zip(_all_items(batch), batch.train_labels_BN, batch.test_labels_BT, strict=True)
    ]


def _all_items(batch: ProbeBatch) -> Tensor:
    """Return the features of all items, float64 `[B, N + T, D]`."""
    return torch.cat([batch.train_BND, batch.test_BTD], dim=1).double()


def _all_targets(train_labels_N: Array, test_labels_T: Array) -> Tensor:
    """Return the classes of all items, numbered from 0."""
    return torch.from_numpy(np.unique(np.concatenate([train_labels_N, test_labels_T]), return_inverse=True)[1])


def _hscore(features_ID: Tensor, targets_I: Tensor) -> Score:
    num_items, num_dims = features_ID.shape
    features_ID = features_ID - features_ID.mean(dim=0)
    axes_DR, sums_R = principal_axes(features_ID)
    inputs_IR = features_ID @ axes_DR
    shrinkage = _ledoit_wolf(inputs_IR, num_dims)
    mean_variance = sums_R.sum() / num_items / num_dims
    precision_R = 1 / ((1 - shrinkage) * sums_R / num_items + shrinkage * mean_variance)
    one_hot_IC = functional.one_hot(targets_I).double()
    counts_C = one_hot_IC.sum(dim=0)
    means_CR = one_hot_IC.T @ inputs_IR / counts_C[:, None]
    scaled_means_CR = means_CR * precision_R
    weight_C = counts_C / num_items
    separation_C = (means_CR * scaled_means_CR).sum(dim=1)
    value = (1 - shrinkage) * (weight_C @ separation_C).item()
    # The derivative by an item's weight, through B and through S, with the shrinkage held constant.
    projected_IC = inputs_IR @ scaled_means_CR.T
    through_means_I = ((2 * projected_IC - separation_C) * one_hot_IC).sum(dim=1)
    through_cov_I = (1 - shrinkage) * (projected_IC.square() @ weight_C)
    squared_scale = weight_C @ scaled_means_CR.square().sum(dim=1)
    through_mean_variance_I = inputs_IR.square().sum(dim=1) / num_dims * squared_scale
    influence_I = (1 - shrinkage) * (through_means_I - through_cov_I - shrinkage * through_mean_variance_I)
    return score_influences(value, influence_I.cpu().numpy())


def _logme(features_ID: Tensor, targets_I: Tensor) -> Score:
    num_items = len(features_ID)
    axes_DR, sums_R = principal_axes(features_ID)
    basis_IR = features_ID @ axes_DR / sums_R.sqrt()
    one_hot_IC = functional.one_hot(targets_I).double()
    along_RC = basis_IR.T @ one_hot_IC
    squares_RC = along_RC.square()
    outside_C = (one_hot_IC.sum(dim=0) - squares_RC.sum(dim=0)).clamp_min(0.0)
    scale = sums_R.mean() if len(sums_R) else 1.0
    ratio_C = scale * _best_log_ratios(sums_R / scale, squares_RC, outside_C, num_items).exp()
    shrunk_RC = sums_R[:, None] / (sums_R[:, None] + ratio_C)
    noise_C = (outside_C + (squares_RC * (1 - shrunk_RC)).sum(dim=0)) / num_items
    evidence_C = -num_items / 2 * ((2 * math.pi * noise_C).log() + 1) + torch.log1p(-shrunk_RC).sum(dim=0) / 2
    # At the maximum only the item's own terms of the evidence change with its weight.
    residual_IC = one_hot_IC - basis_IR @ (shrunk_RC * along_RC)
    own_IC = -(residual_IC.square() / noise_C + basis_IR.square() @ shrunk_RC) / 2
    return score_influences(evidence_C.mean().item() / num_items, own_IC.mean(dim=1).cpu().numpy())


def _ledoit_wolf(inputs_IR: Tensor, num_dims: int) -> float:
    """Return the shrinkage of Ledoit and Wolf 2004 for centred inputs in `num_dims` dimensions."""
    squares_IR = inputs_IR.square()
    norms_I, variances_R = squares_IR.sum(dim=1), squares_IR.mean(dim=0)
    spread = (variances_R.square().sum() - variances_R.sum().square() / num_dims).item()
    error = (norms_I.square().mean() - variances_R.square().sum()).item() / len(inputs_IR)
    return min(error, spread) / spread if error > 0 and spread > 0 else 0.0


def _best_log_ratios(sums_R: Tensor, squares_RC: Tensor, outside_C: Tensor, num_items: int) -> Tensor:
    """Return the log of each class's alpha / beta of most evidence: the best of a grid, then ever smaller steps."""

    def evidence(log_ratio_CG: Tensor) -> Tensor:
        kept_CGR = 1 / (1 + sums_R * torch.exp(-log_ratio_CG)[..., None])
        noise_CG = outside_C[:, None] + (kept_CGR @ squares_RC.T[..., None])[..., 0]
        return kept_CGR.log().sum(dim=2) - num_items * noise_CG.log()

    grid_G = torch.linspace(*LOG_RATIO_RANGE, NUM_GRID_POINTS, dtype=sums_R.dtype, device=sums_R.device)
    kept_GR = 1 / (1 + sums_R * torch.exp(-grid_G)[:, None])
    noise_GC = outside_C + kept_GR @ squares_RC
    best_C = grid_G[(kept_GR.log().sum(dim=1)[:, None] - num_items * noise_GC.log()).argmax(dim=0)]
    width = (LOG_RATIO_RANGE[1] - LOG_RATIO_RANGE[0]) / (NUM_GRID_POINTS - 1)
    steps_G = torch.tensor([-1.0, 0.0, 1.0], dtype=sums_R.dtype, device=sums_R.device)
    for _ in range(NUM_REFINEMENTS):
        width /= 2
        steps_CG = (best_C[:, None] + width * steps_G).clamp(*LOG_RATIO_RANGE)
        best_C = steps_CG.gather(1, evidence(steps_CG).argmax(dim=1, keepdim=True))[:, 0]
    return best_C
