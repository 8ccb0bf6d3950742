"""Record the block reads of a search, and list the files that it reads."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysnap.bench.cells import Cell
from raysnap.bench.read_limit import ReadLimit
from raysnap.datasets.dataset import open_dataset
from raysnap.datasets.pixel_cache import cache_files
from raysnap.store.backends.place import object_key
from raysnap.store.catalog import manifest_key


@dataclass
class BlockReads:
    """Records what reading the blocks of a store took; `record` is a store's `on_read`.

    Attributes:
        limit: the rate that reads are limited to; None is no limit.
        recording_s: seconds spent on keeping these records.
    """

    limit: ReadLimit | None
    recording_s: float = 0.0
    _reads: dict[tuple[str, float], tuple[int, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, digest: str, num_bytes: int, asked_s: float) -> None:
        """Wait as the limit demands, and add the piece to its block's read."""
        if self.limit is not None:
            self.limit.wait(num_bytes, asked_s)
        now_s = time.perf_counter()
        with self._lock:
            read_bytes, _ = self._reads.get((digest, asked_s), (0, 0.0))
            self._reads[digest, asked_s] = (read_bytes + num_bytes, now_s)
            self.recording_s += time.perf_counter() - now_s

    @property
    def num_bytes(self) -> int:
        """The bytes of all reads."""
        return sum(num_bytes for num_bytes, _ in self._reads.values())

    @property
    def read_s(self) -> float:
        """Seconds in which at least one block was being read."""
        total_s, covered_s = 0.0, float("-inf")
        for (_, asked_s), (_, until_s) in sorted(self._reads.items(), key=lambda read: read[0][1]):
            total_s += max(0.0, until_s - max(asked_s, covered_s))
            covered_s = max(covered_s, until_s)
        return total_s

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row per read, in order: its block's digest, bytes and seconds."""
        return [
            {"digest": digest, "num_bytes": num_bytes, "read_s": until_s - asked_s}
            for (digest, asked_s), (num_bytes, until_s) in self._reads.items()
        ]


@dataclass(frozen=True)
class SearchFiles:
    """The files of a search: those it always reads, and images, which it reads where pixels are not decoded yet.

    Attributes:
        block_bytes: bytes of the candidates' blocks, each counted once.
        fetched: digests of the blocks that a store in a bucket has fetched; none of a store in a folder.
    """

    read: tuple[Path, ...]
    images: tuple[Path, ...]
    block_bytes: int
    fetched: tuple[str, ...]

    @classmethod
    def of(cls, cell: Cell) -> SearchFiles:
        """List the files of the cell's search."""
        candidates = cell.candidates()
        blocks = {block.digest: block.num_bytes for candidate in candidates for block in candidate.blocks}
        dataset = open_dataset(cell.data, cell.options.data_dir, cell.options.shapes)
        pixels = cache_files(dataset.root, sorted({candidate.preprocessing.resizing for candidate in candidates}))
        stored = []
        if isinstance(cell.store_dir, Path):  # a bucket is no file of this machine
            keys = (
                "store.json",
                "index.sqlite",
                *(manifest_key(candidate.snapshot) for candidate in candidates),
                *map(object_key, blocks),
            )
            stored = [cell.store_dir / key for key in keys]
        fetched = () if isinstance(cell.store_dir, Path) else tuple(blocks)
        return cls((*stored, *pixels), tuple(dataset.image_paths), sum(blocks.values()), fetched)
