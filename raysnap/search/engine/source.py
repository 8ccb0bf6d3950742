"""Where a contest's features come from, and what getting them took; one process or many workers answer alike."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raysnap.store.manifest import Preprocessing


@dataclass
class Work:
    """What a source of features has done so far.

    Attributes:
        block_item_passes: how often a block ran on an item, summed.
        flops: FLOPs of those passes, as `block_shapes` counts them.
        block_bytes_read: bytes of the blocks read from the store.
        peak_activation_bytes: the most bytes of activations held at once.
        timings_s: seconds by stage: `plan`, `load_blocks` (waited for), `decode`, `inference`, `proxy`.
        bound_s: seconds that the same passes and bytes need at the least: see `Pace`.
    """

    block_item_passes: int = 0
    flops: int = 0
    block_bytes_read: int = 0
    peak_activation_bytes: int = 0
    timings_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    bound_s: float = 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds spent inside to `stage`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s[stage] += time.perf_counter() - started


@dataclass(frozen=True)
class Gathered:
    """Features of some items for some candidates.

    Attributes:
        features: by candidate, float32 `[num_items, feature_dim]`, in the order of the positions asked for.
        failed: why a candidate has none: a block of it is damaged or does not fit.
    """

    features: dict[int, np.ndarray]
    failed: dict[int, str]


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


class FeatureSource(Protocol):
    """What a contest asks for features; candidates go by their number in the tree.

    Attributes:
        dtype: what blocks give.
        fingerprint: what the last bits of features depend on, blocks and items aside.
    """

    work: Work
    dtype: torch.dtype
    fingerprint: str

    def gather(
        self, candidates: Collection[int], positions: Sequence[int], *, is_last: bool, border: Border | None = None
    ) -> Gathered:
        """The candidates' features of the items at these positions; nothing is asked for after the last time."""

    def keep(self, candidates: Collection[int]) -> None:
        """Lets go of what only other candidates need."""


class ItemSource(Protocol):
    """Where a search's pixels come from."""

    def read(self, positions: Sequence[int], preprocessing: Preprocessing) -> Tensor:
        """The items at these positions, uint8 `[n, 3, S, S]`."""
