"""The outputs of frozen blocks, computed once and kept in memory maps that epochs, trials and processes share.

An entry is a folder of `outputs.bin`, a row per item, and `index.bin`, a byte per chunk of items; its name is a digest
of everything that the outputs follow from. Entries are beside the dataset's pixel cache, or in the user's cache folder.
Any number of processes may fill one entry at once: they write equal bytes, and each takes the chunks in its own random
order and skips those that are there. A chunk is marked only after it reached the disk, so a crash leaves chunks to be
computed again, never wrong ones. Both files are written by calls and only read through maps: on a full disk a call
fails, whereas a map that needs a page kills the process.

A process that opens an entry holds a shared lock on its index. Entries that nobody holds are removed to make room,
least recently used first.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from raysnap.atomic import create_zeros, sync_data, write_all_at
from raysnap.datasets.disk_cache import DiskCache, hold, mark_used, remove
from raysnap.datasets.pixel_cache import SlotCache
from raysnap.system import cache_place
from raysnap.training.prefix_plan import CHUNK_ITEMS

FORMAT = 2
SYNC_BYTES = 64 * 2**20

_HERE = 1


class CachedOutputs:
    """One entry: the outputs `[num_items, *item_shape]` of frozen blocks, open until `close`."""

    def __init__(self, directory: Path, num_items: int, item_shape: Sequence[int], dtype: torch.dtype):
        self.directory = directory
        self.item_shape = tuple(item_shape)
        self._item_bytes = math.prod(item_shape) * dtype.itemsize
        self._resources = ExitStack()
        with ExitStack() as opening:
            self._index = opening.enter_context((directory / "index.bin").open("r+b", buffering=0))
            opening.enter_context(hold(self._index))
            self._file = opening.enter_context((directory / "outputs.bin").open("r+b", buffering=0))
            self._marks = np.memmap(self._index, dtype=np.uint8, mode="r", shape=(_num_chunks(num_items),))
            num_bytes = num_items * self._item_bytes
            # "c" is for torch, which warns of arrays that can't be written; nothing ever writes to this one.
            content = np.memmap(self._file, dtype=np.uint8, mode="c", shape=(num_bytes,))
            self._resources = opening.pop_all()
        self._outputs = torch.from_numpy(content).view(dtype).view(num_items, *self.item_shape)

    @property
    def is_complete(self) -> bool:
        """Whether every item's outputs are there."""
        return bool((self._marks == _HERE).all())

    def fill(self, compute: Callable[[Tensor], Tensor]) -> None:
        """Compute what is missing; `compute` takes item positions and returns their outputs.

        Raises:
            OSError: the disk is full or broken.
        """
        missing = np.flatnonzero(self._marks != _HERE).tolist()
        random.shuffle(missing)
        written: list[int] = []
        for chunk in missing:
            if self._marks[chunk] == _HERE:
                continue
            first = chunk * CHUNK_ITEMS
            positions = torch.arange(first, min(first + CHUNK_ITEMS, len(self._outputs)))
            outputs = compute(positions).to(self._outputs.dtype).cpu().contiguous()
            write_all_at(self._file.fileno(), outputs.view(torch.uint8).numpy(), first * self._item_bytes)
            written.append(chunk)
            if len(written) * CHUNK_ITEMS * self._item_bytes >= SYNC_BYTES:
                self._mark(written)
                written = []
        self._mark(written)

    def _mark(self, chunks: list[int]) -> None:
        """Write the chunks to the disk, then mark them."""
        sync_data(self._file.fileno())
        for chunk in chunks:
            write_all_at(self._index.fileno(), bytes([_HERE]), chunk)

    def read(self, positions: Tensor, device: torch.device) -> Tensor:
        """Return the outputs of the items at these positions (int64 on the CPU), on the device."""
        if device.type != "cuda":
            return self._outputs.index_select(0, positions).to(device)
        rows = torch.empty((len(positions), *self.item_shape), dtype=self._outputs.dtype, pin_memory=True)
        torch.index_select(self._outputs, 0, positions, out=rows)
        return rows.to(device, non_blocking=True)

    def close(self) -> None:
        """Release the entry; what was read stays valid."""
        self._resources.close()


@dataclass(frozen=True)
class PrefixCache:
    """Where, how much and how deep the outputs of frozen blocks are cached for one trial.

    Attributes:
        place: the folder of new entries; one per dataset.
        depth: how many of the frozen blocks' outputs are cached; 0 is none.
        disk: the budget of the entries, and every place whose entries count towards it, `place` among them.
    """

    place: Path
    depth: int
    disk: DiskCache

    @classmethod
    def beside(
        cls, dataset_root: Path, depth: int, budget_bytes: int, dataset_roots: Sequence[Path] = ()
    ) -> PrefixCache:
        """Return the cache of a dataset, which shares its budget with those of the other datasets of a job."""
        place = prefix_place(dataset_root)
        places = {place, *(prefix_place(root) for root in dataset_roots)}
        return cls(place, depth, DiskCache(tuple(sorted(places)), budget_bytes))

    def open(
        self, key: Mapping[str, Any], num_items: int, item_shape: Sequence[int], dtype: torch.dtype
    ) -> CachedOutputs | None:
        """Return the entry of that key, empty where it is new; None where there is no room for it.

        Raises:
            OSError: the folder can't be written.
        """
        facts = {"format": FORMAT, "key": key, "shape": [num_items, *item_shape], "dtype": str(dtype)}
        name = blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        directory = self.place / name
        lengths = {
            "outputs.bin": num_items * math.prod(item_shape) * dtype.itemsize,
            "index.bin": _num_chunks(num_items),
        }
        with self.disk.locked():
            is_whole = all(_length(directory / file_name) == length for file_name, length in lengths.items())
            if not is_whole:
                remove(directory)
                if not self.disk.make_room(self.place, sum(lengths.values())):
                    return None
                directory.mkdir()
                create_zeros(directory / "index.bin", lengths["index.bin"])
                with (directory / "outputs.bin").open("wb") as file:
                    file.truncate(lengths["outputs.bin"])
            mark_used(directory)
            return CachedOutputs(directory, num_items, item_shape, dtype)


def prefix_place(dataset_root: Path) -> Path:
    """Return the folder of a dataset's cached outputs, which may not exist."""
    return cache_place(dataset_root, "prefixes")


def items_digest(cache: SlotCache, indices: Sequence[int]) -> str:
    """Return a digest of the content and order of a cache's items at `indices`, labels ignored."""
    digest = blake3(cache.directory.name.encode())
    for index in indices:
        digest.update(os.fsencode("/".join(cache.items[index].path.parts[-3:])) + b"\0")
    return digest.hexdigest()


def _num_chunks(num_items: int) -> int:
    return -(-num_items // CHUNK_ITEMS)


def _length(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
