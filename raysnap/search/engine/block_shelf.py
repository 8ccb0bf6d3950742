"""Hold a search's blocks in memory: read ahead of the walk, each once for as long as the search needs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raysnap.models.numerics import Numerics
from raysnap.search.engine.folding import build_inference_block
from raysnap.search.engine.work import Work
from raysnap.search.plan.costs import BlockKey, block_key
from raysnap.search.plan.tree import Node
from raysnap.system import num_cpus

# A GPU waits for its blocks, and so do the streams of a CPU where many candidates run few items.
MAX_READERS = 8
# While it is read, a block is in memory as its file, in parts and prepared: all readers' take so much of it at most.
READING_COPIES, READING_SHARE = 3, 1 / 8


@dataclass(frozen=True)
class _Held:
    """A prepared block, and the seconds that reading, verifying and preparing it took."""

    block: nn.Module
    num_bytes: int
    took_s: float


def pick_num_readers(nodes: Iterable[Node], memory_bytes: int) -> int:
    """Return how many threads should read these nodes' blocks at once under a bound on memory."""
    largest_bytes = READING_COPIES * max((node.block.num_bytes for node in nodes), default=1)
    return max(1, min(MAX_READERS, num_cpus(), int(READING_SHARE * memory_bytes / largest_bytes)))


class Shelf:
    """Blocks by digest; reader threads read, verify and prepare them while other threads compute."""

    def __init__(
        self,
        read_block: Callable[[str], Mapping[str, Tensor]],
        numerics: Numerics,
        work: Work,
        num_readers: int = 1,
    ):
        """`read_block` takes a digest and returns the block's verified tensors; `work` counts what was read."""
        self._read_block = read_block
        self._numerics = numerics
        self._work = work
        self._lock = threading.Lock()
        self.num_readers = num_readers
        self._readers = ThreadPoolExecutor(self.num_readers, thread_name_prefix="raysnap-shelf")
        # On the default stream, copies to a GPU would wait for all blocks that run on it.
        is_gpu = numerics.device.type == "cuda"
        self._stream = torch.cuda.Stream(numerics.device) if is_gpu else None  # type: ignore[no-untyped-call]
        self._futures: dict[BlockKey, Future[_Held]] = {}
        self._counted: set[BlockKey] = set()
        self._best_s_per_byte = float("inf")

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *exc: object) -> None:
        self._readers.shutdown(cancel_futures=True)

    @property
    def held(self) -> AbstractSet[BlockKey]:
        """The blocks that are here or being read."""
        return self._futures.keys()

    def fetch(self, nodes: Iterable[Node]) -> None:
        """Begin to read the nodes' blocks, in this order, except those already here."""
        for node in nodes:
            key = block_key(node)
            if key not in self._futures:
                self._futures[key] = self._readers.submit(self._prepare, node)

    def block(self, node: Node, work: Work) -> nn.Module:
        """Return the node's block; waiting for it counts as `work`'s time. Any thread may call this.

        Raises:
            BlockDamaged: its bytes are not what its digest promises.
            WeightsError: its tensors aren't those of this block of its architecture.
        """
        key = block_key(node)
        with work.timed("load_blocks"):
            held = self._futures[key].result()
        with self._lock:
            if key not in self._counted:
                self._counted.add(key)
                self._work.block_bytes_read += held.num_bytes
                self._best_s_per_byte = min(self._best_s_per_byte, held.took_s / held.num_bytes)
        return held.block

    def drop(self, keys: Iterable[BlockKey]) -> None:
        """Drop these blocks; one that is needed again is read again."""
        keys = [key for key in keys if key in self._futures]
        if keys and self._stream is not None:
            torch.cuda.synchronize(self._numerics.device)  # what runs on them may not have ended
        for key in keys:
            self._futures.pop(key).cancel()
            self._counted.discard(key)

    def read_bound_s(self) -> float:
        """Return the seconds that all bytes read so far would take at the best rate of one block."""
        if not self._work.block_bytes_read:
            return 0.0
        return self._work.block_bytes_read * self._best_s_per_byte / self.num_readers

    def _prepare(self, node: Node) -> _Held:
        started_s = time.perf_counter()
        with self._on_stream():
            tensors = self._read_block(node.block.digest)
            image_size = node.preprocessing.image_size
            block = build_inference_block(node.architecture, image_size, node.block_index, tensors, self._numerics)
        return _Held(block, node.block.num_bytes, time.perf_counter() - started_s)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Run GPU work on the readers' own stream, and wait for it at the end."""
        with torch.cuda.stream(self._stream):  # None, as on a CPU, changes nothing
            yield
        if self._stream is not None:
            self._stream.synchronize()
