"""The index: a listing follows every change, and a damaged index is rebuilt."""

import os
import subprocess
import sys

import pytest

from raysnap.errors import StoreDamaged, StoreError
from raysnap.store.backends import folder as folder_module
from raysnap.testing.blocks import equal, make_blocks, put, read
from tests.support import ROOT


def test_a_listing_follows_every_change(store):
    assert store.summaries() == []
    one = put(store, seed=1, name="one").manifest.id
    assert [summary.id for summary in store.summaries()] == [one]
    two = put(store, seed=2).manifest.id
    assert {summary.id for summary in store.summaries()} == {one, two}
    store.set_ref("two", two)
    assert {summary.names for summary in store.summaries()} == {("one",), ("two",)}
    store.set_ref("two", one)
    assert {summary.names for summary in store.summaries()} == {("one", "two"), ()}
    store.remove_snapshot(one)
    assert [summary.id for summary in store.summaries()] == [two]


def test_a_snapshot_added_again_is_listed_with_its_new_metrics(store):
    snapshot = put(store, metrics={"val_accuracy": 0.25}).manifest.id
    assert store.summaries()[0].accuracy == 0.25
    store.remove_snapshot(snapshot)
    put(store, metrics={"val_accuracy": 0.75})
    assert store.summaries()[0].accuracy == 0.75


def test_a_snapshot_within_one_clock_tick_is_listed(store):
    folder = store.path / "snapshots"
    put(store, seed=1)
    store.summaries()
    mtime_ns = folder.stat().st_mtime_ns
    put(store, seed=2)
    os.utime(folder, ns=(mtime_ns, mtime_ns))
    assert len(store.summaries()) == 2


def test_a_listing_that_nothing_changed_opens_no_manifest(store, monkeypatch):
    put(store, name="mine")
    for folder in ("snapshots", "refs"):
        os.utime(store.path / folder, (1e9, 1e9))
    expected = store.summaries()
    monkeypatch.delattr("raysnap.store.index._stamps")
    assert store.summaries() == expected


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "flipped", "cut", "foreign"])
def test_a_damaged_index_is_rebuilt(store, damage):
    put(store, metrics={"val_accuracy": 0.5})
    expected = store.summaries()
    path = store.path / "index.sqlite"
    raw = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        where = raw.index(b"resnet18")
        raw[where] ^= 1
        path.write_bytes(raw)
    else:
        path.write_bytes(
            {"empty": b"", "text": b"x" * 4096, "cut": raw[:-1000], "foreign": b"SQLite format 3\0"}[damage]
        )
    assert store.summaries() == expected


def test_a_damaged_manifest_is_left_out_of_the_list_and_named(store, caplog):
    bad = put(store, seed=1).manifest.id
    good = put(store, seed=2).manifest.id
    path = store.path / "snapshots" / f"{bad}.json"
    path.write_bytes(path.read_bytes().replace(b'"num_classes":4', b'"num_classes":5'))
    for _ in range(2):
        caplog.clear()
        assert [summary.id for summary in store.summaries()] == [good]
        assert bad in caplog.text
    with pytest.raises(StoreDamaged, match=bad):
        store.manifest(bad)


def test_listing_does_not_import_torch(store):
    put(store)
    script = (
        "import sys; from raysnap.store.store import Store; assert len(Store.open(sys.argv[1]).summaries()) == 1;"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    root = ROOT
    subprocess.run(
        [sys.executable, "-c", script, str(store.path)], check=True, env=os.environ | {"PYTHONPATH": str(root)}
    )


def test_a_store_that_can_not_be_written_can_be_listed_and_read(store, monkeypatch):
    manifest = put(store, name="mine").manifest

    def read_only(self, *args, **kwargs):
        raise StoreError("read-only")

    monkeypatch.setattr(folder_module.Folder, "stage", read_only)
    assert [summary.names for summary in store.summaries("accuracy == None")] == [("mine",)]
    assert equal(read(store, "mine"), make_blocks())
    assert store.verify()["ok"]
    assert manifest.id in store.refs().values()
