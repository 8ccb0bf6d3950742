"""Activations as plain arrays and back: what leaves a process or goes to disk keeps its bits and its layout."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_array(activations: Tensor) -> np.ndarray:
    """The values as an array of the same width, images with their channels last; bfloat16 as its bits, int16."""
    activations = activations.detach().cpu()
    if activations.dim() == 4:
        activations = activations.permute(0, 2, 3, 1)
    activations = activations.contiguous()
    return (activations.view(torch.int16) if activations.dtype == torch.bfloat16 else activations).numpy()


def from_array(rows: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The activations that `to_array` gave, laid out with their channels together; shares memory with `rows`."""
    activations = torch.from_numpy(rows).view(dtype)
    return activations.permute(0, 3, 1, 2) if activations.dim() == 4 else activations
