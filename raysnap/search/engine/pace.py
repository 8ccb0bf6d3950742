"""Measure how fast each kind of block runs at its best, and how long a search would take if all of it ran that fast.

The bound of a search is its passes at each block's own best speed, its bytes at the best rate at which a block was
read and verified, and the decoding. The rest of its time is waiting, planning, probing and slow batches.
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
        """Time one block on a batch of `num_items`."""
        if self._device.type == "cuda":
            start: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            stop: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record()
            yield
            stop.record()
            self._events.append((kind, num_items, start, stop))
        else:
            started_s = time.perf_counter()
            yield
            self._record(kind, num_items, time.perf_counter() - started_s)

    def compute_bound_s(self) -> float:
        """Return the seconds that all laps would take at the best speed of their kind, all streams at once."""
        if self._events:
            torch.cuda.synchronize(self._device)
        for kind, num_items, start, stop in self._events:
            self._record(kind, num_items, start.elapsed_time(stop) / 1000)
        self._events.clear()
        total_s = sum(count * self._best_s_per_item[kind] for kind, count in self._num_items.items())
        return total_s / self._num_streams

    def _record(self, kind: Hashable, num_items: int, took_s: float) -> None:
        with self._lock:
            self._num_items[kind] += num_items
            best_s = self._best_s_per_item.get(kind, float("inf"))
            self._best_s_per_item[kind] = min(best_s, took_s / num_items)
