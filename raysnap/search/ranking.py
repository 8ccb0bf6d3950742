"""From a store and a dataset to a ranking: the loop over a method's rungs."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from raysnap.blocks import HEAD
from raysnap.choices import Method, Proxy
from raysnap.config import ShapesConfig
from raysnap.data import Dataset, Item, open_dataset, probe_splits
from raysnap.errors import DataError, UsageError
from raysnap.manifest import Manifest, Preprocessing
from raysnap.pixels import PixelCache
from raysnap.search.confidence import tied_with
from raysnap.search.executor import Executor
from raysnap.search.plan import Rung, Walk, plan_rungs, plan_walk, shares_prefixes
from raysnap.search.proxies import PROXIES, Score
from raysnap.search.result import RankedSnapshot, SearchResult, SkippedSnapshot
from raysnap.search.tree import Candidate, Node, PrefixTree, build_tree, candidates_below, find_misfit, keep_candidates
from raysnap.store import Store

logger = logging.getLogger(__name__)


def search(
    store: Store | Path | str,
    data: str | Path,
    *,
    method: Method = "alsatian",
    proxy: Proxy = "linear",
    num_train: int | None = None,
    num_test: int | None = None,
    image_size: int | None = None,
    budget_bytes: int | None = None,
    where: str | None = None,
    seed: int = 0,
    data_dir: Path = Path("data"),
    shapes: ShapesConfig | None = None,
    device: str | None = None,
) -> SearchResult:
    """The store's snapshots in the order in which they promise to be good starts for a dataset.

    Args:
        store: an open store or the folder of one.
        data: a dataset's name in `data_dir`, or the path of an ImageFolder.
        num_train: how many train items to probe on, a stratified subset; None is all.
        num_test: how many items to score on; None is all.
        image_size: edge of the pixels shown to the models; None is what each snapshot was trained with.
        budget_bytes: bound on the activations held at once; None is no limit.
        where: which snapshots are candidates, for example `"architecture == 'resnet18' and accuracy > 0.8"`.
        device: a torch device; None is the GPU where there is one.

    Raises:
        UsageError: no candidates, an unknown method or proxy, or a budget that is too small.
        DataError: the dataset is missing or too small.
        StoreError: the store can't be opened.
    """
    started = time.perf_counter()
    for what, given, known in (("method", method, get_args(Method)), ("proxy", proxy, get_args(Proxy))):
        if given not in known:
            raise UsageError(f"{what}: expected one of {', '.join(known)}, found {given!r}")
    store = store if isinstance(store, Store) else Store.open(Path(store))
    dataset = open_dataset(str(data), data_dir, shapes)
    candidates = find_candidates(store, where, image_size)
    items = _ProbeItems.open(dataset, candidates, seed, num_train, num_test)
    planning = time.perf_counter()
    rungs = plan_rungs(method, len(candidates), len(items.train_labels))
    tree = build_tree(candidates, sharing=shares_prefixes(method))
    executor = Executor(tree, store.read_block, _pick_device(device))
    executor.work.timings_s["decode"] = items.decode_s
    executor.work.timings_s["plan"] = time.perf_counter() - planning
    contest = _Contest(executor, items, proxy, seed, budget_bytes, shares_prefixes(method))
    for rung in rungs:
        contest.run_rung(rung, is_last=rung is rungs[-1])
    stages = ("plan", "load_blocks", "decode", "inference", "proxy")
    timings_s = {stage: executor.work.timings_s[stage] for stage in stages}
    return SearchResult(
        method=method,
        proxy=proxy,
        dataset=dataset.name,
        num_candidates=len(candidates),
        ranking=contest.ranking(),
        timings_s={"total": time.perf_counter() - started} | timings_s,
        work={
            "block_item_passes": executor.work.block_item_passes,
            "flops": executor.work.flops,
            "block_bytes_read": executor.work.block_bytes_read,
            "images_decoded": items.num_decoded,
        },
        peak_activation_bytes=executor.work.peak_activation_bytes,
        skipped=tuple(
            SkippedSnapshot(candidates[number].snapshot, candidates[number].name, error)
            for number, error in sorted(contest.skipped.items())
        ),
    )


def find_candidates(store: Store, where: str | None, image_size: int | None) -> list[Candidate]:
    """The snapshots that a search ranks, in the order of their ids.

    Raises:
        UsageError: the store has none, or none that fits `where`.
    """
    manifests = store.manifests(where)
    if not manifests:
        wanted = f" that fit --where {where!r}" if where else ""
        raise UsageError(
            f"{store.path}: expected at least one snapshot to rank, found none{wanted}; add some with `raysnap "
            "generate` or `raysnap store add`"
        )
    names = {snapshot: name for name, snapshot in sorted(store.refs().items(), reverse=True)}
    return [
        Candidate(
            snapshot=manifest.id,
            name=names.get(manifest.id, manifest.id[:12]),
            architecture=manifest.architecture,
            preprocessing=_preprocessing(manifest, image_size),
            blocks=tuple(block for block in manifest.blocks if block.name != HEAD),
        )
        for manifest in sorted(manifests, key=lambda manifest: manifest.id)
    ]


def _preprocessing(manifest: Manifest, image_size: int | None) -> Preprocessing:
    """The snapshot's own preprocessing, scaled to another edge where one is asked for."""
    own = manifest.preprocessing
    if image_size is None or image_size == own.image_size:
        return own
    resize_size = round(own.resize_size * image_size / own.image_size)
    return own.model_copy(update={"image_size": image_size, "resize_size": resize_size})


