"""Limit the rate at which a store's blocks are read, so that this machine's disk acts as a slower one."""

from __future__ import annotations

import threading
import time


class ReadLimit:
    """A disk that delivers `bytes_per_s` to all its readers together, one after the other.

    A reader waits until such a disk would have delivered what it has read. A sleep that took too long, as on a busy
    machine, is compensated; pauses between files are not, nor are reads that are slower than the limit.
    """

    def __init__(self, bytes_per_s: float):
        self._bytes_per_s = bytes_per_s
        self._is_free_s = 0.0
        self._overslept_s = 0.0
        self._lock = threading.Lock()

    def wait(self, num_bytes: int, asked_s: float) -> None:
        """Wait for the next `num_bytes` of a file whose reading began at `asked_s` of `time.perf_counter`."""
        with self._lock:
            begin_s = max(self._is_free_s, asked_s - self._overslept_s)
            self._is_free_s = until_s = begin_s + num_bytes / self._bytes_per_s
            self._overslept_s = 0.0
        wait_s = until_s - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
            with self._lock:
                self._overslept_s = time.perf_counter() - until_s
