"""Seeded, stratified splits and subsets of a dataset."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from raysnap.datasets.dataset import Dataset, Item
from raysnap.errors import DataError
from raysnap.humanize import suggest

log = logging.getLogger(__name__)


VAL_FRACTION = 0.2


def training_splits(
    dataset: Dataset,
    seed: int,
    num_train: int | None = None,
    num_val: int | None = None,
    num_test: int | None = None,
) -> dict[str, tuple[Item, ...]]:
    """Return the items to fine-tune on: train, val, and test where there is one, each in stratified order.

    Without a val split, a fifth of train is held out for it. Counts limit each split to a seeded, stratified subset;
    None is all items.

    Raises:
        DataError: the training subset holds fewer than two classes, or val or test a class that train lacks.
    """
    check_classes(dataset, ("val", "test"))
    train, val = dataset.splits["train"], dataset.splits.get("val")
    if val is None:
        train, val = _hold_out_fifth(train, seed)
    chosen = {"train": _subset(train, seed, num_train), "val": _subset(val, seed, num_val)}
    if "test" in dataset.splits:
        chosen["test"] = _subset(dataset.splits["test"], seed, num_test)
    _check_classes(dataset, chosen["train"])
    return chosen


def probe_splits(
    dataset: Dataset,
    seed: int,
    num_train: int | None = None,
    num_test: int | None = None,
    *,
    spares_test: bool = False,
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Return the items that probes fit and score on, in stratified order, so that every prefix is a fair subset.

    Probes score on val, on test where there is no val, and on a fifth of train where there is neither. If test is
    spared, that fifth, which `training_splits` holds out with the same seed, stands for a val that is missing.

    Raises:
        DataError: the training subset holds fewer than two classes, or the split to score on a class that train lacks.
    """
    train = dataset.splits["train"]
    may_score = ("val",) if spares_test else ("val", "test")
    scored = next((split for split in may_score if split in dataset.splits), None)
    if scored is None:
        train, score = _hold_out_fifth(train, seed)
    else:
        check_classes(dataset, (scored,))
        score = dataset.splits[scored]
    train = _subset(train, seed, num_train)
    _check_classes(dataset, train)
    return train, _subset(score, seed, num_test)


def check_classes(dataset: Dataset, splits: Sequence[str]) -> None:
    """Check that train has every class of the splits.

    Raises:
        DataError: a class is only in one of them.
    """
    known = {item.label for item in dataset.splits["train"]}
    train = [dataset.classes[label] for label in sorted(known)]
    for split in splits:
        unknown = sorted({item.label for item in dataset.splits.get(split, ())} - known)
        if unknown:
            name = dataset.classes[unknown[0]]
            raise DataError(
                f"dataset {dataset.root}/{split}/{name}: expected a class that train/ has too, found none there; "
                f"add it to train/ or remove it from {split}/{suggest(name, train)}"
            )


def stratified_order(labels: Sequence[int], seed: int) -> list[int]:
    """Return a seeded order of the indices of `labels` in which every prefix holds the classes in proportion.

    Each class is spread evenly over [0, 1) with jitter: its k-th of n items falls into [k/n, (k+1)/n). A class with
    share s of all items therefore has s m of the first m, plus or minus 1 + s times the number of classes.
    """
    labels_N = np.asarray(labels, dtype=np.int64)
    num_items = len(labels_N)
    if num_items == 0:
        return []
    shuffle_keys, jitter = np.random.default_rng([seed, 0x5EED]).random((2, num_items))
    by_class = np.lexsort((shuffle_keys, labels_N))
    sorted_labels = labels_N[by_class]
    _, starts, counts = np.unique(sorted_labels, return_index=True, return_counts=True)
    rank_in_class = np.arange(num_items) - np.repeat(starts, counts)
    positions = (rank_in_class + jitter) / np.repeat(counts, counts)
    order: list[int] = by_class[np.argsort(positions, kind="stable")].tolist()
    return order


def _hold_out_fifth(items: tuple[Item, ...], seed: int) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    order = stratified_order([item.label for item in items], seed)
    num_val = max(1, round(VAL_FRACTION * len(items)))
    return tuple(items[i] for i in sorted(order[num_val:])), tuple(items[i] for i in sorted(order[:num_val]))


def _subset(items: tuple[Item, ...], seed: int, num_items: int | None) -> tuple[Item, ...]:
    order = stratified_order([item.label for item in items], seed)
    return tuple(items[i] for i in order[:num_items])


def _check_classes(dataset: Dataset, train: tuple[Item, ...]) -> None:
    num_found = len({item.label for item in train})
    num_classes = len({item.label for item in dataset.splits["train"]})
    if num_found < 2:
        raise DataError(
            f"dataset {dataset.name}: expected training items of at least 2 of its {num_classes} classes, "
            f"found {len(train)} of {num_found}; raise num_train"
        )
    if num_found < num_classes:
        log.warning(
            "%s: the %d training items cover only %d of its %d classes",
            dataset.name,
            len(train),
            num_found,
            num_classes,
        )
