"""Garbage collection: unneeded blocks are deleted and needed blocks stay, whatever is written at that moment."""

import os
import time

import pytest

from raysnap.errors import StoreDamaged, StoreError, UsageError
from raysnap.store import garbage
from raysnap.store.backends.folder import Folder
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, make_blocks, put, read
from tests.support.store_blocks import object_path


def age(store: Store, seconds: float) -> None:
    for path in (store.path / "objects").rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_what_no_manifest_reaches_goes_and_the_rest_stays(store):
    put(store, seed=1, num_retrained=1)
    removed = put(store, seed=2, num_retrained=1).manifest
    store.remove_snapshot(removed.id)
    report = store.gc(grace_s=0)
    assert (report["num_blocks_deleted"], report["num_blocks_kept"]) == (1, 3)
    assert report["deleted_bytes"] == removed.blocks[-1].num_bytes
    assert store.verify()["ok"]


def test_what_is_younger_than_the_grace_stays(store):
    store.put_block(make_blocks()[0][1])
    assert store.gc()["num_blocks_deleted"] == 0
    assert store.gc(grace_s=60)["num_blocks_deleted"] == 0
    age(store, 120)
    assert store.gc()["num_blocks_deleted"] == 0
    assert store.gc(grace_s=60)["num_blocks_deleted"] == 1


def test_putting_a_block_again_restarts_its_grace(store):
    store.put_block(make_blocks()[0][1])
    age(store, 7200)
    assert not store.put_block(make_blocks()[0][1]).is_new
    assert store.gc()["num_blocks_deleted"] == 0


def test_a_clock_that_was_set_back_deletes_nothing_early(store):
    store.put_block(make_blocks()[0][1])
    age(store, -7200)
    assert store.gc(grace_s=60)["num_blocks_deleted"] == 0
    assert store.gc(grace_s=0)["num_blocks_deleted"] == 1


def test_files_of_dead_writers_are_removed(store):
    for name in ("block-1-ab", "draft-1-ab", "file-1-ab"):
        (store.path / "tmp" / name).write_bytes(b"half")
    assert store.gc()["num_files_swept"] == 0
    assert store.gc(grace_s=0)["num_files_swept"] == 3
    assert not list((store.path / "tmp").iterdir())


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_nothing_is_deleted_while_a_manifest_is_damaged(store, damage):
    manifest = put(store).manifest
    store.put_block(make_blocks(9)[0][1])
    path = store.path / "snapshots" / f"{manifest.id}.json"
    digest = manifest.blocks[0].digest.encode()
    flipped = digest.translate(bytes.maketrans(b"0123456789abcdef", b"1032547698badcfe"))
    raw = path.read_bytes()
    path.write_bytes(raw[:-5] if damage == "cut" else raw.replace(digest, flipped))
    with pytest.raises(StoreDamaged, match="nothing is deleted"):
        store.gc(grace_s=0)
    assert store.stats()["num_blocks"] == 4


def test_nothing_is_deleted_while_a_draft_can_not_be_read(store):
    store.put_block(make_blocks()[0][1])
    (store.path / "tmp" / "draft-1-ab").mkdir()
    with pytest.raises(StoreDamaged, match="nothing is deleted"):
        store.gc(grace_s=0)
    assert store.stats()["num_blocks"] == 1


def test_a_dead_writers_draft_keeps_no_block_from_collection(store):
    manifest = put(store).manifest
    (store.path / "snapshots" / f"{manifest.id}.json").rename(store.path / "tmp" / "draft-1-ab")
    assert store.gc(grace_s=0)["num_blocks_deleted"] == 3
    assert store.stats()["num_blocks"] == 0


@pytest.mark.parametrize("grace_s", [-1, float("nan"), float("inf")])
def test_a_grace_that_is_no_time_is_refused(store, grace_s):
    with pytest.raises(UsageError):
        store.gc(grace_s=grace_s)


