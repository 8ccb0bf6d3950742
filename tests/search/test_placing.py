"""The final place of ranked snapshots: as the proxy says without records, joined with these where there are any."""

import dataclasses

import pytest

from raysnap.datasets.dataset import Dataset
from raysnap.search.placing import place, root_of
from raysnap.search.result import RankedSnapshot
from raysnap.store.manifest import DatasetRecord
from raysnap.store.store import Store
from tests.support.search_stores import put, variant
from tests.support.start_records import record

NAMES = ("base", "one", "two")


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store.open(tmp_path / "store", create=True)
    for number, name in enumerate(NAMES):
        base = None if name == "base" else "base"
        trained_on = DatasetRecord(name="cars", digest="digest of cars") if name == "two" else None
        blocks = variant("mobilenet_v3_small", number, 1 if number else 0)
        put(store, name, blocks, "mobilenet_v3_small", base=base, dataset=trained_on)
    return store


def rank(store: Store, dataset_name: str = "cars", *, use_records: bool = True):
    ids, dataset = store.refs(), Dataset(dataset_name, store.path, (), {}, digest=f"digest of {dataset_name}")
    ranking = [
        RankedSnapshot(number, ids[name], name, 1.0 - number / 10, 8, 8, tied_with_best=False, within_tolerance=False)
        for number, name in enumerate(NAMES, start=1)
    ]
    summaries = {summary.id: summary for summary in store.summaries()}
    return place(ranking, store, summaries, dataset, store.record_table() if use_records else None)


def remember(store: Store, *, dataset: str = "pets") -> None:
    ids = store.refs()
    for name, accuracy in zip(NAMES, (0.2, 0.1, 0.9), strict=True):
        one = record(name, dataset, accuracy)
        start = one.start.model_copy(update={"snapshot": ids[name], "architecture": "mobilenet_v3_small"})
        store.put_record(one.model_copy(update={"start": start}))


def test_without_records_nothing_changes(store):
    ranking, used = rank(store)
    assert used is None and [line.name for line in ranking] == list(NAMES)
    assert [(line.rank, line.proxy_rank, line.standing) for line in ranking] == [(n, n, None) for n in (1, 2, 3)]


def test_records_of_other_datasets_move_a_snapshot_up(store):
    for dataset in ("pets", "birds", "food", "signs", "trees", "towns", "ships"):
        remember(store, dataset=dataset)
    ranking, used = rank(store)
    assert [(line.name, line.proxy_rank) for line in ranking] == [("base", 1), ("two", 3), ("one", 2)]
    assert [line.rank for line in ranking] == [1, 2, 3]
    assert (used.num_records, used.num_datasets) == (21, 7) and 0.5 < used.share < 0.6


@pytest.mark.parametrize("options", [{"use_records": False}, {}])
def test_own_records_and_those_not_asked_for_count_for_nothing(store, options):
    remember(store, dataset="pets" if options else "cars")
    ranking, used = rank(store, **options)
    assert used is None and [line.name for line in ranking] == list(NAMES)


def test_a_snapshot_trained_on_the_asked_dataset_is_marked(store):
    assert [line.is_trained_on_it for line in rank(store)[0]] == [False, False, True]
    assert not any(line.is_trained_on_it for line in rank(store, "pets")[0])


def test_every_line_says_where_it_comes_from(store):
    line = rank(store)[0][2]
    assert (line.architecture, line.dataset, line.retrain_index) == ("mobilenet_v3_small", "cars", None)
    assert {field.name for field in dataclasses.fields(line)} >= {"low", "high", "num_scored"}


def test_the_root_of_a_lineage_is_found_and_circles_end():
    assert root_of("c", {"c": "b", "b": "a", "a": None}) == "a"
    assert root_of("c", {"c": "b"}) == "b"
    assert root_of("a", {"a": "b", "b": "a"}) == "b"
