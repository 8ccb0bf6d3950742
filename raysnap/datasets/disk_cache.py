"""Bounded caches on disk: entries that processes share within a budget of bytes, the least recently used evicted first.

What raysnap keeps for datasets, beside them or in the user's cache folder, is shown and cleared here too.

An entry is a file or a folder of files directly in one of the cache's places. What it holds is its owner's affair:
outputs of frozen blocks (`training.prefix_cache`), features (`search.engine.feature_cache`), blocks that were
fetched (`store.backends.block_cache`). Names that begin with a
dot or have a suffix are no entries, so locks and unfinished files are neither counted nor evicted.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, get_args

from raysnap.config.choices import CacheKind
from raysnap.errors import DataError
from raysnap.system import cache_places, user_cache_dir

KEEP_FREE_BYTES = 256 * 2**20

_LOCK_NAME = ".lock"
_ENTRY_NAME = re.compile(r"(\w+-)*[0-9a-f]{32}([0-9a-f]{32})?")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiskCache:
    """The places of a cache and the budget that all entries in them share.

    Entries that change after they appeared need `locked` and `hold`: a process makes, opens and removes them under the
    lock and holds those it has open. Entries that are whole when they appear and never change need neither.

    Attributes:
        places: the folders that hold the entries; they may not exist yet.
        budget_bytes: bound on the bytes of all entries together.
    """

    places: tuple[Path, ...]
    budget_bytes: int

    def entries(self) -> list[Path]:
        """Return the path of every entry, sorted within each place."""
        return [
            path
            for place in self.places
            if place.is_dir()
            for path in sorted(place.iterdir())
            if not path.suffix and not path.name.startswith(".")
        ]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the places and keep other processes out of this block until it ends.

        Raises:
            OSError: a place can't be created or locked.
        """
        with ExitStack() as locks:
            for place in sorted(self.places):
                place.mkdir(parents=True, exist_ok=True)
                fcntl.flock(locks.enter_context((place / _LOCK_NAME).open("wb")), fcntl.LOCK_EX)
            yield

    def make_room(self, place: Path, num_bytes: int, *, num_written_bytes: int = 0) -> bool:
        """Evict what an entry of `num_bytes` in `place` needs gone; return whether it fits.

        Entries that a process holds stay. Nothing is evicted where even that would not be enough.

        Args:
            place: the place of the new entry, which exists.
            num_bytes: size of the new entry.
            num_written_bytes: how many of those bytes are on the disk already.
        """
        usages = [usage for path in self.entries() if (usage := _usage(path)) is not None]
        held_bytes = sum(usage.num_bytes for usage in usages)
        free_bytes = shutil.disk_usage(place).free - sum(usage.num_unwritten_bytes for usage in usages)
        needed_bytes = num_bytes - num_written_bytes + KEEP_FREE_BYTES
        candidates = iter(sorted(usages, key=lambda usage: usage.used_ns) if num_bytes <= self.budget_bytes else ())
        evicted: list[Path] = []
        while held_bytes + num_bytes > self.budget_bytes or free_bytes < needed_bytes:
            usage = next((usage for usage in candidates if not _is_held(usage.path)), None)
            if usage is None:
                logger.info(
                    "cache %s: no room for %d bytes (budget %d, used %d, free on the disk %d)",
                    place, num_bytes, self.budget_bytes, held_bytes, free_bytes,
                )  # fmt: skip
                return False
            evicted.append(usage.path)
            held_bytes -= usage.num_bytes
            free_bytes += usage.num_bytes
        for path in evicted:
            logger.info("cache: removing %s to make room", path)
            remove(path)
        return True


def remove(path: Path) -> None:
    """Delete an entry, unless another process was faster."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def mark_used(path: Path) -> None:
    """Record that an entry is used now: its modification time says when it was last."""
    os.utime(path)


@contextmanager
def hold(file: BinaryIO) -> Iterator[None]:
    """Keep the entry that this open file belongs to from being evicted until the block ends."""
    fcntl.flock(file, fcntl.LOCK_SH)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # memory maps keep the file open for longer than its owner does


@dataclass(frozen=True)
class _Usage:
    """What an entry takes: all its bytes, and those of sparse files that the disk has yet to find room for."""

    path: Path
    used_ns: int
    num_bytes: int
    num_unwritten_bytes: int


def _usage(path: Path) -> _Usage | None:
    """Measure an entry; None where another process removed it meanwhile."""
    with suppress(FileNotFoundError):
        if not path.is_dir():
            stat = path.stat()
            return _Usage(path, stat.st_mtime_ns, stat.st_size, 0)
        stats = [file.stat() for file in path.iterdir()]
        num_bytes = sum(stat.st_size for stat in stats)
        num_written = sum(min(stat.st_size, 512 * stat.st_blocks) for stat in stats)
        return _Usage(path, path.stat().st_mtime_ns, num_bytes, num_bytes - num_written)
    return None


def _is_held(path: Path) -> bool:
    """Whether a process holds the entry; under the lock nobody can begin to."""
    if not path.is_dir():
        return False
    for file_path in path.iterdir():
        with suppress(FileNotFoundError), file_path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


@dataclass(frozen=True)
class CacheUse:
    """What one cache of a dataset takes.

    Attributes:
        dataset: the dataset's folder; None of a cache in the user's cache folder, which doesn't say.
        num_bytes: what it takes on the disk.
    """

    kind: CacheKind
    dataset: Path | None
    path: Path
    num_bytes: int


def find_caches(dataset_roots: Iterable[Path], *, with_others: bool) -> list[CacheUse]:
    """Return the caches of these datasets, and with `with_others` all others in the user's cache folder."""
    kinds: tuple[CacheKind, ...] = get_args(CacheKind)
    places: list[tuple[CacheKind, Path | None, Path]] = [
        (kind, root, place) for root in dataset_roots for kind in kinds for place in cache_places(root, kind)
    ]
    if with_others:
        known = {place for _, _, place in places}
        others = ((kind, place) for kind in kinds for place in sorted((user_cache_dir() / kind).glob("*/")))
        places += [(kind, None, place) for kind, place in others if place not in known]
    found = (CacheUse(kind, root, place, _disk_bytes(place)) for kind, root, place in places if place.is_dir())
    return [cache for cache in found if cache.num_bytes]


def clear_cache(cache: CacheUse) -> int:
    """Delete a cache's entries, except those that a process holds, and return the bytes that this freed.

    What has no name that raysnap gives to entries stays, wherever the cache's folder may be linked to.

    Raises:
        DataError: its folder can't be written.
    """
    disk = DiskCache((cache.path,), 0)
    try:
        with disk.locked():
            for path in disk.entries():
                if _ENTRY_NAME.fullmatch(path.name) and not (cache.kind == "prefixes" and _is_held(path)):
                    remove(path)
    except OSError as error:
        raise DataError(f"{cache.path}: can't be cleared: {error.strerror or error}") from None
    return cache.num_bytes - _disk_bytes(cache.path)


def _disk_bytes(folder: Path) -> int:
    """Return what the files in a folder take on the disk, where sparse ones take less than their length."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            stat = path.lstat()
            total += 512 * stat.st_blocks if S_ISREG(stat.st_mode) else 0
    return total
