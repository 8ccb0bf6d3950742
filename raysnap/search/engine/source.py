"""Define where a contest's features come from: one process or many workers behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from raysnap.search.engine.border import Border
from raysnap.search.engine.work import Work
from raysnap.store.preprocessing import AnyPreprocessing


@dataclass(frozen=True)
class Gathered:
    """Features of some items for some candidates.

    Attributes:
        features: by candidate, float32 `[num_items, feature_dim]`, in the order of the positions asked for.
        failed: why a candidate has none: one of its blocks is damaged or doesn't fit.
    """

    features: dict[int, np.ndarray]
    failed: dict[int, str]


OnShare: TypeAlias = Callable[[float], None]
"""Called while features are computed, with how much of them is there, up to 1."""


def ignore_share(share: float) -> None:
    """Do nothing: the progress of a source that nobody watches."""


class BlockReader(Protocol):
    """Where a search's blocks come from; a `Store` is one."""

    def read_block(self, digest: str, device: torch.device | None = None) -> dict[str, Tensor]:
        """Return the block's verified tensors."""


class FeatureSource(Protocol):
    """What gives a contest its features; candidates are numbered as in the tree."""

    @property
    def work(self) -> Work:
        """What getting features took so far."""

    @property
    def dtype(self) -> torch.dtype:
        """What blocks compute in."""

    @property
    def fingerprint(self) -> str:
        """What the last bits of features depend on, apart from blocks and items."""

    def gather(
        self, candidates: Collection[int], positions: Sequence[int], *, is_last: bool, border: Border | None = None
    ) -> Gathered:
        """Return the candidates' features of the items at these positions; `is_last`: no call follows."""

    def keep(self, candidates: Collection[int]) -> None:
        """Drop what only other candidates need."""


class ItemSource(Protocol):
    """Where a search's pixels or tokens come from."""

    def read(self, positions: Sequence[int], preprocessing: AnyPreprocessing) -> Tensor:
        """Return the items at these positions: uint8 `[n, 3, S, S]` of images, int64 `[n, T]` of texts."""

    def release(self) -> None:
        """Let go of the memory that reading took."""
