"""How fast each kind of block has run at its best, and what a search would take if all of it ran like that.

The bound of a search is its passes at each block's own best speed, its bytes at the best rate at which a block was
read and verified, and the decoding. What a search takes above it went into waiting, planning, probing and slow batches.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Pace:
    """Laps of blocks over batches; a GPU is timed by events, without waiting for it."""

    device: torch.device
    num_items: dict[Hashable, int] = field(default_factory=lambda: defaultdict(int))
    best_s_per_item: dict[Hashable, float] = field(default_factory=dict)
    _events: list[tuple[Hashable, int, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    @contextmanager
    def lap(self, kind: Hashable, num_items: int) -> Iterator[None]:
        """Times what one block does to a batch of `num_items`."""
        self.num_items[kind] += num_items
        if self.device.type == "cuda":
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            stop.record()
            self._events.append((kind, num_items, start, stop))
        else:
            started_s = time.perf_counter()
            yield
            self._take(kind, (time.perf_counter() - started_s) / num_items)

    def compute_bound_s(self) -> float:
        """Seconds that all laps would take if each had gone at the best speed of its kind."""
        if self._events:
            torch.cuda.synchronize(self.device)
        for kind, num_items, start, stop in self._events:
            self._take(kind, start.elapsed_time(stop) / 1000 / num_items)
        self._events.clear()
        return sum(count * self.best_s_per_item[kind] for kind, count in self.num_items.items())

    def _take(self, kind: Hashable, s_per_item: float) -> None:
        self.best_s_per_item[kind] = min(s_per_item, self.best_s_per_item.get(kind, s_per_item))
