"""Put a cache in front of a source of features: read what earlier searches computed, keep what is new.

Features are kept for later searches of the same items, whatever their candidates; activations, for later snapshots that
branch off there.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from raysnap.models.block_facts import block_shapes
from raysnap.search.engine.border import Border, from_array, to_array
from raysnap.search.engine.feature_cache import FeatureCache, Segment
from raysnap.search.engine.source import FeatureSource, Gathered, ItemSource
from raysnap.search.plan.tree import PrefixTree, needed_nodes
from raysnap.store.preprocessing import AnyPreprocessing

# Activations are kept where reading and writing them at a disk's pace takes less than computing them on one core.
DISK_BYTES_PER_S = 5e8
FLOPS_PER_S = 5e10
ACTIVATIONS_SHARE = 0.75
DIGEST_ITEMS = 64

logger = logging.getLogger(__name__)


class NodeKeys:
    """Names of nodes' outputs in a cache: digests of all that these depend on, apart from the item."""

    def __init__(self, tree: PrefixTree, fingerprint: str):
        self._tree = tree
        self._fingerprint = fingerprint
        self._known: dict[int, str] = {}

    def features(self, index: int) -> str:
        """Return the name of a node's outputs as features."""
        if index not in self._known:
            node = self._tree.nodes[index]
            if node.parent is None:
                facts = [self._fingerprint, node.preprocessing.model_dump(mode="json"), node.architecture]
                above = json.dumps(facts, sort_keys=True)
            else:
                above = self.features(node.parent)
            self._known[index] = blake3(f"{above}\n{node.block.digest}".encode()).hexdigest()[:32]
        return self._known[index]

    def activations(self, index: int) -> str:
        """Return the name of a node's outputs as inputs of other blocks."""
        return f"{self.features(index)}-activations"


def find_cached(
    tree: PrefixTree, candidates: Collection[int], cache: FeatureCache, fingerprint: str, num_items: int
) -> set[int]:
    """Return the nodes that need not run for as many items as the cache has of their outputs, or of all below them."""
    keys = NodeKeys(tree, fingerprint)
    ends = {tree.end_of(number) for number in candidates}
    done = {index for index in ends if len(cache.items_of(keys.features(index))) >= num_items}
    inner = needed_nodes(tree, candidates) - ends
    given = {index for index in inner if len(cache.items_of(keys.activations(index))) >= num_items}
    left = (number for number in candidates if tree.end_of(number) not in done)
    return needed_nodes(tree, candidates) - needed_nodes(tree, left, given)


