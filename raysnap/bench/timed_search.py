"""One timed search: the page cache brought into the state asked for, counters read around it; no Ray in it.

Cold means that the files which the search reads, the candidates' blocks and manifests and the dataset's pixel cache,
were written out and dropped from the page cache, and found gone, just before. What the kernel keeps of their names and
inodes stays: dropping that takes root.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from raysnap.bench.cells import Cell
from raysnap.bench.machine import MemoryStart, Moment, describe_machine, machine_key
from raysnap.bench.page_cache import Residency, drop, filesystem, load, residency
from raysnap.bench.read_limit import ReadLimit
from raysnap.datasets.dataset import image_files, open_dataset
from raysnap.datasets.pixel_cache import cache_files
from raysnap.humanize import bytes_text
from raysnap.search import search
from raysnap.search.ranking import find_candidates
from raysnap.store.files import Files
from raysnap.store.store import Store

STAGED_LEVELS = ("steps", "step_details")
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")
STRAY_READ_BYTES = 2**20  # what a warm run may read: a library's page here and there


@dataclass
class BlockReads:
    """What reading the blocks of a store took; `see` is a store's `on_read`.

    Attributes:
        limit: what reads are slowed to; None is nothing.
        recording_s: the time spent in keeping these records.
    """

    limit: ReadLimit | None
    recording_s: float = 0.0
    _reads: dict[tuple[str, float], tuple[int, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def see(self, digest: str, num_bytes: int, asked_s: float) -> None:
        """Waits as the limit says and adds the piece to its block's read."""
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
        """The time in which at least one block was being read."""
        total_s, covered_s = 0.0, float("-inf")
        for (_, asked_s), (_, until_s) in sorted(self._reads.items(), key=lambda read: read[0][1]):
            total_s += max(0.0, until_s - max(asked_s, covered_s))
            covered_s = max(covered_s, until_s)
        return total_s

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row per read, in order: whose block, how much, how long."""
        return [
            {"digest": digest, "num_bytes": num_bytes, "read_s": until_s - asked_s}
            for (digest, asked_s), (num_bytes, until_s) in self._reads.items()
        ]


@dataclass(frozen=True)
class SearchFiles:
    """The files of a search: `read` those it reads, `images` those it reads where pixels are not decoded yet.

    Attributes:
        block_bytes: bytes of the candidates' blocks, each counted once.
    """

    read: tuple[Path, ...]
    images: tuple[Path, ...]
    block_bytes: int

    @classmethod
    def of(cls, cell: Cell) -> SearchFiles:
        candidates = find_candidates(Store.open(cell.store_dir), cell.where, cell.image_size)
        blocks = {block.digest: block.num_bytes for candidate in candidates for block in candidate.blocks}
        files = Files(cell.store_dir)
        root = open_dataset(cell.data, cell.data_dir, cell.shapes).root
        pixels = cache_files(root, sorted({candidate.preprocessing.resize_size for candidate in candidates}))
        read = (
            cell.store_dir / "store.json",
            cell.store_dir / "index.sqlite",
            *(files.snapshots_dir / f"{candidate.snapshot}.json" for candidate in candidates),
            *(files.object_path(digest) for digest in blocks),
            *pixels,
        )
        return cls(read, tuple(image_files(root)), sum(blocks.values()))


def time_search(cell: Cell) -> dict[str, Any]:
    """What one run of the cell gave and took, and the machine it ran on, as plain values.

    The first run of a question and method in a process is preceded by the cell's untimed ones.

    Raises:
        RaysnapError: the search failed.
    """
    num_threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1
    torch.set_num_threads(num_threads)
    _warm_up(replace(cell, name="", cache="warm", io_limit_mib_per_s=None, detail="end_to_end", repeats=1))
    files = SearchFiles.of(cell)
    found = _prepare_page_cache(cell, files)
    reads = BlockReads(cell.io_limit_mib_per_s and ReadLimit(cell.io_limit_mib_per_s * 2**20))
    memory = MemoryStart.now()
    before, started_s = Moment.now(), time.perf_counter()
    result = search(Store.open(cell.store_dir, on_read=reads.see), **cell.search_arguments).to_dict()
    wall_s, after = time.perf_counter() - started_s, Moment.now()
    needed_bytes = files.block_bytes + _pixel_bytes(result, cell.image_size)
    io = {
        "read_bytes": after.read_bytes - before.read_bytes,
        "needed_bytes": needed_bytes,
        "block_bytes": reads.num_bytes,
        "block_read_s": reads.read_s,
        "block_mib_per_s": reads.num_bytes / 2**20 / reads.read_s if reads.num_bytes else None,
    }
    load_meanwhile = before.load_until(after)
    noise = [*load_meanwhile.noise, *_cache_noise(cell, found, io, result["work"].get("images_decoded", 0))]
    facts = describe_machine()
    return {
        "search": _as_told(result, cell.detail),
        "wall_s": wall_s,
        "num_threads": num_threads,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": machine_key(facts),
        "machine_facts": facts,
        "page_cache": found | {"resident_after_bytes": residency(files.read).resident_bytes},
        "io": io,
        "memory": memory.peak(),
        "load": asdict(load_meanwhile),
        "is_noisy": bool(noise),
        "noise": noise,
        "block_reads": reads.rows if cell.detail == "step_details" else [],
        "recording_s": reads.recording_s,
    }


@cache
def _warm_up(cell: Cell) -> None:
    """Runs the search untimed, once in a process: libraries are loaded, kernels chosen, the images decoded."""
    for _ in range(cell.num_warmups):
        search(cell.store_dir, **cell.search_arguments)


def _prepare_page_cache(cell: Cell, files: SearchFiles) -> dict[str, Any]:
    """Drops the files or brings them in, and says what came of it."""
    gc.collect()  # pages that an earlier search's pixel cache still maps can't be dropped
    before = residency(files.read)
    if cell.cache == "cold":
        drop([*files.read, *files.images])
    else:
        load(files.read)
    ready = residency(files.read)
    kinds = sorted({filesystem(path) for path in (cell.store_dir, *files.read[-1:])})
    return {
        "state": ready.state,
        "file_bytes": ready.file_bytes,
        "resident_before_bytes": before.resident_bytes,
        "resident_bytes": ready.resident_bytes,
        "filesystems": kinds,
        "problem": _cache_problem(cell.cache, ready, kinds),
    }


def _cache_problem(asked: str, ready: Residency, kinds: list[str]) -> str | None:
    """Why the page cache is not in the state asked for; None where it is."""
    if ready.state == asked:
        return None
    if ready.resident_bytes is None:
        return f"the kernel doesn't tell what is in memory, so nobody knows that the run was {asked}"
    told = f"{bytes_text(ready.resident_bytes)} of {bytes_text(ready.file_bytes)} were in memory"
    in_memory = [kind for kind in kinds if kind in MEMORY_FILESYSTEMS]
    if asked == "cold" and in_memory:
        return f"not cold: {told}, as {in_memory[0]} keeps its files there"
    reason = "another process may hold them" if asked == "cold" else "there may be too little of it"
    return f"not {asked}: {told}; {reason}"


def _cache_noise(cell: Cell, found: dict[str, Any], io: dict[str, Any], num_decoded: int) -> list[str]:
    """What about the files that were read makes the time doubtful, a clause each."""
    read_bytes, needed_bytes = io["read_bytes"], io["needed_bytes"]
    noise = [found["problem"]] if found["problem"] else []
    if found["state"] == "cold" == cell.cache and read_bytes < needed_bytes:
        noise.append(f"only {bytes_text(read_bytes)} of {bytes_text(needed_bytes)} were read from the disk though cold")
    if cell.cache == "warm" and read_bytes > max(STRAY_READ_BYTES, needed_bytes // 100):
        noise.append(f"{bytes_text(read_bytes)} were read from the disk though warm")
    if num_decoded:
        noise.append(f"{num_decoded} images were decoded meanwhile, which later runs need not")
    return noise


def _pixel_bytes(result: dict[str, Any], image_size: int) -> int:
    """The bytes of the pixels that the best candidate was scored on: the least that has to be read of them."""
    best = result["ranking"][0] if result["ranking"] else {"num_train": 0, "num_test": 0}
    return (best["num_train"] + best["num_test"]) * 3 * image_size**2


def _as_told(result: dict[str, Any], detail: str) -> dict[str, Any]:
    """The search's result with its times as finely as asked for."""
    kept = result if detail in STAGED_LEVELS else result | {"timings_s": {"total": result["timings_s"]["total"]}}
    return {key: value for key, value in kept.items() if key != "rungs" or detail != "end_to_end"}
