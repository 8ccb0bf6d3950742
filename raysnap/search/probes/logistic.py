"""Fit multinomial logistic regressions to convergence: Newton steps, found by preconditioned conjugate gradients.

Gradients, and with them the optimum, are in double precision; curvature, which only gives the direction of the search,
is in single. Directions are measured in coordinates in which the classes' mean curvature is one, so that some tens of
matrix products suffice instead of hundreds. Arrays are laid out by class, then item or dimension (`CN`, `CR`): thin
matrix products are then up to five times as fast.

Problems of a batch run in lock-step, each as if it were alone: what has converged stays as it is. Items and dimensions
are padded with zeros to whole cache lines, as a matrix that begins within one may round differently.
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
# A Newton step is found to a tenth, in as many products with the curvature as that takes.
STEP_TOLERANCE = 0.1
MAX_PRODUCTS = 200
# New coordinates are computed after a step that took more products than this, or than a third of what they cost.
PATIENCE = 6
# A step is as long as the loss falls: to where its slope along the step is at most this share of that at the start.
SLOPE_SHARE = 0.1
MAX_LENGTHS = 60
# Numbers in a cache line of 64 bytes, in single precision.
LINE_NUMBERS = 16


@torch.inference_mode()
def fit_logistic_regressions(inputs_BNR: Tensor, targets_BN: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Fit weights `[B, C, R]` and biases `[B, C]` of least summed cross-entropy plus half the squared weights.

    Args:
        inputs_BNR: float64, of roughly equal scale; each entry of the batch is a separate problem.
        targets_BN: each item's class, int64.
    """
    num_problems, num_items, num_dims = inputs_BNR.shape
    # The bias is the weight of one more input without penalty; at this length its curvature is like the others'.
    length = math.sqrt(max(1, num_dims))
    padded_BNR = inputs_BNR.new_zeros(num_problems, whole_lines(num_items), whole_lines(num_dims + 1))
    padded_BNR[:, :num_items, :num_dims] = inputs_BNR
    padded_BNR[:, :num_items, num_dims] = length
    penalty_R = inputs_BNR.new_ones(padded_BNR.shape[2])
    penalty_R[num_dims] = 0.0
    one_hot_BCN = inputs_BNR.new_zeros(num_problems, num_classes, padded_BNR.shape[1])
    one_hot_BCN[..., :num_items] = functional.one_hot(targets_BN, num_classes).mT
    weights_BCR = _minimise(_Problems(padded_BNR, one_hot_BCN, penalty_R), TOLERANCE * num_items)
    return weights_BCR[..., :num_dims], weights_BCR[..., num_dims] * length


