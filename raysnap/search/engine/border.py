"""Activations as plain arrays and back: what leaves a process or goes to disk keeps its bits and its layout."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

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


class Border(Protocol):
    """Where walks begin and end besides pixels and features: activations that others made, and that others want.

    Attributes:
        given: indices of nodes whose outputs need not be computed.
        wanted: indices of nodes whose outputs others want.
        dtype: of all these outputs, that in which blocks compute.
    """

    dtype: torch.dtype
    given: Collection[int]
    wanted: Collection[int]

    def read(self, node: int, positions: Sequence[int]) -> Tensor:
        """The outputs of a given node, as a block gives them, on any device."""

    def write(self, node: int, positions: Sequence[int], outputs: Tensor) -> None:
        """Takes the outputs of a wanted node."""
