"""The blocks that a search holds in memory: read ahead of the walk, each once for as long as someone needs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raysnap.models.numerics import Numerics
from raysnap.search.engine.folding import build_inference_block
from raysnap.search.engine.work import Work
from raysnap.search.plan.tree import Node
from raysnap.system import num_cpus

# A GPU waits for its blocks, so several threads read for it; a CPU's cores have blocks to run.
MAX_READERS = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True)
class _Held:
    """A block made ready, and the seconds that reading, verifying and preparing it took the reader."""

    block: nn.Module
    num_bytes: int
    took_s: float


class Shelf:
    """Blocks by digest; threads of its own read, verify and prepare them while others compute."""

    def __init__(self, read_block: Callable[[str], Mapping[str, Tensor]], numerics: Numerics, work: Work):
        """`read_block` takes a digest and gives the block's verified tensors; `work` counts what was read."""
        self._read_block = read_block
        self._numerics = numerics
        self._work = work
        self._lock = threading.Lock()
        self._num_readers = min(MAX_READERS[numerics.device.type], num_cpus())
        self._readers = ThreadPoolExecutor(self._num_readers, thread_name_prefix="raysnap-shelf")
        # Copies to a GPU would else wait for all blocks that run on it.
        self._stream = torch.cuda.Stream(numerics.device) if numerics.device.type == "cuda" else None
        self._futures: dict[tuple, Future[_Held]] = {}
        self._counted: set[tuple] = set()
        self._best_s_per_byte = float("inf")

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *exc: object) -> None:
        self._readers.shutdown(cancel_futures=True)

    def fetch(self, nodes: Iterable[Node]) -> None:
        """Begins to read the nodes' blocks, in this order, but for those already here."""
        for node in nodes:
            key = _block_key(node)
            if key not in self._futures:
                self._futures[key] = self._readers.submit(self._prepare, node)

    def block(self, node: Node, work: Work) -> nn.Module:
        """The node's block, waited for on `work`'s time; from any thread.

        Raises:
            BlockDamaged: its bytes are not what its digest promises.
            WeightsError: its tensors aren't those of this block of its architecture.
        """
        key = _block_key(node)
        with work.timed("load_blocks"):
            held = self._futures[key].result()
        with self._lock:
            if key not in self._counted:
                self._counted.add(key)
                self._work.block_bytes_read += held.num_bytes
                self._best_s_per_byte = min(self._best_s_per_byte, held.took_s / held.num_bytes)
        return held.block

    def keep(self, nodes: Iterable[Node]) -> None:
        """Lets go of every block but these nodes'."""
        kept = {_block_key(node) for node in nodes}
        for key in self._futures.keys() - kept:
            self._futures.pop(key).cancel()
            self._counted.discard(key)

    def read_bound_s(self) -> float:
        """Seconds that all bytes read so far would take if every reader had gone at the best rate of one block."""
        if not self._work.block_bytes_read:
            return 0.0
        return self._work.block_bytes_read * self._best_s_per_byte / self._num_readers

    def _prepare(self, node: Node) -> _Held:
        started_s = time.perf_counter()
        with self._on_stream():
            tensors = self._read_block(node.block.digest)
            block = build_inference_block(node.architecture, node.block_index, tensors, self._numerics)
        return _Held(block, node.block.num_bytes, time.perf_counter() - started_s)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """What a GPU is told inside is done on the readers' own stream, and done when this ends."""
        with torch.cuda.stream(self._stream):  # of None, as on a CPU, nothing changes
            yield
        if self._stream is not None:
            self._stream.synchronize()


def _block_key(node: Node) -> tuple:
    """What a block in memory goes by: nodes under different parents may hold the same one."""
    return node.architecture, node.block_index, node.block.digest
