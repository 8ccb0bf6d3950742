"""Read a folder that `torch.distributed.checkpoint` wrote: tensors in chunks, in one file for each process.

Its index, `.metadata`, is a pickle, and torch unpickles it without care. Here it is followed by the machine that makes
nothing but stand-ins, and so is the small file that each chunk is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from raysnap.models.checkpoints.folders import DISTRIBUTED_INDEX
from raysnap.models.checkpoints.inert_pickles import (
    MAX_COUNT,
    InertFile,
    Made,
    Named,
    OddKey,
    TensorOutline,
    follow,
    is_size,
)
from raysnap.models.tensor_bytes import DTYPES

MAX_INDEX_BYTES = 256 * 2**20
MAX_CHUNKS = 1_000  # of one tensor

_DTYPES = {str(dtype).replace(".", " "): dtype for dtype in DTYPES.values()}

Counts: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class _Chunk:
    """A part of a tensor: where it begins there, its shape, and where its file is in another one."""

    start: Counts
    shape: Counts
    path: Path
    offset: int
    num_bytes: int


@dataclass(frozen=True, eq=False)
class DistributedTensor:
    """A tensor without its values, and the chunks that have them."""

    dtype: torch.dtype
    shape: Counts
    chunks: tuple[_Chunk, ...]


class DistributedFolder:
    """The tensors in such a folder.

    Attributes:
        entries: tensors by name, in each of the state dicts that were saved together.
    """

    def __init__(self, folder: Path):
        """Read the folder's index.

        Raises:
            ValueError: it is no such index, or names what the folder doesn't hold.
            OSError: a file can't be read.
        """
        with (folder / DISTRIBUTED_INDEX).open("rb") as file:
            if (folder / DISTRIBUTED_INDEX).stat().st_size > MAX_INDEX_BYTES:
                raise ValueError(f"an index of more than {MAX_INDEX_BYTES} bytes")
            index = _state_of(follow(file))
        tensors, places, paths = (index.get(key) for key in ("state_dict_metadata", "storage_data", "planner_data"))
        if not isinstance(tensors, dict) or not isinstance(places, dict):
            raise ValueError("an index without tensors and places")
        self._place_of = {_key_of(key): _state_of(place) for key, place in places.items()}
        self._sizes: dict[Path, int] = {}
        self.entries: dict[str, dict[str, DistributedTensor]] = {}
        for name, description in tensors.items():
            state = _state_of(description)
            if isinstance(name, str) and "chunks" in state:
                path = paths.get(name) if isinstance(paths, dict) else None
                is_path = isinstance(path, tuple) and len(path) > 1 and all(isinstance(part, str) for part in path)
                entry, own = ("/".join(path[:-1]), path[-1]) if isinstance(path, tuple) and is_path else ("", name)
                self.entries.setdefault(entry, {})[own] = self._tensor(folder, name, state)

    def _tensor(self, folder: Path, name: str, state: Mapping[Any, Any]) -> DistributedTensor:
        properties = state.get("properties")
        kind = properties.state[0] if isinstance(properties, Made) and isinstance(properties.state, tuple) else None
        dtype = _DTYPES.get(kind.name) if isinstance(kind, Named) else None
        shape, chunks = _counts(state.get("size")), state.get("chunks")
        if dtype is None or not isinstance(chunks, list):
            raise ValueError(f"{name[:80]!r} without a type or chunks")
        found = []
        for chunk in map(_state_of, chunks):
            start, size = _counts(chunk.get("offsets")), _counts(chunk.get("sizes"))
            place = self._place_of.get((name, start)) or self._place_of.get((name, None))
            if place is None:
                raise ValueError(f"{name[:80]!r}, of which a chunk is nowhere")
            found.append(_Chunk(start, size, *self._place(folder, place)))
        if sum(math.prod(chunk.shape) for chunk in found) != math.prod(shape) or not all(
            len(chunk.start) == len(chunk.shape) == len(shape)
            and all(begin + size <= end for begin, size, end in zip(chunk.start, chunk.shape, shape, strict=True))
            for chunk in found
        ):
            raise ValueError(f"{name[:80]!r}, whose chunks are not the whole of it")
        if len(found) > MAX_CHUNKS or any(_overlap(one, other) for one, other in combinations(found, 2)):
            raise ValueError(f"{name[:80]!r}, whose chunks overlap or are more than {MAX_CHUNKS}")
        if sum(chunk.num_bytes for chunk in found) < math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name[:80]!r}, which is larger than its chunks")
        return DistributedTensor(dtype, shape, tuple(found))

    def _place(self, folder: Path, place: Mapping[Any, Any]) -> tuple[Path, int, int]:
        name, offset, num_bytes = (place.get(key) for key in ("relative_path", "offset", "length"))
        if place.get("transform_descriptors"):
            raise ValueError("chunks that are compressed")
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError("a chunk in a file that is not beside the index")
        if not isinstance(offset, int) or not isinstance(num_bytes, int):
            raise ValueError(f"a chunk without a place in {name[:80]}")
        path = folder / name
        if path not in self._sizes:
            self._sizes[path] = path.stat().st_size
        if not 0 <= offset <= offset + num_bytes <= self._sizes[path]:
            raise ValueError(f"a chunk beyond the end of {name[:80]}")
        return path, offset, num_bytes

    def tensors(self, outlines: Mapping[str, DistributedTensor]) -> dict[str, Tensor]:
        """Return tensors with their values.

        Raises:
            ValueError: a chunk is not what the index says.
            OSError: a file can't be read.
        """
        found = {}
        for name, outline in outlines.items():
            found[name] = torch.empty(outline.shape, dtype=outline.dtype)
            for chunk in outline.chunks:
                part = found[name]
                for dimension, (begin, size) in enumerate(zip(chunk.start, chunk.shape, strict=True)):
                    part = part.narrow(dimension, begin, size)
                part.copy_(_read_chunk(chunk, outline.dtype))
        return found


def _read_chunk(chunk: _Chunk, dtype: torch.dtype) -> Tensor:
    with chunk.path.open("rb") as file:
        file.seek(chunk.offset)
        inert = InertFile(file.read(chunk.num_bytes))
    outline = inert.value
    if not isinstance(outline, TensorOutline) or (outline.shape, outline.dtype) != (chunk.shape, dtype):
        raise ValueError("a chunk that is not the tensor of the index")
    return inert.tensors({"": outline})[""]


def _overlap(one: _Chunk, other: _Chunk) -> bool:
    sides = zip(one.start, one.shape, other.start, other.shape, strict=True)
    return all(first < second + more and second < first + size for first, size, second, more in sides)


def _state_of(value: Any) -> Mapping[Any, Any]:
    return value.state if isinstance(value, Made) and isinstance(value.state, dict) else {}


def _key_of(key: Any) -> tuple[Any, Counts | None]:
    """Return the tensor's name and the chunk's beginning that a key of the index stands for."""
    state = _state_of(key.value) if isinstance(key, OddKey) else {}
    name, offset = state.get("fqn"), state.get("offset")
    return (name if isinstance(name, str) else None), None if offset is None else _counts(offset)


def _counts(value: Any) -> Counts:
    counts = value.arguments[0] if is_size(value) else value
    if not isinstance(counts, tuple) or not all(type(one) is int and 0 <= one <= MAX_COUNT for one in counts):
        raise ValueError("a shape that is none")
    return counts
