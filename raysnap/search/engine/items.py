"""Draw and decode the items of a search once; read them by position."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from raysnap.config.search_options import SearchOptions
from raysnap.datasets.dataset import Dataset, Item
from raysnap.datasets.pixel_cache import PixelCache
from raysnap.datasets.splits import probe_splits
from raysnap.errors import DataError
from raysnap.search.plan.tree import Candidate
from raysnap.store.manifest import Preprocessing


@dataclass(frozen=True)
class ProbeItems:
    """The items of a search: train, then test, decoded once for each size that a candidate needs."""

    caches: dict[int, PixelCache]
    positions: tuple[int, ...]
    train_labels: np.ndarray
    test_labels: np.ndarray
    decode_s: float

    @classmethod
    def open(cls, dataset: Dataset, candidates: Sequence[Candidate], options: SearchOptions) -> ProbeItems:
        """Draw the items that the options ask for, and decode those that no earlier search has decoded.

        Raises:
            DataError: fewer than two classes or no test item could be decoded.
        """
        started = time.perf_counter()
        train, test = probe_splits(dataset, options.seed, options.num_train, options.num_test)
        items: list[Item] = [*train, *test]
        sizes = sorted({candidate.preprocessing.resize_size for candidate in candidates})
        caches = {size: PixelCache.open(items, dataset.root, size) for size in sizes}
        good = sorted(set.intersection(*(set(cache.load(range(len(items)))) for cache in caches.values())))
        num_good_train = sum(position < len(train) for position in good)
        labels = np.array([items[position].label for position in good], dtype=np.int64)
        if len(np.unique(labels[:num_good_train])) < 2 or num_good_train == len(good):
            raise DataError(
                f"{dataset.root}: a search needs train items of at least 2 classes and a test item, found "
                f"{len(np.unique(labels[:num_good_train]))} classes and {len(good) - num_good_train} test items"
            )
        decode_s = time.perf_counter() - started
        return cls(caches, tuple(good), labels[:num_good_train], labels[num_good_train:], decode_s)

    @property
    def num_decoded(self) -> int:
        """How many images this search decoded, as no earlier one had."""
        return sum(cache.num_decoded for cache in self.caches.values())

    def read(self, positions: Sequence[int], preprocessing: Preprocessing) -> Tensor:
        """Return the items at these positions, uint8 `[n, 3, S, S]`."""
        indices = [self.positions[position] for position in positions]
        return self.caches[preprocessing.resize_size].read(indices, preprocessing.image_size)
