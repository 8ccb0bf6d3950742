"""How fast each kind of block has run at its best, and what a search would take if all of it ran like that.

The bound of a search is its passes at each block's own best speed, its bytes at the best rate at which a block was
read and verified, and the decoding. What a search takes above it went into waiting, planning, probing and slow batches.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch


class Pace:
    """Laps of blocks over batches, from any thread; a GPU is timed by events, without waiting for it."""

    def __init__(self, device: torch.device, num_streams: int):
        self._device = device
        self._num_streams = num_streams
        self._lock = threading.Lock()
        self._num_items: dict[Hashable, int] = defaultdict(int)
        self._best_s_per_item: dict[Hashable, float] = {}
        self._events: list[tuple[Hashable, int, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def lap(self, kind: Hashable, num_items: int) -> Iterator[None]:
        """Times what one block does to a batch of `num_items`."""
        if self._device.type == "cuda":
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            stop.record()
            self._events.append((kind, num_items, start, stop))
        else:
            started_s = time.perf_counter()
            yield
            self._take(kind, num_items, time.perf_counter() - started_s)

    def compute_bound_s(self) -> float:
        """Seconds that all laps would take if each had gone at the best speed of its kind, all streams at once."""
        if self._events:
            torch.cuda.synchronize(self._device)
        for kind, num_items, start, stop in self._events:
            self._take(kind, num_items, start.elapsed_time(stop) / 1000)
        self._events.clear()
        total_s = sum(count * self._best_s_per_item[kind] for kind, count in self._num_items.items())
        return total_s / self._num_streams

    def _take(self, kind: Hashable, num_items: int, took_s: float) -> None:
        with self._lock:
            self._num_items[kind] += num_items
            best_s = self._best_s_per_item.get(kind, float("inf"))
            self._best_s_per_item[kind] = min(best_s, took_s / num_items)
