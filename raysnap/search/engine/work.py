"""Count the work of a search: passes, FLOPs, bytes, images."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raysnap.search.plan.costs import Kind

if TYPE_CHECKING:
    from raysnap.search.engine.pace import Laps  # imports torch, which a plan does without


@dataclass
class Work:
    """What a source of features has done so far.

    Attributes:
        block_item_passes: how often a block ran on an item, summed.
        flops: FLOPs of those passes, as `block_shapes` counts them.
        image_forwards: the same in images through whole models, each block counted by its part of its model's FLOPs.
        block_bytes_read: bytes of the blocks read from the store.
        peak_activation_bytes: the most bytes of activations held at once.
        peak_memory_bytes: the most bytes of blocks, activations, features and pixels at once, by the plan.
        timings_s: seconds by stage: `plan`, `load_blocks` (waiting for them), `decode`, `inference`, `proxy`.
        bound_s: least seconds that the same passes and bytes would take: see `Pace`.
        laps: how fast this process ran each kind of block.
    """

    block_item_passes: int = 0
    flops: int = 0
    image_forwards: float = 0.0
    block_bytes_read: int = 0
    peak_activation_bytes: int = 0
    peak_memory_bytes: int = 0
    timings_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    bound_s: float = 0.0
    laps: dict[Kind, Laps] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent inside to `stage`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s[stage] += time.perf_counter() - started

    def add(self, other: Work) -> None:
        """Add what another source did afterwards."""
        self.block_item_passes += other.block_item_passes
        self.flops += other.flops
        self.image_forwards += other.image_forwards
        self.block_bytes_read += other.block_bytes_read
        self.peak_activation_bytes = max(self.peak_activation_bytes, other.peak_activation_bytes)
        self.peak_memory_bytes = max(self.peak_memory_bytes, other.peak_memory_bytes)
        for stage, seconds in other.timings_s.items():
            self.timings_s[stage] += seconds
        self.bound_s += other.bound_s
        for kind, laps in other.laps.items():
            self.laps[kind] = self.laps[kind].plus(laps) if kind in self.laps else laps
