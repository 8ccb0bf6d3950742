"""Time one search, without Ray: set the state of the page cache, read counters before and after.

Cold means that the files that the search reads (the candidates' blocks and manifests, and the dataset's pixel cache)
were written out, dropped from the page cache and verified absent just before. The kernel keeps their names and inodes:
dropping these requires root.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from raysnap.bench.block_reads import BlockReads, SearchFiles
from raysnap.bench.cells import Cell
from raysnap.bench.machine import MemoryStart, Moment, describe_machine, machine_key
from raysnap.bench.page_cache import Residency, drop, filesystem, load, residency
from raysnap.bench.read_limit import ReadLimit
from raysnap.humanize import bytes_text
from raysnap.search import search
from raysnap.store.backends.block_cache import BlockCache
from raysnap.store.store import Store

STAGED_LEVELS = ("steps", "step_details")
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")
STRAY_READ_BYTES = 2**20  # what a warm run may read: a few pages of libraries


def time_search(cell: Cell) -> dict[str, Any]:
    """Run the cell once; return its result, its measurements and the machine it ran on, as plain values.

    The cell's untimed runs come before the first run of a question and method in a process.

    Raises:
        RaysnapError: the search failed.
    """
    num_threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1
    torch.set_num_threads(num_threads)
    _warm_up(replace(cell, name="", cache="warm", io_limit_mib_per_s=None, detail="end_to_end", repeats=1))
    files = SearchFiles.of(cell)
    found = _prepare_page_cache(cell, files)
    limit = ReadLimit(cell.io_limit_mib_per_s * 2**20) if cell.io_limit_mib_per_s else None
    reads = BlockReads(limit)
    memory = MemoryStart.now()
    before, started_s = Moment.now(), time.perf_counter()
    result = search(Store.open(cell.store_dir, on_read=reads.record), cell.data, cell.options).to_dict()
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
        "search": _at_detail(result, cell.detail),
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
    """Run the search untimed, once in a process: load libraries, choose kernels, decode the images."""
    for _ in range(cell.num_warmups):
        search(cell.store_dir, cell.data, cell.options)


def _prepare_page_cache(cell: Cell, files: SearchFiles) -> dict[str, Any]:
    """Drop the files from the page cache, or load them; return its state then."""
    gc.collect()  # pages that an earlier search's pixel cache still maps can't be dropped
    before = residency(files.read)
    if cell.cache == "cold":
        drop([*files.read, *files.images])
        if files.fetched:
            BlockCache.of_user().forget(files.fetched)
    else:
        load(files.read)
    ready = residency(files.read)
    kinds = sorted({filesystem(path) for path in (cell.store_dir, *files.read[-1:]) if isinstance(path, Path)})
    return {
        "state": ready.state,
        "file_bytes": ready.file_bytes,
        "resident_before_bytes": before.resident_bytes,
        "resident_bytes": ready.resident_bytes,
        "filesystems": kinds,
        "problem": _cache_problem(cell.cache, ready, kinds),
    }


def _cache_problem(asked: str, ready: Residency, kinds: list[str]) -> str | None:
    """Return why the page cache is not in the state asked for; None where it is."""
    if ready.state == asked:
        return None
    if ready.resident_bytes is None:
        return f"the kernel doesn't say what is in memory, so it is unknown whether the run was {asked}"
    found = f"{bytes_text(ready.resident_bytes)} of {bytes_text(ready.file_bytes)} were in memory"
    in_memory = [kind for kind in kinds if kind in MEMORY_FILESYSTEMS]
    if asked == "cold" and in_memory:
        return f"not cold: {found}, as {in_memory[0]} keeps its files there"
    reason = "another process may keep them there" if asked == "cold" else "there may be too little memory"
    return f"not {asked}: {found}; {reason}"


def _cache_noise(cell: Cell, found: dict[str, Any], io: dict[str, Any], num_decoded: int) -> list[str]:
    """Return why the files that were read make the time noisy, a clause each."""
    read_bytes, needed_bytes = io["read_bytes"], io["needed_bytes"]
    noise = [found["problem"]] if found["problem"] else []
    if found["state"] == "cold" == cell.cache and read_bytes < needed_bytes:
        noise.append(f"only {bytes_text(read_bytes)} of {bytes_text(needed_bytes)} were read from the disk though cold")
    if cell.cache == "warm" and read_bytes > max(STRAY_READ_BYTES, needed_bytes // 100):
        noise.append(f"{bytes_text(read_bytes)} were read from the disk though warm")
    if num_decoded:
        noise.append(f"{num_decoded} images were decoded during the run, which later runs need not do")
    return noise


def _pixel_bytes(result: dict[str, Any], image_size: int) -> int:
    """Return the bytes of the pixels that the best candidate was scored on: the least that must be read of them."""
    best = result["ranking"][0] if result["ranking"] else {"num_train": 0, "num_test": 0}
    return (best["num_train"] + best["num_test"]) * 3 * image_size**2


def _at_detail(result: dict[str, Any], detail: str) -> dict[str, Any]:
    """Return the search's result with its times at the detail asked for; of files left out only how many there are."""
    kept = result if detail in STAGED_LEVELS else result | {"timings_s": {"total": result["timings_s"]["total"]}}
    kept |= {"data": result["data"] | {"left_out": []}}
    return {key: value for key, value in kept.items() if key != "rungs" or detail != "end_to_end"}