def whole_lines(num_numbers: int) -> int:
    """Return the smallest multiple of a cache line's numbers that is no less."""
    return -(-num_numbers // LINE_NUMBERS) * LINE_NUMBERS


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
        if not is_kept_B.any():
            return other
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
    one_hot_BCN: Tensor
    penalty_R: Tensor

    def gradient(self, weights_BCR: Tensor, probabilities_BCN: Tensor) -> Tensor:
        penalties_BCR = weights_BCR * self.penalty_R
        return torch.baddbmm(penalties_BCR, probabilities_BCN - self.one_hot_BCN, self.inputs_BNR)


def _minimise(problems: _Problems, tolerance: float) -> Tensor:
    """Find weights `[B, C, R]` of least loss, from zeros by Newton steps until every squared gradient is small."""
    num_problems, num_items, num_dims = problems.inputs_BNR.shape
    num_classes = problems.one_hot_BCN.shape[1]
    inputs_BNR, penalty_R = problems.inputs_BNR.float(), problems.penalty_R.float()
    weights_BCR = problems.inputs_BNR.new_zeros(num_problems, num_classes, num_dims)
    logits_BCN = problems.inputs_BNR.new_zeros(num_problems, num_classes, num_items)
    probabilities_BCN = torch.softmax(logits_BCN, dim=1)
    coordinates = _Coordinates.at(probabilities_BCN.float(), inputs_BNR, penalty_R)
    patience = max(PATIENCE, num_dims // (8 * num_classes))
    for _ in range(MAX_STEPS):
        gradient_BCR = problems.gradient(weights_BCR, probabilities_BCN)
        is_converged_B = _dot(gradient_BCR, gradient_BCR) <= tolerance
        if is_converged_B.all():
            break
        step_BCR, num_products_B = _newton_step(
            gradient_BCR.float(), probabilities_BCN.float(), coordinates, is_converged_B
        )
        step_BCR = step_BCR.double()
        logits_step_BCN = torch.bmm(step_BCR, problems.inputs_BNR.mT)
        length_B11 = _step_length(
            problems, weights_BCR, logits_BCN, gradient_BCR, step_BCR, logits_step_BCN, is_converged_B
        )
        if not length_B11.any():
            break
        weights_BCR = torch.addcmul(weights_BCR, length_B11, step_BCR)
        logits_BCN = torch.addcmul(logits_BCN, length_B11, logits_step_BCN)
        probabilities_BCN = torch.softmax(logits_BCN, dim=1)
        is_slow_B = num_products_B > patience
        if is_slow_B.any():
            new = _Coordinates.at(probabilities_BCN.float(), inputs_BNR, penalty_R)
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
        along_BCN = torch.bmm(direction_BCR, inputs_BNR.mT)
        weighted_BCN = probabilities_BCN * along_BCN
        bend_BCN = torch.addcmul(weighted_BCN, probabilities_BCN, weighted_BCN.sum(dim=1, keepdim=True), value=-1)
        bend_BCN.addcmul_(coordinates.mean_curvature_B1N, along_BCN, value=-1)
        product_BCR = torch.baddbmm(direction_BCR, bend_BCN, inputs_BNR)
        length_B11 = torch.where(is_done_B, 0.0, squares_B / _dot(direction_BCR, product_BCR))[:, None, None]
        step_BCR = torch.addcmul(step_BCR, length_B11, direction_BCR)
        residual_BCR = torch.addcmul(residual_BCR, length_B11, product_BCR, value=-1)
        previous_B, squares_B = squares_B, _dot(residual_BCR, residual_BCR)
        direction_BCR = torch.addcmul(
            residual_BCR, (squares_B / previous_B.clamp_min(1e-30))[:, None, None], direction_BCR
        )
        num_products_B += ~is_done_B
        is_done_B = is_done_B | (squares_B <= STEP_TOLERANCE**2 * first_B)
    return torch.linalg.solve_triangular(root_BRR.mT, step_BCR.mT, upper=True).mT, num_products_B


def _step_length(
    problems: _Problems,
    weights_BCR: Tensor,
    logits_BCN: Tensor,
    gradient_BCR: Tensor,
    step_BCR: Tensor,
    logits_step_BCN: Tensor,
    is_found_B: Tensor,
) -> Tensor:
    """Return for each problem the multiple of its step, `[B, 1, 1]`, that lowers its loss most; 0 where none does.

    The loss is convex, so its slope along the step only rises: Newton's method finds where it is 0, between the longest
    length known at which it is negative and the shortest at which it isn't. Problems that are found already get 0.
    """
    penalised_BCR = step_BCR * problems.penalty_R
    square_B = _dot(step_BCR, penalised_BCR)
    constant_B = _dot(weights_BCR, penalised_BCR) - (logits_step_BCN * problems.one_hot_BCN).sum(dim=(1, 2))
    enough_B = SLOPE_SHARE * _dot(gradient_BCR, step_BCR).abs()
    length_B = torch.where(is_found_B, 0.0, 1.0)
    low_B, high_B = torch.zeros_like(length_B), torch.full_like(length_B, torch.inf)
    for _ in range(MAX_LENGTHS):
        along_BCN = torch.softmax(torch.addcmul(logits_BCN, length_B[:, None, None], logits_step_BCN), dim=1)
        along_BCN *= logits_step_BCN
        mean_BN = along_BCN.sum(dim=1)
        slope_B = mean_BN.sum(dim=1) + constant_B + length_B * square_B
        is_found_B = is_found_B | (slope_B.abs() <= enough_B)
        if is_found_B.all():
            break
        bend_B = _dot(along_BCN, logits_step_BCN) - mean_BN.square().sum(dim=1) + square_B
        low_B = torch.where(slope_B < 0, length_B, low_B)
        high_B = torch.where(slope_B < 0, high_B, length_B)
        newton_B = torch.minimum(length_B - slope_B / bend_B, 4 * length_B)
        middle_B = torch.where(high_B.isinf(), 2 * length_B, (low_B + high_B) / 2)
        is_between_B = (low_B < newton_B) & (newton_B < high_B)
        length_B = torch.where(is_found_B, length_B, torch.where(is_between_B, newton_B, middle_B))
    return torch.where(is_found_B, length_B, low_B)[:, None, None]


def _dot(left_BCR: Tensor, right_BCR: Tensor) -> Tensor:
    return (left_BCR * right_BCR).sum(dim=(1, 2))
