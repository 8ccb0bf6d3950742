"""Find the directions that features vary in: fewer than items or dimensions, and all that a quadratic score needs."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_axes(inputs_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal axes `[D, R]` of the inputs' span, and the sum of squares along each, `[R]`; all float64."""
    is_wide = inputs_ND.shape[0] < inputs_ND.shape[1]
    sums_R, vectors = torch.linalg.eigh(inputs_ND @ inputs_ND.T if is_wide else inputs_ND.T @ inputs_ND)
    is_kept_R = sums_R > 1e-10 * sums_R[-1].clamp_min(1e-300)
    sums_R, vectors = sums_R[is_kept_R], vectors[:, is_kept_R]
    return (inputs_ND.T @ vectors / sums_R.sqrt() if is_wide else vectors), sums_R


def span_root(inputs_BND: Tensor) -> Tensor:
    """Return items' coordinates along N directions that span them, `[B, N, N]`, lower triangular, float64.

    Inner products of items are unchanged, so a linear model with the same penalty in all directions can be fitted in
    these coordinates. The directions are those of a Cholesky factor, which costs less than principal axes.
    """
    products_BNN = inputs_BND @ inputs_BND.mT
    diagonal_BN = products_BNN.diagonal(dim1=1, dim2=2)
    mean_B1 = diagonal_BN.mean(dim=1, keepdim=True)
    # Items may be equal, or all zero: a rank below N must not stop the factor.
    diagonal_BN += 1e-10 * torch.where(mean_B1 > 0, mean_B1, 1.0)
    root_BNN: Tensor = torch.linalg.cholesky(products_BNN)
    return root_BNN
