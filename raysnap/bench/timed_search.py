"""One timed search: the page cache brought into the state asked for, counters read around it; no Ray in it.

Cold means that the files which the search reads, the candidates' blocks and manifests and the dataset's pixel cache,
were written out and dropped from the page cache, and found gone, just before. What the kernel keeps of their names and
inodes stays: dropping that takes root.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import torch

from raysnap.bench.block_reads import BlockReads, SearchFiles
from raysnap.bench.cells import Cell
from raysnap.bench.machine import MemoryStart, Moment, describe_machine, machine_key
from raysnap.bench.page_cache import Residency, drop, filesystem, load, residency
from raysnap.bench.read_limit import ReadLimit
from raysnap.humanize import bytes_text
from raysnap.search import search
from raysnap.store.store import Store

STAGED_LEVELS = ("steps", "step_details")
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")
STRAY_READ_BYTES = 2**20  # what a warm run may read: a library's page here and there


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
    result = search(Store.open(cell.store_dir, on_read=reads.see), cell.data, cell.options).to_dict()
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
        search(cell.store_dir, cell.data, cell.options)


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
