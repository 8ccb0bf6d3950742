"""Fit multinomial logistic regressions to convergence: Newton steps, found by preconditioned conjugate gradients.

Losses and gradients, and with them the optimum, are in double precision; curvature, which only gives the direction of
the search, is in single. Directions are measured in coordinates in which the classes' mean curvature is one, so that
some tens of matrix products suffice instead of hundreds. Arrays are laid out by class, then item or dimension (`CN`,
`CR`): thin matrix products are then up to five times as fast. Problems of a batch run in lock-step, independently.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Converged: the squared gradient per item is at most this. As the penalty alone bends the loss by one in every
# direction, no weights have a loss that is lower by more than half of this, in nats per item.
TOLERANCE = 1e-9
MAX_STEPS = 100
MAX_HALVINGS = 40
# A Newton step is found to a tenth, in as many products with the curvature as that takes.
STEP_TOLERANCE = 0.1
MAX_PRODUCTS = 200
# New coordinates cost as much as some 25 products; they are computed after a step that took more than half of that.
PATIENCE = 12


def fit_logistic_regressions(inputs_BNR: Tensor, targets_N: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Fit weights `[B, C, R]` and biases `[B, C]` of least summed cross-entropy plus half the squared weights.

    Args:
        inputs_BNR: float64, of roughly equal scale; each entry of the batch is a separate problem.
        targets_N: each item's class, int64, the same for all problems.
    """
    num_dims = inputs_BNR.shape[2]
    # The bias is the weight of one more input without penalty; at this length its curvature is like the others'.
    length = math.sqrt(max(1, num_dims))
    inputs_BNR = torch.cat([inputs_BNR, inputs_BNR.new_full((*inputs_BNR.shape[:2], 1), length)], dim=2)
    penalty_R = inputs_BNR.new_ones(num_dims + 1)
    penalty_R[-1] = 0.0
    one_hot_CN = functional.one_hot(targets_N, num_classes).T.double()
    weights_BCR = _minimise(_Problems(inputs_BNR, one_hot_CN, penalty_R))
    return weights_BCR[..., :-1], weights_BCR[..., -1] * length


@dataclass(frozen=True)
class _Coordinates:
    """Coordinates in which the penalty and the classes' mean curvature together are the identity.

    Attributes:
        root_BRR: the lower Cholesky factor of `diag(penalty) + X' diag(mean curvature) X`.
        inputs_BNR: the items' inputs in these coordinates.
        mean_curvature_B1N: each item's contribution, averaged over the directions that differ between classes.
    """

    root_BRR: Tensor
    inputs_BNR: Tensor
    mean_curvature_B1N: Tensor

    @classmethod
    def at(cls, probabilities_BCN: Tensor, inputs_BNR: Tensor, penalty_R: Tensor) -> _Coordinates:
        num_classes = probabilities_BCN.shape[1]
        spread_BN = 1 - probabilities_BCN.square().sum(dim=1)
        mean_curvature_BN = (spread_BN / max(1, num_classes - 1)).clamp_min(1e-6)
        weighted_BNR = inputs_BNR * mean_curvature_BN.sqrt()[..., None]
        curvature_BRR = weighted_BNR.mT @ weighted_BNR
        diagonal_BR = curvature_BRR.diagonal(dim1=1, dim2=2)
        # What single precision may lose of the penalty beside a large sum keeps the matrix positive definite.
        diagonal_BR += penalty_R + 1e-6 * diagonal_BR.amax(dim=1, keepdim=True)
        root_BRR = torch.linalg.cholesky(curvature_BRR)
        inputs_BNR = torch.linalg.solve_triangular(root_BRR.mT, inputs_BNR, upper=True, left=False)
        return cls(root_BRR, inputs_BNR, mean_curvature_BN[:, None])

    def where(self, is_kept_B: Tensor, other: _Coordinates) -> _Coordinates:
        """Return these coordinates for the problems that keep them, the other ones for the rest."""
        is_kept_B11 = is_kept_B[:, None, None]
        return _Coordinates(
            torch.where(is_kept_B11, self.root_BRR, other.root_BRR),
            torch.where(is_kept_B11, self.inputs_BNR, other.inputs_BNR),
            torch.where(is_kept_B11, self.mean_curvature_B1N, other.mean_curvature_B1N),
        )


@dataclass(frozen=True)
class _Problems:
    """What is minimised: summed cross-entropy plus half the squared weights, as far as these are penalised."""

    inputs_BNR: Tensor
    one_hot_CN: Tensor
    penalty_R: Tensor

    def loss(self, weights_BCR: Tensor, logits_BCN: Tensor) -> Tensor:
        fit_B = torch.logsumexp(logits_BCN, dim=1).sum(dim=1) - (logits_BCN * self.one_hot_CN).sum(dim=(1, 2))
        return fit_B + 0.5 * (weights_BCR.square() * self.penalty_R).sum(dim=(1, 2))

    def gradient(self, weights_BCR: Tensor, probabilities_BCN: Tensor) -> Tensor:
        return (probabilities_BCN - self.one_hot_CN) @ self.inputs_BNR + weights_BCR * self.penalty_R


