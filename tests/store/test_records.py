"""Records of fine-tunes: named by their content, merged by copying, out of gc's way, in a cache that may be lost."""

import os
import shutil

import pytest

from raysnap.errors import StoreDamaged, StoreError
from raysnap.store import records
from raysnap.store.records import compare_with_bases, parse_record
from raysnap.store.store import Store
from tests.support.start_records import id_of, record


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def names(store: Store) -> list[str]:
    return sorted(path.name for path in (store.path / "records").iterdir())


def table_facts(store: Store) -> list[tuple]:
    table = store.record_table()
    starts = [
        (table.starts[n], table.architectures[table.architectures_T[n]], table.roots[table.roots_T[n]])
        for n in table.starts_R
    ]
    fields = [table.fields[n] for n in table.fields_R]
    return sorted(zip(starts, fields, table.values_R.tolist(), strict=True))


def test_one_fine_tune_recorded_twice_is_one_file(store):
    first, second = (store.put_record(record("a", "pets", 0.5)) for _ in range(2))
    assert first == second and names(store) == [f"{first}.json"]
    assert store.put_record(record("a", "pets", 0.6)) != first
    assert [found.metrics["val_accuracy"] for found in store.records()] in ([0.5, 0.6], [0.6, 0.5])


def test_a_record_reads_back_as_it_was_written(store):
    written = record("a", "pets", 1 / 3, lineage=("base", "root"), lr=1e-3)
    store.put_record(written)
    [found] = store.records()
    assert found == written and found.to_bytes() == written.to_bytes()


def test_copying_files_merges_stores(store, tmp_path):
    other = Store.open(tmp_path / "other", create=True)
    store.put_record(record("a", "pets", 0.5))
    for accuracy in (0.5, 0.7):
        other.put_record(record("a", "pets", accuracy))
    shutil.copytree(other.path / "records", store.path / "records", dirs_exist_ok=True)
    assert len(list(store.records())) == 2 == len(store.record_table())


def test_a_store_without_records_has_no_folder_for_them(store):
    assert list(store.records()) == [] and len(store.record_table()) == 0
    assert not (store.path / "records").exists() and not (store.path / "records.cache").exists()


def test_a_collection_of_garbage_leaves_records_alone(store):
    store.put_record(record("a", "pets", 0.5))
    before = names(store)
    store.gc(grace_s=0)
    assert names(store) == before and store.verify()["ok"]


def test_a_damaged_record_is_left_out_and_named(store, caplog):
    digest = store.put_record(record("a", "pets", 0.5))
    store.put_record(record("b", "pets", 0.6))
    path = store.path / "records" / f"{digest}.json"
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.9"))
    assert [found.metrics for found in store.records()] == [{"val_accuracy": 0.6}]
    assert len(store.record_table()) == 1 and "expected bytes with the BLAKE3 of its name" in caplog.text
    assert [fault["file"] for fault in store.verify()["damaged_files"]] == [f"records/{digest}.json"]


SPACED = record("a", "pets", 0.5).to_bytes().replace(b":", b": ", 1)


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"format":1}', b"{" * 100_000])
def test_what_is_no_record_is_refused(raw):
    with pytest.raises(StoreDamaged, match="not a record"):
        parse_record(raw, "here", records.blake3(raw).hexdigest())


def test_a_record_has_one_spelling():
    with pytest.raises(StoreDamaged, match="expected canonical JSON"):
        parse_record(SPACED, "here", records.blake3(SPACED).hexdigest())


def test_a_record_too_large_to_be_read_is_not_written(store):
    with pytest.raises(StoreError, match="at most 1048576 bytes"):
        store.put_record(record("a", "pets", 0.5, note="x" * 2**20))


def test_the_cache_follows_what_is_added_and_removed(store):
    first = store.put_record(record("a", "pets", 0.5))
    assert table_facts(store) == [((id_of("a"), "resnet18", id_of("a")), ("digest of pets", 32, 3), 0.5)]
    store.put_record(record("b", "pets", 0.25, lineage=("base", "root")))
    assert {facts[0][2] for facts in table_facts(store)} == {id_of("a"), id_of("root")}
    (store.path / "records" / f"{first}.json").unlink()
    assert table_facts(store) == [((id_of("b"), "resnet18", id_of("root")), ("digest of pets", 32, 3), 0.25)]


def test_what_is_recorded_within_a_tick_of_the_clock_is_seen(store):
    store.put_record(record("a", "pets", 0.5))
    folder = store.path / "records"
    before = folder.stat()
    assert len(store.record_table()) == 1
    store.put_record(record("b", "pets", 0.5))
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(store.record_table()) == 2


def test_a_cache_of_another_version_is_rebuilt(store, monkeypatch):
    store.put_record(record("a", "pets", 0.5))
    monkeypatch.setattr(records, "CACHE_VERSION", records.CACHE_VERSION - 1)
    monkeypatch.setattr(records, "_entry", lambda found: records._Entry("s", "a", "r", ("d", 1, 1), found.num_epochs))
    older = len(store.record_table())
    monkeypatch.undo()
    assert older == 1 and table_facts(store)[0][2] == 0.5


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[: len(raw) // 2], lambda raw: b"x" * len(raw)])
def test_a_damaged_cache_is_rebuilt(store, damage):
    store.put_record(record("a", "pets", 0.5))
    expected = table_facts(store)
    path = store.path / "records.cache"
    path.write_bytes(damage(path.read_bytes()))
    assert table_facts(store) == expected


def test_a_fine_tune_is_compared_with_the_same_from_its_base():
    ours = record("a", "pets", 0.75, lineage=("base", "root"))
    of_root, other_recipe = record("root", "pets", 0.5), record("base", "pets", 0.9, lr=0.1)
    [found] = compare_with_bases([ours, of_root, other_recipe, record("base", "birds", 0.9)])
    assert (found.record, found.of_base, found.gain) == (ours, of_root, 0.25)
