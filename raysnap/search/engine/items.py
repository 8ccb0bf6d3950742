"""Draw and decode the items of a search once; read them by position."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysnap.config.search_options import SearchOptions
from raysnap.datasets.dataset import Dataset, Item
from raysnap.datasets.pixel_cache import Form, PixelCache
from raysnap.datasets.splits import probe_splits
from raysnap.datasets.text.token_cache import LoadTokenizer
from raysnap.errors import DataError
from raysnap.humanize import plural
from raysnap.progress import OnProgress, ignore_progress
from raysnap.search.plan.tree import Candidate
from raysnap.store.preprocessing import AnyPreprocessing
from raysnap.training.item_caches import ItemCache, open_cache, read_items

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DrawnItems:
    """The items that a search may use, not decoded yet; of train and test, every prefix is a fair subset."""

    dataset: Dataset
    train: tuple[Item, ...]
    test: tuple[Item, ...]
    caches: dict[Form, ItemCache]
    draw_s: float

    @classmethod
    def draw(
        cls, dataset: Dataset, candidates: Sequence[Candidate], options: SearchOptions, load_tokenizer: LoadTokenizer
    ) -> DrawnItems:
        """Draw the items that the options ask for, and open the caches of their pixels or tokens."""
        started_s = time.perf_counter()
        train, test = probe_splits(
            dataset, options.seed, options.num_train, options.num_test, spares_test=options.spares_test
        )
        ways = {one.preprocessing.resizing: one.preprocessing for one in candidates}
        caches: dict[Form, ItemCache] = {
            form: open_cache([*train, *test], dataset, ways[form], load_tokenizer) for form in sorted(ways)
        }
        return cls(dataset, train, test, caches, time.perf_counter() - started_s)

    def num_undecoded(self, num_train: int, num_test: int) -> int:
        """Return how many images are still to be decoded before a search of the first items of each kind."""
        indices = self._first(num_train, num_test)
        return sum(cache.num_missing(indices) for cache in self.caches.values())

    def decode(
        self, num_train: int, num_test: int, on_progress: OnProgress = ignore_progress, *, is_busy: bool = False
    ) -> ProbeItems:
        """Decode those of the first items of each kind that no earlier search has decoded.

        Args:
            on_progress: called before and after, where there are any.
            is_busy: whether other threads of this process run Python meanwhile.

        Raises:
            DataError: fewer than two classes or no test item could be decoded.
        """
        started_s = time.perf_counter()
        indices = self._first(num_train, num_test)
        num_undecoded = self.num_undecoded(num_train, num_test)
        if num_undecoded:
            on_progress("data", 0, 1, f"{plural(num_undecoded, 'image')} of {self.dataset.name} to decode")
        for cache in self.caches.values():
            if isinstance(cache, PixelCache):
                cache.is_busy = is_busy
        good = sorted(set.intersection(*(set(cache.load(indices)) for cache in self.caches.values())))
        if num_undecoded:
            on_progress("data", 1, 1, "decoded")
        items = [*self.train, *self.test]
        num_good_train = sum(index < len(self.train) for index in good)
        labels = np.array([items[index].label for index in good], dtype=np.int64)
        if len(np.unique(labels[:num_good_train])) < 2 or num_good_train == len(good):
            raise DataError(
                f"{self.dataset.root}: a search needs train items of at least 2 classes and a test item, found "
                f"{len(np.unique(labels[:num_good_train]))} classes and {len(good) - num_good_train} test items"
            )
        decode_s = self.draw_s + time.perf_counter() - started_s
        return ProbeItems(self.caches, tuple(good), labels[:num_good_train], labels[num_good_train:], decode_s)

    def _first(self, num_train: int, num_test: int) -> list[int]:
        """Return the indices of the first items of each kind in the list of all, train before test."""
        return [*range(num_train), *range(len(self.train), len(self.train) + num_test)]


@dataclass(frozen=True)
class ProbeItems:
    """The items of a search: train, then test, decoded once for each way in which candidates resize."""

    caches: dict[Form, ItemCache]
    positions: tuple[int, ...]
    train_labels: np.ndarray
    test_labels: np.ndarray
    decode_s: float

    @property
    def bad(self) -> list[str]:
        """The items that could not be read, each with its file and the reason."""
        return [fault for cache in self.caches.values() for _, fault in sorted(cache.bad.items())]

    @property
    def num_decoded(self) -> int:
        """How many images this search decoded, as no earlier one had."""
        return sum(cache.num_decoded for cache in self.caches.values())

    def read(self, positions: Sequence[int], preprocessing: AnyPreprocessing) -> Tensor:
        """Return the items at these positions: uint8 `[n, 3, S, S]` of images, int64 `[n, T]` of texts."""
        indices = [self.positions[position] for position in positions]
        return read_items(self.caches[preprocessing.resizing], indices, preprocessing)

    def release(self) -> None:
        """Let go of the memory that the pixels read so far take in this process."""
        for cache in self.caches.values():
            cache.release()