def _minimise(problems: _Problems) -> Tensor:
    """Find weights `[B, C, R]` of least loss, from zeros by damped Newton steps until every problem has converged."""
    num_problems, num_items, num_dims = problems.inputs_BNR.shape
    num_classes = len(problems.one_hot_CN)
    inputs_BNR, penalty_R = problems.inputs_BNR.float(), problems.penalty_R.float()
    weights_BCR = problems.inputs_BNR.new_zeros(num_problems, num_classes, num_dims)
    logits_BCN = problems.inputs_BNR.new_zeros(num_problems, num_classes, num_items)
    coordinates = _Coordinates.at(torch.softmax(logits_BCN, dim=1).float(), inputs_BNR, penalty_R)
    for _ in range(MAX_STEPS):
        probabilities_BCN = torch.softmax(logits_BCN, dim=1)
        gradient_BCR = problems.gradient(weights_BCR, probabilities_BCN)
        is_converged_B = _dot(gradient_BCR, gradient_BCR) <= TOLERANCE * num_items
        if is_converged_B.all():
            break
        step_BCR, num_products_B = _newton_step(
            gradient_BCR.float(), probabilities_BCN.float(), coordinates, is_converged_B
        )
        step_BCR = step_BCR.double()
        logits_step_BCN = step_BCR @ problems.inputs_BNR.mT
        slope_B = (gradient_BCR * step_BCR).sum(dim=(1, 2))
        length_B = _step_length(problems, weights_BCR, logits_BCN, step_BCR, logits_step_BCN, slope_B)
        length_B11 = torch.where(is_converged_B, 0.0, length_B)[:, None, None]
        if not length_B11.any():
            break
        weights_BCR = weights_BCR + length_B11 * step_BCR
        logits_BCN = logits_BCN + length_B11 * logits_step_BCN
        is_slow_B = num_products_B > PATIENCE
        if is_slow_B.any():
            new = _Coordinates.at(torch.softmax(logits_BCN, dim=1).float(), inputs_BNR, penalty_R)
            coordinates = coordinates.where(~is_slow_B, new)
    return weights_BCR


def _newton_step(
    gradient_BCR: Tensor, probabilities_BCN: Tensor, coordinates: _Coordinates, is_done_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the step `[B, C, R]` to the minimum of the loss's quadratic model, and the products it took, `[B]`.

    Problems that are done take none, and their step is 0.
    """
    root_BRR, inputs_BNR = coordinates.root_BRR, coordinates.inputs_BNR
    residual_BCR = -torch.linalg.solve_triangular(root_BRR, gradient_BCR.mT, upper=False).mT.contiguous()
    direction_BCR, step_BCR = residual_BCR, torch.zeros_like(residual_BCR)
    squares_B = first_B = _dot(residual_BCR, residual_BCR)
    num_products_B = torch.zeros_like(squares_B)
    for _ in range(MAX_PRODUCTS):
        if is_done_B.all():
            break
        # The penalty and the mean curvature are the identity here; the classes' own curvatures differ from the mean.
        along_BCN = direction_BCR @ inputs_BNR.mT
        weighted_BCN = probabilities_BCN * along_BCN
        bend_BCN = weighted_BCN - probabilities_BCN * weighted_BCN.sum(dim=1, keepdim=True)
        bend_BCN -= coordinates.mean_curvature_B1N * along_BCN
        product_BCR = torch.baddbmm(direction_BCR, bend_BCN, inputs_BNR)
        length_B11 = torch.where(is_done_B, 0.0, squares_B / _dot(direction_BCR, product_BCR))[:, None, None]
        step_BCR = step_BCR + length_B11 * direction_BCR
        residual_BCR = residual_BCR - length_B11 * product_BCR
        previous_B, squares_B = squares_B, _dot(residual_BCR, residual_BCR)
        direction_BCR = residual_BCR + (squares_B / previous_B.clamp_min(1e-30))[:, None, None] * direction_BCR
        num_products_B += ~is_done_B
        is_done_B = is_done_B | (squares_B <= STEP_TOLERANCE**2 * first_B)
    return torch.linalg.solve_triangular(root_BRR.mT, step_BCR.mT, upper=True).mT, num_products_B


def _step_length(
    problems: _Problems,
    weights_BCR: Tensor,
    logits_BCN: Tensor,
    step_BCR: Tensor,
    logits_step_BCN: Tensor,
    slope_B: Tensor,
) -> Tensor:
    """Return for each problem the largest of 1, 1/2, 1/4, … that lowers its loss enough (Armijo); 0 where none does."""
    length_B = torch.ones_like(slope_B)
    start_B = problems.loss(weights_BCR, logits_BCN)
    for _ in range(MAX_HALVINGS):
        length_B11 = length_B[:, None, None]
        loss_B = problems.loss(weights_BCR + length_B11 * step_BCR, logits_BCN + length_B11 * logits_step_BCN)
        is_enough_B = loss_B <= start_B + 1e-4 * length_B * slope_B + 1e-14 * start_B.abs()
        if is_enough_B.all():
            return length_B
        length_B = torch.where(is_enough_B, length_B, length_B / 2)
    return torch.where(is_enough_B, length_B, 0.0)


def _dot(left_BCR: Tensor, right_BCR: Tensor) -> Tensor:
    return (left_BCR * right_BCR).sum(dim=(1, 2))
