"""Keep features and activations for later searches: segments on disk, each complete and verified, or absent.

A segment is one file with the outputs of some nodes for some items. It is written under a unique name and appears by
rename; nothing in it ever changes, and any number of processes may add and remove segments at once. A segment whose
bytes don't match its digest is removed, and its outputs are computed again when needed. An output is identified by its
node's key, a digest of all that it depends on apart from the item, and by a digest of the item's pixels.

Layout: the outputs of each node, row by row; a JSON footer that lists items and nodes; the footer's length, 8 bytes,
little-endian; its BLAKE3. When the budget is full, the least recently used segments are removed.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from blake3 import blake3

from raysnap.datasets.disk_cache import DiskCache, mark_used
from raysnap.system import release_pages

FORMAT = 1
ABANDONED_S = 24 * 3600.0

_DIGEST_BYTES = 32
_TAIL_BYTES = 8 + _DIGEST_BYTES
_PARTIAL = ".partial"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """Where a node's rows lie in a segment; rows are in the order of the segment's items."""

    path: Path
    row_of: Mapping[str, int]
    offset: int
    shape: tuple[int, ...]
    dtype: str
    digest: str


class Segment:
    """A segment being written: `add` nodes' outputs, then `publish` or `abandon`."""

    def __init__(self, cache: FeatureCache):
        cache.place.mkdir(parents=True, exist_ok=True)
        self._cache = cache
        self._path = cache.place / f"{secrets.token_hex(16)}{_PARTIAL}"
        self._file: BinaryIO = self._path.open("xb")
        self._entries: list[dict[str, Any]] = []
        self._hasher = blake3()

    def add(self, key: str, rows: np.ndarray) -> None:
        """Append rows of a node's outputs; to those added before where the node is the same."""
        content = np.ascontiguousarray(rows)
        if not self._entries or self._entries[-1]["key"] != key:
            self._hasher = blake3()
            shape = [0, *content.shape[1:]]
            self._entries.append({"key": key, "offset": self._file.tell(), "shape": shape, "dtype": content.dtype.str})
        self._entries[-1]["shape"][0] += len(content)
        self._hasher.update(content.data.cast("B"))
        self._entries[-1]["digest"] = self._hasher.hexdigest()
        self._file.write(content.data.cast("B"))

    def publish(self, items: Sequence[str]) -> None:
        """Make the segment visible, removing others to make room; without room it is dropped.

        Args:
            items: which item each row is of; the same for all nodes.
        """
        footer = json.dumps({"format": FORMAT, "items": list(items), "entries": self._entries}).encode()
        self._file.write(footer + len(footer).to_bytes(8, "little") + blake3(footer).digest())
        self._file.close()
        num_bytes = self._path.stat().st_size
        if self._entries and self._cache.make_room(num_bytes):
            path = self._path.with_suffix("")
            self._path.rename(path)
            self._cache.adopt(path)
        else:
            self._path.unlink()

    def abandon(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class FeatureCache:
    """The segments of one dataset: those found when it was opened, and those that this process adds."""

    def __init__(self, place: Path, budget_bytes: int):
        self.place = place
        self.budget_bytes = budget_bytes
        self._disk = DiskCache((place,), budget_bytes)
        self._entries: dict[str, list[_Entry]] = defaultdict(list)
        self._verified: dict[int, np.ndarray] = {}
        for path in place.glob(f"*{_PARTIAL}"):
            stat = _stat(path)
            if stat is not None and time.time() - stat.st_mtime > ABANDONED_S:
                path.unlink(missing_ok=True)
        for path in self._disk.entries():
            self.adopt(path)

    def adopt(self, path: Path) -> None:
        """Add what a segment lists; remove one that is torn."""
        try:
            footer = _read_footer(path)
        except FileNotFoundError:
            return  # removed by another process
        if footer is None:
            self._remove(path, "is torn")
            return
        row_of = {item: row for row, item in enumerate(footer["items"])}
        for entry in footer["entries"]:
            found = _Entry(path, row_of, entry["offset"], tuple(entry["shape"]), entry["dtype"], entry["digest"])
            self._entries[entry["key"]].append(found)

    def items_of(self, key: str) -> set[str]:
        """Return the items for which a node's outputs are cached."""
        return set().union(*(entry.row_of for entry in self._entries.get(key, ())))

    def rows(self, key: str, items: Sequence[str]) -> list[np.ndarray] | None:
        """Return a node's outputs of each of these items, verified; None where some are missing."""
        found: dict[str, np.ndarray] = {}
        wanted = set(items)
        for entry in list(self._entries.get(key, ())):
            here = wanted.intersection(entry.row_of)
            content = self._content(key, entry) if here else None
            if content is not None:
                found |= {item: content[entry.row_of[item]] for item in here}
                wanted -= here
        return [found[item] for item in items] if not wanted else None

    def release(self) -> None:
        """Let go of the memory that the rows read so far take in this process."""
        for content in self._verified.values():
            release_pages(content.base)

    def make_room(self, num_bytes: int) -> bool:
        """Evict segments until a written one of `num_bytes` fits; return whether it does."""
        return self._disk.make_room(self.place, num_bytes, num_written_bytes=num_bytes)

    def _content(self, key: str, entry: _Entry) -> np.ndarray | None:
        """Return an entry's rows; where they can't be read, drop the entry and return None."""
        if id(entry) in self._verified:
            return self._verified[id(entry)]
        content = self._read_verified(entry)
        if content is None:
            self._entries[key].remove(entry)
        else:
            self._verified[id(entry)] = content
        return content

    def _read_verified(self, entry: _Entry) -> np.ndarray | None:
        """Return an entry's rows; where its segment is torn or damaged, remove that and return None."""
        try:
            content = np.memmap(entry.path, np.dtype(entry.dtype), "r", entry.offset, entry.shape)
            mark_used(entry.path)
        except FileNotFoundError:
            return None  # removed to make room for others
        except ValueError:
            self._remove(entry.path, "is torn")
            return None
        if blake3(content.data.cast("B")).hexdigest() != entry.digest:
            self._remove(entry.path, "is damaged")
            return None
        return content

    def _remove(self, path: Path, why: str) -> None:
        logger.warning("cached features %s: the file %s; its contents are computed again", path, why)
        path.unlink(missing_ok=True)


def _read_footer(path: Path) -> dict[str, Any] | None:
    """Return a segment's footer; None where the segment is torn."""
    with path.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        tail = os.pread(file.fileno(), _TAIL_BYTES, max(0, num_bytes - _TAIL_BYTES))
        length = int.from_bytes(tail[:8], "little")
        if len(tail) < _TAIL_BYTES or length > num_bytes - _TAIL_BYTES:
            return None
        footer = os.pread(file.fileno(), length, num_bytes - _TAIL_BYTES - length)
    if blake3(footer).digest() != tail[8:]:
        return None
    facts: dict[str, Any] = json.loads(footer)
    return facts if facts.get("format") == FORMAT else None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
