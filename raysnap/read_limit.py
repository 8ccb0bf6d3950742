"""A limit on the rate at which a store's blocks are read: this machine's disk in the place of a slower one."""

from __future__ import annotations

import threading
import time


class ReadLimit:
    """A disk that gives `bytes_per_s` to all its readers together, one after the other.

    A reader waits until such a disk would have given it what it has read. Pauses between files are not made up for,
    and neither is a wait that took too long, but within a file.
    """

    def __init__(self, bytes_per_s: float):
        self._bytes_per_s = bytes_per_s
        self._is_free_s = 0.0
        self._lock = threading.Lock()

    def wait(self, num_bytes: int, asked_s: float) -> None:
        """Waits for the next `num_bytes` of a file whose reading began at `asked_s` of `time.perf_counter`."""
        with self._lock:
            self._is_free_s = max(self._is_free_s, asked_s) + num_bytes / self._bytes_per_s
            until_s = self._is_free_s
        time.sleep(max(0.0, until_s - time.perf_counter()))
