"""Measure which bytes of files are in the kernel's page cache, drop files from it, load files into it.

Needs no privileges and no container. What can't be dropped (files of tmpfs, pages that a process has mapped) stays, so
measure after a drop what is still there.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PIECE_BYTES = 2**20
MAPPED_BYTES = 2**30  # in one call; the answer for a gigabyte takes 256 KiB


@dataclass(frozen=True)
class Residency:
    """How much of some files is in the page cache.

    Attributes:
        file_bytes: bytes of the files, without holes.
        resident_bytes: those of them in memory; None where the kernel doesn't say.
    """

    file_bytes: int
    resident_bytes: int | None

    @property
    def state(self) -> str:
        """`warm` with 99 % of the bytes in memory or more, `cold` with 1 % or less, else `mixed`; or `unknown`."""
        if self.resident_bytes is None or not self.file_bytes:
            return "unknown"
        share = self.resident_bytes / self.file_bytes
        return "warm" if share >= 0.99 else "cold" if share <= 0.01 else "mixed"


def residency(paths: Iterable[Path]) -> Residency:
    """Return how much of the files is in memory now; asking changes nothing. A missing file counts as empty."""
    file_bytes = 0
    resident_bytes: int | None = 0
    for path in paths:
        with _opened(path) as file:
            if file is None:
                continue
            held_bytes = _held_bytes(file)
            file_bytes += held_bytes
            found = _resident_bytes(file) if held_bytes else 0
            resident_bytes = (
                None if found is None or resident_bytes is None else resident_bytes + min(found, held_bytes)
            )
    return Residency(file_bytes, resident_bytes)


def drop(paths: Iterable[Path]) -> None:
    """Drop the files from the page cache as far as the kernel can; what is not on the disk yet is written first."""
    for path in paths:
        with _opened(path) as file:
            if file is not None:
                os.fsync(file)  # a dirty page can't be dropped
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def load(paths: Iterable[Path]) -> None:
    """Load the files into the page cache, as far as memory allows, by reading them; holes are skipped."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    for path in paths:
        with _opened(path) as file:
            if file is None:
                continue
            for start, stop in _extents(file):
                while start < stop and (count := os.preadv(file, [buffer[: stop - start]], start)):
                    start += count


def filesystem(path: Path) -> str:
    """Return the type of the file system that holds the path, such as `ext4`; `unknown` where /proc doesn't say."""
    try:
        device = path.stat().st_dev
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == wanted:
            return kind.split()[0]
    return "unknown"


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """Open the file; yield its descriptor, or None where it was removed, as by a clean-up of the store or a cache."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    try:
        yield file
    finally:
        os.close(file)


def _held_bytes(file: int) -> int:
    """Return the bytes of a file's blocks on the disk; of a sparse file, less than its length."""
    stat = os.fstat(file)
    return min(stat.st_size, 512 * stat.st_blocks)


def _extents(file: int) -> Iterator[tuple[int, int]]:
    """Yield where the file's data begin and end between its holes."""
    stop, size = 0, os.fstat(file).st_size
    while stop < size:
        try:
            start = os.lseek(file, stop, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here to the end
                return
            raise
        stop = os.lseek(file, start, os.SEEK_HOLE)
        yield start, stop


def _resident_bytes(file: int) -> int | None:
    """Return the file's bytes in memory, by mincore(2) on a mapping that is never touched; None where that fails."""
    size, num_pages = os.fstat(file).st_size, 0
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    for start in range(0, size, MAPPED_BYTES):
        length = min(MAPPED_BYTES, size - start)
        in_memory = np.empty(-(-length // mmap.PAGESIZE), dtype=np.uint8)
        with mmap.mmap(file, length, prot=mmap.PROT_READ, offset=start) as mapping:
            pages = np.frombuffer(mapping, dtype=np.uint8)
            address = ctypes.c_void_p(pages.ctypes.data)
            failed = mincore(address, ctypes.c_size_t(length), ctypes.c_void_p(in_memory.ctypes.data))
            del pages  # the mapping can't be closed while an array refers to it
        if failed:
            return None
        num_pages += int((in_memory & 1).sum())
    return num_pages * mmap.PAGESIZE
