"""Splits and subsets are seeded, stratified and disjoint."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysnap.datasets.dataset import read_folder
from raysnap.datasets.splits import probe_splits, stratified_order, training_splits
from raysnap.errors import DataError
from tests.support.image_folders import make_folder, num_per_class


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 6), max_size=120), seed=st.integers(0, 2**32 - 1))
def test_every_prefix_holds_the_classes_in_proportion(labels, seed):
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    assert order == stratified_order(labels, seed)
    totals, seen = Counter(labels), Counter()
    for num_taken, index in enumerate(order, start=1):
        seen[labels[index]] += 1
        for label, total in totals.items():
            share = total / len(labels)
            assert abs(seen[label] - num_taken * share) <= 1 + len(totals) * share


@settings(deadline=None)
@given(num_classes=st.integers(1, 9), num_each=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_classes_of_equal_count_take_turns(num_classes, num_each, seed):
    labels = [label for label in range(num_classes) for _ in range(num_each)]
    order = [labels[i] for i in stratified_order(labels, seed)]
    for start in range(0, len(order), num_classes):
        assert sorted(order[start : start + num_classes]) == list(range(num_classes))


def test_seeds_give_different_orders():
    labels = [index % 4 for index in range(200)]
    assert len({tuple(stratified_order(labels, seed)) for seed in range(20)}) == 20


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory) -> Path:
    counts = {"train/a": 50, "train/b": 20, "train/c": 2, "test/a": 10, "test/b": 10}
    return make_folder(tmp_path_factory.mktemp("unbalanced") / "it", counts)


def test_without_val_a_stratified_fifth_of_train_is_held_out(unbalanced):
    splits = training_splits(read_folder(unbalanced), seed=3)
    train, val = splits["train"], splits["val"]
    assert len(train) + len(val) == 72
    assert not set(train) & set(val)
    assert num_per_class(val)[0] == pytest.approx(10, abs=1)
    assert num_per_class(val)[1] == pytest.approx(4, abs=1)
    assert num_per_class(train)[2] >= 1
    assert len(splits["test"]) == 20


def test_the_held_out_fifth_follows_from_the_seed(unbalanced):
    first, again, other = (training_splits(read_folder(unbalanced), seed=seed)["val"] for seed in (3, 3, 4))
    assert first == again
    assert set(first) != set(other)


def test_counts_cut_each_split_to_a_prefix_of_the_whole(unbalanced):
    dataset = read_folder(unbalanced)
    whole = training_splits(dataset, seed=0)
    cut = training_splits(dataset, seed=0, num_train=20, num_val=5, num_test=1000)
    assert {split: len(items) for split, items in cut.items()} == {"train": 20, "val": 5, "test": 20}
    assert cut["train"] == whole["train"][:20]
    assert num_per_class(cut["train"])[0] == pytest.approx(20 * 50 / 72, abs=2)


@pytest.mark.parametrize(
    ("splits", "scored"), [(("val", "test"), "val"), (("val",), "val"), (("test",), "test"), ((), "train")]
)
def test_probes_score_on_val_else_test_else_a_fifth_of_train(tmp_path, splits, scored):
    counts = {f"{split}/{name}": 10 for split in ("train", *splits) for name in ("a", "b")}
    dataset = read_folder(make_folder(tmp_path / "it", counts))
    train, score = probe_splits(dataset, seed=0)
    assert {item.path.parts[-3] for item in score} == {scored}
    assert not set(train) & set(score)
    assert (len(train), len(score)) == ((20, 20) if splits else (16, 4))
    assert num_per_class(score) == {0: len(score) // 2, 1: len(score) // 2}
    assert probe_splits(dataset, seed=0, num_train=6, num_test=2) == (train[:6], score[:2])


def test_a_spared_test_split_gives_way_to_a_fine_tunes_val(tmp_path):
    counts = {f"{split}/{name}": 10 for split in ("train", "test") for name in ("a", "b")}
    dataset = read_folder(make_folder(tmp_path / "it", counts))
    train, score = probe_splits(dataset, seed=3, spares_test=True)
    own = training_splits(dataset, seed=3)
    assert (set(train), set(score)) == (set(own["train"]), set(own["val"]))
    assert not set(score) & set(probe_splits(dataset, seed=3)[1])


def test_a_training_subset_of_one_class_is_refused(unbalanced):
    dataset = read_folder(unbalanced)
    for split in (training_splits, probe_splits):
        with pytest.raises(DataError, match="at least 2 of its 3 classes, found 1 of 1; raise num_train"):
            split(dataset, seed=0, num_train=1)


def test_a_class_that_train_lacks_matters_where_it_is_read(tmp_path):
    root = make_folder(tmp_path / "pets", {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2, "test/Dog": 1})
    train, val = probe_splits(read_folder(root), 0)
    assert {item.label for item in (*train, *val)} == {0, 1}
    with pytest.raises(DataError, match=r"test/Dog: expected a class that train/ has too.*did you mean 'dog'\?$"):
        training_splits(read_folder(root), 0)