def during(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, action) -> None:
    """Run `action` once, just before the call of `owner.name`."""
    function = getattr(owner, name)
    pending = [action]

    def wrapped(*args, **kwargs):
        if pending:
            pending.pop()()
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def test_a_snapshot_published_after_the_mark_keeps_its_blocks(store, monkeypatch):
    for _, tensors in make_blocks():
        store.put_block(tensors)
    during(monkeypatch, Folder, "condemn", lambda: put(store))
    assert store.gc(grace_s=0)["num_blocks_deleted"] == 0
    assert equal(read(store, store.manifests()[0].id), make_blocks())


def test_blocks_set_aside_are_restored_for_a_later_snapshot(store, monkeypatch):
    for _, tensors in make_blocks():
        store.put_block(tensors)
    during(monkeypatch, Folder, "_adopt_abandoned", lambda: put(store))
    store.gc(grace_s=0)
    assert equal(read(store, store.manifests()[0].id), make_blocks())
    assert store.verify()["ok"]


def test_a_draft_counts_as_a_manifest(store, monkeypatch):
    """A collector runs between a writer's touch and its publication."""
    for _, tensors in make_blocks():
        store.put_block(tensors)
    monkeypatch.setattr(Folder, "sweep", lambda *_: 0)
    during(monkeypatch, Folder, "sync_shards", lambda: garbage.collect_garbage(Folder(store.path), 0))
    put(store)
    assert store.verify()["ok"]
    assert equal(read(store, store.manifests()[0].id), make_blocks())


def test_a_writer_whose_draft_was_removed_starts_again(store, monkeypatch):
    def collect() -> None:
        for path in (store.path / "tmp").glob("draft-*"):
            path.unlink()
        garbage.collect_garbage(Folder(store.path), 0)

    during(monkeypatch, Folder, "sync_shards", collect)
    written = put(store)
    assert store.verify()["ok"]
    assert equal(read(store, written.manifest.id), make_blocks())


def test_a_block_touched_before_it_is_set_aside_stays(store, monkeypatch):
    digest = store.put_block(make_blocks()[0][1]).digest
    age(store, 7200)
    during(monkeypatch, Folder, "_aside_path", lambda: os.utime(object_path(store, digest)))
    report = store.gc()
    assert (report["num_blocks_deleted"], report["num_blocks_kept"]) == (0, 1)
    assert object_path(store, digest).exists()


@pytest.mark.parametrize("is_needed", [True, False])
def test_blocks_set_aside_by_a_dead_gc_are_found_or_deleted(store, is_needed):
    manifest = put(store).manifest
    digest = manifest.blocks[0].digest
    aside = store.path / "tmp" / f"gone-{'0' * 16}-{digest}"
    object_path(store, digest).rename(aside)
    assert equal(read(store, manifest.id), make_blocks())
    assert store.verify()["ok"]
    if not is_needed:
        store.remove_snapshot(manifest.id)
    store.gc(grace_s=0)
    assert object_path(store, digest).exists() == is_needed
    assert not list((store.path / "tmp").iterdir())


def test_a_writer_puts_back_what_a_collector_set_aside(store):
    manifest = put(store).manifest
    digest = manifest.blocks[0].digest
    object_path(store, digest).rename(store.path / "tmp" / f"gone-{'0' * 16}-{digest}")
    assert put(store).new_blocks == 0
    assert object_path(store, digest).exists()


def test_a_write_by_digest_that_came_too_late_leaves_no_manifest(store):
    blocks = make_blocks()
    writes = [(name, store.put_block(tensors)) for name, tensors in blocks]
    store.gc(grace_s=0)
    with pytest.raises(StoreError, match="put block and snapshot again"):
        store.put_snapshot(architecture="resnet18", blocks=writes, num_classes=4)
    assert store.verify()["ok"]
    assert not store.manifests()
    assert put(store).new_blocks == 3
