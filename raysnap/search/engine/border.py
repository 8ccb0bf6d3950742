"""Turn activations into plain arrays and back: between processes and on disk they keep their bits and layout."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


def to_array(activations: Tensor) -> np.ndarray:
    """Return the values as an array of the same width, images with channels last; bfloat16 as its bits, int16."""
    activations = activations.detach().cpu()
    if activations.dim() == 4:
        activations = activations.permute(0, 2, 3, 1)
    activations = activations.contiguous()
    return (activations.view(torch.int16) if activations.dtype == torch.bfloat16 else activations).numpy()


def from_array(rows: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return the activations that `to_array` took, in channels-last layout; shares memory with `rows`."""
    activations = torch.from_numpy(rows).view(dtype)
    return activations.permute(0, 3, 1, 2) if activations.dim() == 4 else activations


class Border(Protocol):
    """Where walks start and end other than at pixels and features: with activations computed or wanted elsewhere."""

    @property
    def dtype(self) -> torch.dtype:
        """What all these outputs are in: what blocks compute in."""

    @property
    def given(self) -> Collection[int]:
        """The indices of nodes whose outputs need not be computed."""

    @property
    def wanted(self) -> Collection[int]:
        """The indices of nodes whose outputs are wanted elsewhere."""

    def read(self, node: int, positions: Sequence[int]) -> Tensor:
        """Return the outputs of a given node, as its block returns them, on any device."""

    def write(self, node: int, positions: Sequence[int], outputs: Tensor) -> None:
        """Take the outputs of a wanted node."""
