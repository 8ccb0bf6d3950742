"""Writes that fail: the store stays as it was, and the error says why."""

import errno
import os

import pytest

from raysnap.errors import StoreError
from raysnap.store.backends import folder as folder_module
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, make_blocks, put, read
from tests.support.store_blocks import object_path


def test_shards_are_synced_before_the_manifest(store, monkeypatch):
    writes = [(name, store.put_block(tensors)) for name, tensors in make_blocks()]
    synced = []
    monkeypatch.setattr(folder_module, "sync_dir", synced.append)
    store.put_snapshot(architecture="resnet18", blocks=writes, num_classes=4)
    assert synced[-1] == store.path / "snapshots"
    assert set(synced[:-1]) == {object_path(store, write.digest).parent for _, write in writes}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EFBIG])
@pytest.mark.parametrize("step", range(1, 9))
def test_a_failing_fsync_leaves_the_store_as_it_was(store, monkeypatch, step, code):
    before = put(store, seed=1).manifest
    calls = 0
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreError, match="can't be written"):
        put(store, seed=2)
    assert calls == step
    monkeypatch.undo()
    assert store.verify()["ok"]
    assert equal(read(store, before.id), make_blocks(1))
    assert not list((store.path / "tmp").iterdir())
    put(store, seed=2)
    assert len(store.manifests()) == 2
    assert store.verify()["ok"]


def test_disk_full_says_so(store, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="the disk is full"):
        put(store)


def test_a_store_is_made_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def unsupported(*paths: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", unsupported)
    assert put(Store.open(tmp_path / "new", create=True)).is_new
    assert not list((tmp_path / "new" / "tmp").iterdir())
