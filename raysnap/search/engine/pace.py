"""Measure how fast each kind of block runs at its best, and how long a search would take if all of it ran that fast.

The bound of a search is its passes at each block's own best speed, its bytes at the best rate at which a block was
read and verified, and the decoding. The rest of its time is waiting, planning, probing and slow batches.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from raysnap.search.plan.costs import Kind


@dataclass
class Laps:
    """The laps of one kind of block, summed.

    Attributes:
        total_s: seconds of the device: on a CPU those of the threads that ran the laps, waits left out.
        best_s_per_item: wall seconds per item of the fastest lap.
    """

    num_batches: int = 0
    num_items: int = 0
    total_s: float = 0.0
    best_s_per_item: float = float("inf")

    def plus(self, other: Laps) -> Laps:
        """Return the laps of both."""
        return Laps(
            self.num_batches + other.num_batches,
            self.num_items + other.num_items,
            self.total_s + other.total_s,
            min(self.best_s_per_item, other.best_s_per_item),
        )


class Pace:
    """Laps of blocks over batches, from any thread; a GPU is timed by events, without waiting for it."""

    def __init__(self, device: torch.device, num_streams: int):
        self._device = device
        self._num_streams = num_streams
        self._lock = threading.Lock()
        self._laps: dict[Kind, Laps] = defaultdict(Laps)
        self._events: list[tuple[Kind, int, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def lap(self, kind: Kind, num_items: int) -> Iterator[None]:
        """Time one block on a batch of `num_items`."""
        if self._device.type == "cuda":
            start: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            stop: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record()
            yield
            stop.record()
            self._events.append((kind, num_items, start, stop))
        else:
            started_s, cpu_started_s = time.perf_counter(), time.thread_time()
            yield
            self._record(kind, num_items, time.perf_counter() - started_s, time.thread_time() - cpu_started_s)

    def laps(self) -> dict[Kind, Laps]:
        """Return the laps so far by kind; a GPU is waited for."""
        if self._events:
            torch.cuda.synchronize(self._device)
        for kind, num_items, start, stop in self._events:
            took_s = start.elapsed_time(stop) / 1000
            self._record(kind, num_items, took_s, took_s)
        self._events.clear()
        return dict(self._laps)

    def compute_bound_s(self) -> float:
        """Return the seconds that all laps would take at the best speed of their kind, all streams at once."""
        return sum(laps.num_items * laps.best_s_per_item for laps in self.laps().values()) / self._num_streams

    def _record(self, kind: Kind, num_items: int, took_s: float, device_s: float) -> None:
        with self._lock:
            laps = self._laps[kind]
            laps.num_batches += 1
            laps.num_items += num_items
            laps.total_s += device_s
            laps.best_s_per_item = min(laps.best_s_per_item, took_s / num_items)
