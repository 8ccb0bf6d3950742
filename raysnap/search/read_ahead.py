"""Read blocks before anything can compute with them: while torch is imported, which takes a second or two.

Only reading and verifying needs no torch. Nothing is read ahead where that may be in vain (features are cached, so that
nobody knows yet which blocks will be needed; a time budget may leave most of them out), where it would break a bound on
memory, and for a GPU, which takes blocks from memory that torch has pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from raysnap.datasets.dataset import Dataset
from raysnap.errors import RaysnapError
from raysnap.search.engine.setup import FREE_SHARE, Setup
from raysnap.search.plan.tree import Candidate
from raysnap.store.store import Store
from raysnap.system import cache_place, free_memory_bytes, has_gpu_driver

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Blocks that wait for the search take at most this part of what it may take.
AHEAD_SHARE = 1 / 8


class ReadAhead:
    """A store's blocks, as `Store.read_block` gives them, of which some are here already, each to be taken once.

    Attributes:
        num_bytes_ahead: bytes of the blocks that were read ahead.
    """

    def __init__(self, store: Store):
        self.num_bytes_ahead = 0
        self._store = store
        self._contents: dict[str, memoryview] = {}

    def read(
        self, setup: Setup, dataset: Dataset, candidates: Sequence[Candidate], is_over: Callable[[], bool]
    ) -> None:
        """Read the candidates' blocks, those of the first candidates first, until it is over or there is no room.

        What can't be read is left to the search, which says so.
        """
        room_bytes = _room_bytes(setup, dataset)
        for block in dict.fromkeys(block for candidate in candidates for block in candidate.blocks):
            room_bytes -= block.num_bytes
            if room_bytes < 0 or is_over():
                break
            with suppress(RaysnapError):
                self._contents[block.digest] = self._store.read_bytes(block.digest)
                self.num_bytes_ahead += block.num_bytes

    def read_block(self, digest: str, device: torch.device | None = None) -> dict[str, Tensor]:
        """Return the block's tensors.

        Raises:
            BlockDamaged: the block is missing, or its bytes do not match its digest.
        """
        return self._store.read_block(digest, device, self._contents.pop(digest, None))


def _room_bytes(setup: Setup, dataset: Dataset) -> int:
    options = setup.options
    features = cache_place(dataset.root, "features")
    has_features = options.feature_cache_bytes and features.is_dir() and any(features.iterdir())
    is_bounded = options.memory_bytes is not None or options.time_budget_s is not None
    on_gpu = options.device != "cpu" and has_gpu_driver()
    if has_features or is_bounded or on_gpu or options.workers > 1:
        return 0
    return int(AHEAD_SHARE * FREE_SHARE * free_memory_bytes())