def _pick_device(device: str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True)
class _ProbeItems:
    """The items a search looks at: train first, then test, decoded once for each size that a candidate needs."""

    caches: dict[int, PixelCache]
    positions: tuple[int, ...]
    train_labels: np.ndarray
    test_labels: np.ndarray
    decode_s: float

    @classmethod
    def open(
        cls, dataset: Dataset, candidates: Sequence[Candidate], seed: int, num_train: int | None, num_test: int | None
    ) -> _ProbeItems:
        started = time.perf_counter()
        train, test = probe_splits(dataset, seed, num_train, num_test)
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
        return sum(cache.num_decoded for cache in self.caches.values())

    def read(self, positions: range, preprocessing: Preprocessing) -> Tensor:
        """The items at these positions, uint8 `[n, 3, S, S]`."""
        indices = [self.positions[position] for position in positions]
        return self.caches[preprocessing.resize_size].read(indices, preprocessing.image_size)


@dataclass
class _Contest:
    """The state that rungs hand on: who is still in, the features so far, and every score."""

    executor: Executor
    items: _ProbeItems
    proxy: Proxy
    seed: int
    budget_bytes: int | None
    is_sharing: bool
    survivors: list[int] = field(default_factory=list)
    train_features: dict[int, np.ndarray] = field(default_factory=dict)
    test_features: dict[int, np.ndarray] = field(default_factory=dict)
    scores: dict[int, list[tuple[int, Score]]] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        reasons = {number: find_misfit(candidate) for number, candidate in enumerate(self._tree.candidates)}
        self.skipped = {number: reason for number, reason in reasons.items() if reason is not None}
        self.survivors = [number for number in reasons if number not in self.skipped]

    @property
    def _tree(self) -> PrefixTree:
        return self.executor.tree

    def run_rung(self, rung: Rung, *, is_last: bool) -> None:
        """Gets the rung's new features, scores every survivor on all it has, and keeps the best."""
        waiting = set(self.survivors)
        for root in self._tree.roots:
            mine = candidates_below(self._tree, root) & waiting
            waiting -= mine
            if mine:
                self._run_root(root, mine, rung)
            if not self.is_sharing:
                self.executor.keep_blocks(())
            elif is_last:
                self.executor.keep_blocks(keep_candidates(self._tree, waiting))
        labels = self.items.train_labels[: rung.train_stop]
        with self.executor.work.timed("proxy"):
            for number in self.survivors:
                score = PROXIES[self.proxy](
                    self.train_features[number], labels, self.test_features[number], self.items.test_labels, self.seed
                )
                self.scores.setdefault(number, []).append((rung.train_stop, score))
        self.survivors = sorted(self.survivors, key=self._order)[: rung.num_kept]
        self.executor.keep_blocks(keep_candidates(self._tree, self.survivors))

    def _run_root(self, root: Node, mine: set[int], rung: Rung) -> None:
        """The part of a rung below one root; damaged blocks and features that are not finite take candidates out."""
        tree, work = self._tree, self.executor.work
        needed = sorted(keep_candidates(tree, mine))
        for index, error in self.executor.load_blocks([tree.nodes[index] for index in needed]).items():
            for number in candidates_below(tree, tree.nodes[index]) & mine:
                self.skipped.setdefault(number, str(error))
        mine = mine - set(self.skipped)
        if mine:
            with work.timed("plan"):
                walk = plan_walk(tree, root, keep_candidates(tree, mine), self.budget_bytes)
            num_train, num_test = len(self.items.train_labels), len(self.items.test_labels)
            self._add_features(self.train_features, mine, walk, range(rung.train_start, rung.train_stop))
            if rung.train_start == 0:
                self._add_features(self.test_features, mine, walk, range(num_train, num_train + num_test))
        self.survivors = [number for number in self.survivors if number not in self.skipped]

    def _add_features(self, features: dict[int, np.ndarray], mine: set[int], walk: Walk, positions: range) -> None:
        """Runs the walk on the items at `positions` and puts what comes out behind the features so far."""
        outputs = self.executor.run(walk, self.items, positions)
        for number in mine:
            new = outputs[number].numpy()
            features[number] = np.concatenate([features[number], new]) if number in features else new
            if not np.isfinite(new).all():
                snapshot = self._tree.candidates[number].snapshot
                self.skipped.setdefault(
                    number, f"snapshot {snapshot}: its features are not finite; its weights may hold NaN or infinity"
                )

    def _order(self, number: int) -> tuple:
        """Sorts candidates: who came further, who scored higher, who has the smaller loss, then by id."""
        rungs = self.scores[number]
        _, score = rungs[-1]
        return (-len(rungs), -score.value, score.loss, self._tree.candidates[number].snapshot)

    def ranking(self) -> tuple[RankedSnapshot, ...]:
        """Everyone who was scored, best first; ties with the best are judged at the last rung both were in."""
        ordered = sorted(self.scores, key=self._order)
        by_last_rung: dict[int, list[int]] = defaultdict(list)
        for number in ordered:
            by_last_rung[len(self.scores[number]) - 1].append(number)
        is_tied: dict[int, bool] = {}
        for last, numbers in by_last_rung.items():
            best_is_right_T, *others = (self.scores[n][last][1].is_right_T for n in (ordered[0], *numbers))
            is_tied |= zip(numbers, tied_with(best_is_right_T, np.stack(others), self.seed).tolist(), strict=True)
        return tuple(
            RankedSnapshot(
                rank=rank,
                snapshot=self._tree.candidates[number].snapshot,
                name=self._tree.candidates[number].name,
                score=self.scores[number][-1][1].value,
                num_train=self.scores[number][-1][0],
                num_test=len(self.items.test_labels),
                tied_with_best=is_tied[number],
            )
            for rank, number in enumerate(ordered, start=1)
        )
