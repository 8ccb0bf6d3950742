"""The directions that features vary in: fewer than items or dimensions, and all that a quadratic score needs."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def principal_axes(inputs_ND: Array) -> tuple[Array, Array]:
    """Orthonormal axes `[D, R]` of the inputs' span, and the sum of squares along each, `[R]`."""
    is_wide = inputs_ND.shape[0] < inputs_ND.shape[1]
    sums_R, vectors = np.linalg.eigh(inputs_ND @ inputs_ND.T if is_wide else inputs_ND.T @ inputs_ND)
    is_kept_R = sums_R > 1e-10 * max(sums_R[-1], 1e-300)
    sums_R, vectors = sums_R[is_kept_R], vectors[:, is_kept_R]
    return (inputs_ND.T @ vectors / np.sqrt(sums_R) if is_wide else vectors), sums_R