class CachedSource:
    """Another source behind a cache; a `FeatureSource`."""

    def __init__(self, source: FeatureSource, tree: PrefixTree, items: ItemSource, num_items: int, cache: FeatureCache):
        """`num_items` is how many items the whole search uses."""
        self.work = source.work
        self.dtype = source.dtype
        self.fingerprint = source.fingerprint
        self._source = source
        self._tree = tree
        self._items = items
        self._num_items = num_items
        self._cache = cache
        self._keys = NodeKeys(tree, source.fingerprint)
        self._item_digests: dict[tuple[object, ...], str] = {}

    def keep(self, candidates: Collection[int]) -> None:
        """Drop what only other candidates need."""
        self._source.keep(candidates)

    def gather(
        self,
        candidates: Collection[int],
        positions: Sequence[int],
        *,
        is_last: bool,
        border: Border | None = None,  # noqa: ARG002 - the cache makes its own
    ) -> Gathered:
        """Return the candidates' features of the items at these positions."""
        positions = list(positions)
        known: dict[int, dict[int, np.ndarray]] = {}
        missing: dict[tuple[AnyPreprocessing, tuple[int, ...]], list[int]] = defaultdict(list)
        for number in candidates:
            preprocessing = self._tree.candidates[number].preprocessing
            known[number] = self._known_features(number, positions)
            left = tuple(position for position in positions if position not in known[number])
            if left:
                missing[preprocessing, left].append(number)
        features: dict[int, np.ndarray] = {}
        failed: dict[int, str] = {}
        for group, ((preprocessing, left), numbers) in enumerate(missing.items(), start=1):
            found = self._compute(numbers, left, preprocessing, is_last=is_last and group == len(missing))
            failed |= found.failed
            for number, rows in found.features.items():
                if known[number]:
                    known[number] |= zip(left, rows, strict=True)
                else:
                    features[number] = rows
        for number in known.keys() - features.keys() - failed.keys():
            features[number] = np.stack([known[number][position] for position in positions])
        self._cache.release()
        return Gathered(features, failed)

    def _known_features(self, number: int, positions: Sequence[int]) -> dict[int, np.ndarray]:
        """Return the candidate's features that are in the cache, by position."""
        key = self._keys.features(self._tree.end_of(number))
        here = self._cache.items_of(key)
        digests = self._digests(positions, self._tree.candidates[number].preprocessing) if here else []
        known = {position: digest for position, digest in zip(positions, digests, strict=False) if digest in here}
        rows = self._cache.rows(key, list(known.values())) if known else None
        return dict(zip(known, rows, strict=True)) if rows is not None else {}

    def _compute(
        self, numbers: list[int], positions: Sequence[int], preprocessing: AnyPreprocessing, *, is_last: bool
    ) -> Gathered:
        """Compute features, starting from cached activations where there are any; keep them for later searches."""
        digests = self._digests(positions, preprocessing)
        border = self._open_border(numbers, positions, digests)
        try:
            found = self._source.gather(numbers, positions, is_last=is_last, border=border)
            border.publish()
        finally:
            border.abandon()
        with _tolerate_disk_errors():
            segment = Segment(self._cache)
            try:
                for end, number in {self._tree.end_of(number): number for number in found.features}.items():
                    segment.add(self._keys.features(end), found.features[number])
                segment.publish(digests)
            finally:
                segment.abandon()
        return found

    def _open_border(self, numbers: list[int], positions: Sequence[int], digests: list[str]) -> _CacheBorder:
        """Return the activations that the cache has for all these items, and those that it should get."""
        needed = needed_nodes(self._tree, numbers)
        ends = {self._tree.end_of(number) for number in numbers}
        asked = set(digests)
        here = {n for n in needed - ends if asked <= self._cache.items_of(self._keys.activations(n))}
        given: dict[int, list[np.ndarray]] = {}
        while True:
            run = needed_nodes(self._tree, numbers, here)
            parents = {parent for index in run if (parent := self._tree.nodes[index].parent) is not None}
            sources = parents & here - given.keys()
            for node in sources:
                rows = self._cache.rows(self._keys.activations(node), digests)
                if rows is None:
                    here.discard(node)
                else:
                    given[node] = rows
            if sources <= given.keys():
                break
        wanted = self._choose_kept(run - ends, len(positions))
        return _CacheBorder(self._cache, self.dtype, dict(zip(positions, digests, strict=True)), given, wanted)

    def _choose_kept(self, nodes: Collection[int], num_items: int) -> dict[int, str]:
        """Choose the nodes whose outputs to keep, with their keys: those where most snapshots branch off per byte.

        What a search keeps takes at most a part of the budget, the same for each item.
        """
        room = ACTIVATIONS_SHARE * self._cache.budget_bytes * num_items / self._num_items
        worth: list[tuple[float, int, int]] = []
        flops: dict[int | None, int] = {None: 0}
        for index in sorted(nodes_and_ancestors(self._tree, nodes)):
            node = self._tree.nodes[index]
            shape = block_shapes(node.architecture, node.preprocessing.image_size)[node.block_index]
            flops[index] = flops[node.parent] + shape.flops
            num_bytes = num_items * shape.output_bytes * self.dtype.itemsize // 4
            is_cheaper = flops[index] / FLOPS_PER_S > 2 * num_bytes / num_items / DISK_BYTES_PER_S
            if index in nodes and is_cheaper:
                worth.append((-len(node.children) * flops[index] / num_bytes, index, num_bytes))
        wanted: dict[int, str] = {}
        for _, index, num_bytes in sorted(worth):
            key = self._keys.activations(index)
            if num_bytes <= room and key not in wanted.values():
                wanted[index] = key
                room -= num_bytes
        return wanted

    def _digests(self, positions: Sequence[int], preprocessing: AnyPreprocessing) -> list[str]:
        """Return a digest of each item's pixels or tokens."""
        pixels_of = preprocessing.item_form
        unknown = [position for position in positions if (*pixels_of, position) not in self._item_digests]
        with self.work.timed("decode"):
            for start in range(0, len(unknown), DIGEST_ITEMS):
                batch = unknown[start : start + DIGEST_ITEMS]
                for position, pixels in zip(batch, self._items.read(batch, preprocessing).numpy(), strict=True):
                    self._item_digests[(*pixels_of, position)] = blake3(pixels.data.cast("B")).hexdigest()[:32]
        return [self._item_digests[(*pixels_of, position)] for position in positions]


@dataclass
class _CacheBorder:
    """The activations of one gathering that come from the cache, and those that go there."""

    cache: FeatureCache
    dtype: torch.dtype
    digests: Mapping[int, str]
    rows: Mapping[int, list[np.ndarray]]
    keys: Mapping[int, str]
    segments: dict[int, Segment] = field(default_factory=dict)
    written: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.given = self.rows.keys()
        self.wanted = self.keys.keys()
        self._row_of = {position: row for row, position in enumerate(self.digests)}

    def read(self, node: int, positions: Sequence[int]) -> Tensor:
        return from_array(np.stack([self.rows[node][self._row_of[position]] for position in positions]), self.dtype)

    def write(self, node: int, positions: Sequence[int], outputs: Tensor) -> None:
        with _tolerate_disk_errors():
            if node not in self.segments:
                self.segments[node] = Segment(self.cache)
            self.segments[node].add(self.keys[node], to_array(outputs))
            self.written[node] += [self.digests[position] for position in positions]

    def publish(self) -> None:
        with _tolerate_disk_errors():
            for node, segment in self.segments.items():
                segment.publish(self.written[node])

    def abandon(self) -> None:
        for segment in self.segments.values():
            segment.abandon()


@contextmanager
def _tolerate_disk_errors() -> Iterator[None]:
    """Log an error of the disk: a full or broken one costs the next search time, not this one its answer."""
    try:
        yield
    except OSError as error:
        logger.warning("the feature cache can't be written: %s", error)


def nodes_and_ancestors(tree: PrefixTree, nodes: Collection[int]) -> set[int]:
    """Return the nodes and all above them."""
    above: set[int] = set()
    for start in nodes:
        index: int | None = start
        while index is not None and index not in above:
            above.add(index)
            index = tree.nodes[index].parent
    return above
