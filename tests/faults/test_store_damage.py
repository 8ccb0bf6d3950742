"""Damaged files: whatever happened to one, it is found and named, and no wrong weight is ever returned.

Rows 6 and 7 of the fault table: flipped bits, and files that are cut, empty, gone, swapped, unreadable or too many.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import pytest

from raysnap.errors import BlockDamaged, SnapshotNotFound, StoreDamaged, StoreError, StoreUnreadable
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, put, read
from tests.support.start_records import record
from tests.support.store_blocks import object_path
from tests.support.store_disk import Call, Disk
from tests.support.store_laws import (
    COUNTS,
    IS_DEEP,
    SEED,
    World,
    check_clean,
    disk_folder,
    few_shards,
    make_store,
    read_world,
)

TARGETS = ["block", "manifest", "ref", "store.json", "index", "record", "records.cache"]
REBUILT = ("index", "records.cache")


@pytest.fixture
def whole(monkeypatch) -> Iterator[tuple[Store, World]]:
    """Return a store of two snapshots that share all but their heads, with a name, a record and both caches."""
    few_shards(monkeypatch)
    with disk_folder() as folder:
        store, world = make_store(folder / "store", (1, 2))
        world = world.recorded(store.put_record(record("old", "pets", 0.5)))
        store.summaries()
        store.record_table()
        yield store, world


def paths_of(store: Store) -> dict[str, Path]:
    """One file of each of `TARGETS`; the block is shared by both snapshots."""
    manifest = store.manifest("old")
    return {
        "block": object_path(store, manifest.blocks[0].digest),
        "manifest": store.path / "snapshots" / f"{manifest.id}.json",
        "ref": store.path / "refs" / "old",
        "store.json": store.path / "store.json",
        "index": store.path / "index.sqlite",
        "record": next((store.path / "records").iterdir()),
        "records.cache": store.path / "records.cache",
    }


def check_found(store: Store, world: World, target: str, path: Path) -> None:
    """Check that the damage is an error of its reader, and that the check of the store names it and nothing else."""
    if target == "store.json":
        for create in (False, True):
            with pytest.raises((StoreDamaged, StoreError), match=str(store.path)):
                Store.open(store.path, create=create)
        return
    if target in REBUILT:
        assert read_world(store.path, world.snapshots) == world
        assert store.verify()["ok"]
        return
    report = store.verify()
    assert not report["ok"]
    if target == "block":
        with pytest.raises(BlockDamaged) as caught:
            store.read_block(path.name)
        assert (caught.value.block, caught.value.snapshots) == (path.name, tuple(sorted(world.snapshots)))
        found = [(row["block"], row["snapshots"]) for row in report["damaged"]]
        assert (found, report["damaged_files"]) == ([(path.name, sorted(world.snapshots))], [])
        return
    if target == "record":
        assert list(store.records()) == []
    else:
        with pytest.raises(StoreDamaged, match=path.name):
            store.manifest("old")
    assert report["damaged"] == []
    assert [row["file"] for row in report["damaged_files"]] == [f"{path.parent.name}/{path.name}"]
    if target == "manifest":
        with pytest.raises(StoreDamaged, match="nothing is deleted"):
            store.gc(grace_s=0)


def flip(path: Path, bit: int) -> bytes:
    """Turn over one bit of the file and return its bytes from before."""
    raw = path.read_bytes()
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(damaged)
    assert path.read_bytes() != raw
    return raw


@pytest.mark.parametrize("target", TARGETS)
def test_every_flipped_bit_is_found(whole, target):
    store, world = whole
    path = paths_of(store)[target]
    random = Random(f"{SEED} {target}")
    for _ in range(-(-COUNTS.bit_flips // len(TARGETS))):
        raw = flip(path, random.randrange(8 * path.stat().st_size))
        flipped = path.read_bytes()
        check_found(store, world, target, path)
        if target in REBUILT:
            assert path.read_bytes() != flipped
        else:
            path.write_bytes(raw)
    assert read_world(store.path, world.snapshots) == world
    check_clean(store.path)


@pytest.mark.skipif(not IS_DEEP, reason="only in tools/deep")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("target", TARGETS)
def test_a_flipped_bit_in_every_byte_is_found(whole, target):
    store, world = whole
    path = paths_of(store)[target]
    raw = path.read_bytes()
    for position in range(len(raw)):
        path.write_bytes(raw)
        flip(path, 8 * position + (position + SEED) % 8)
        check_found(store, world, target, path)


# Files that are not what they were


def cut(path: Path, other: Path, random: Random) -> None:
    path.write_bytes(path.read_bytes()[: random.randrange(1, path.stat().st_size)])


def empty(path: Path, other: Path, random: Random) -> None:
    path.write_bytes(b"")


def missing(path: Path, other: Path, random: Random) -> None:
    path.unlink()


def longer(path: Path, other: Path, random: Random) -> None:
    path.write_bytes(path.read_bytes() + random.randbytes(random.randint(1, 100)))


def zeroed(path: Path, other: Path, random: Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def torn(path: Path, other: Path, random: Random) -> None:
    raw = path.read_bytes()
    start = random.randrange(len(raw))
    path.write_bytes(raw[:start] + bytes(len(raw) - start))


def swapped(path: Path, other: Path, random: Random) -> None:
    path.write_bytes(other.read_bytes())


def random_bytes(path: Path, other: Path, random: Random) -> None:
    path.write_bytes(random.randbytes(path.stat().st_size))


def a_folder(path: Path, other: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_nowhere(path: Path, other: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


KINDS = [cut, empty, missing, longer, zeroed, torn, swapped, random_bytes, a_folder, a_link_to_nowhere]
# A name or record that is gone was perhaps taken away, and a manifest that is gone was perhaps removed: that is no
# damage by itself. A link to nowhere is a name without a file.
UNSEEN = {(target, kind) for target in ("ref", "manifest", "record") for kind in (missing, a_link_to_nowhere)}
CASES = [(target, kind) for target in TARGETS for kind in KINDS if (target, kind) not in UNSEEN]
ROUNDS = -(-COUNTS.file_damages // len(CASES))


def other_of(store: Store, target: str, path: Path) -> Path:
    """Return a sound file of the same kind, or of another where there is only one."""
    if target == "block":
        return object_path(store, store.manifest("old").blocks[1].digest)
    if target == "manifest":
        return next(one for one in path.parent.iterdir() if one != path)
    return store.path / ("refs/old" if target != "ref" else "store.json")


@pytest.mark.parametrize(
    ("target", "kind"), [pytest.param(*case, id=f"{case[0]}-{case[1].__name__}") for case in CASES]
)
def test_a_file_that_is_not_what_it_was_is_found(whole, target, kind: Callable):
    store, world = whole
    path = paths_of(store)[target]
    other = other_of(store, target, path)
    random = Random(f"{SEED} {target} {kind.__name__}")
    raw = path.read_bytes()
    for _ in range(ROUNDS):
        kind(path, other, random)
        check_found(store, world, target, path)
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(raw)
    assert read_world(store.path, world.snapshots) == world
    check_clean(store.path)


def test_a_manifest_that_is_gone_leaves_a_name_that_says_so(whole):
    store, world = whole
    path = paths_of(store)["manifest"]
    path.unlink()
    with pytest.raises(StoreDamaged, match="not in the store"):
        store.manifest("old")
    with pytest.raises(SnapshotNotFound):
        store.manifest(path.stem)
    assert [row["file"] for row in store.verify()["damaged_files"]] == ["refs/old"]
    assert {summary.id for summary in store.summaries()} == world.snapshots.keys() - {path.stem}


def _refused(path: Path, code: int, number: int, call: Call) -> None:
    if call.path == path and call.kind in ("open", "list"):
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize("target", ["block", "manifest", "ref", "store.json", "index"])
def test_a_file_that_the_system_refuses_is_never_called_damaged(whole, target, code):
    store, world = whole
    path = paths_of(store)[target]
    with Disk(store.path, partial(_refused, path, code)):
        if target == "index":
            assert read_world(store.path, world.snapshots) == world
            return
        with pytest.raises(StoreError, match=f"{re.escape(str(path))}|{re.escape(str(store.path))}: can't be read"):
            store.read_block(path.name) if target == "block" else Store.open(store.path).manifest("old")
        if code in (errno.EMFILE, errno.ENOMEM):  # no file can be read then, so none is listed
            if target != "store.json":
                with pytest.raises(StoreError, match="too many open files|out of memory"):
                    store.verify()
            return
        report = store.verify()
        assert report["damaged"] == report["damaged_files"] == []
        found = [row["file"] for row in report["unreadable"]]
        assert report["ok"] == (target == "store.json")
        assert target == "store.json" or str(path.relative_to(store.path)) in found
        if target == "manifest":
            with pytest.raises(StoreUnreadable, match="nothing is deleted"):
                store.gc(grace_s=0)
    assert read_world(store.path, world.snapshots) == world


@pytest.mark.parametrize("folder", ["objects", "snapshots"])
def test_a_missing_folder_that_held_something_stops_writers(whole, folder):
    store, world = whole
    num_blocks = store.stats()["num_blocks"]
    (store.path / folder).rename(store.path / "elsewhere")
    for act in (lambda: store.gc(grace_s=0), store.verify, lambda: put(store, seed=9)):
        with pytest.raises(StoreDamaged, match=f"{folder}: expected a folder of the store, found none"):
            act()
    (store.path / "elsewhere").rename(store.path / folder)
    assert store.stats()["num_blocks"] == num_blocks
    assert read_world(store.path, world.snapshots) == world


@pytest.mark.parametrize("folder", ["objects", "snapshots", "refs", "tmp"])
def test_a_folder_that_can_not_be_read_stops_a_gc(whole, folder):
    store, world = whole
    num_blocks = store.stats()["num_blocks"]
    with Disk(store.path, partial(_refused, store.path / folder, errno.EACCES)):
        with pytest.raises(StoreUnreadable, match=folder):
            store.gc(grace_s=0)
        if folder != "tmp":
            with pytest.raises(StoreUnreadable, match=folder):
                store.verify()
    assert store.stats()["num_blocks"] == num_blocks
    assert read_world(store.path, world.snapshots) == world


@pytest.mark.parametrize("is_named", [True, False])
def test_a_store_copied_without_empty_folders_is_whole(tmp_path, is_named):
    store = Store.open(tmp_path / "store", create=True)
    put(store, seed=1, name="old" if is_named else None)
    for folder in sorted(store.path.rglob("*/"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    assert store.verify()["ok"]
    assert list(store.refs()) == (["old"] if is_named else [])
    assert store.gc(grace_s=0)["num_blocks_kept"] > 0
    shutil.rmtree(store.path / "tmp")
    put(store, seed=2, name="new")
    assert len(store.manifests()) == 2
    check_clean(store.path)


def test_an_empty_store_without_its_folders_can_be_written(tmp_path):
    Store.open(tmp_path / "store", create=True)
    for folder in ("objects", "snapshots", "refs", "tmp"):
        shutil.rmtree(tmp_path / "store" / folder)
    store = Store.open(tmp_path / "store")
    assert store.summaries() == []
    assert store.verify()["ok"]
    put(store, seed=2, name="new")
    check_clean(store.path)


STRAYS = ["objects/note", "objects/zz/x", "refs/.hidden", "refs/a b", "snapshots/x.json", "snapshots/.x", "refs/ü"]


@pytest.mark.parametrize("stray", STRAYS)
def test_a_file_that_belongs_nowhere_is_named_and_breaks_nothing(whole, stray):
    store, world = whole
    path = store.path / stray
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    assert stray in [row["file"] for row in store.verify()["damaged_files"]]
    assert read_world(store.path, world.snapshots) == world


def test_an_unneeded_block_is_no_fault_and_is_collected(whole):
    store, world = whole
    with disk_folder() as folder:
        foreign, _ = make_store(folder / "foreign", (7,))
        source = object_path(foreign, foreign.manifest("old").blocks[-1].digest)
        shutil.copy(source, object_path(store, source.name))
    assert store.verify()["ok"]
    check_clean(store.path)
    assert read_world(store.path, world.snapshots) == world


def test_two_swapped_blocks_are_both_found(whole):
    store, world = whole
    one, two = (object_path(store, entry.digest) for entry in store.manifest("old").blocks[:2])
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert {row["block"] for row in store.verify()["damaged"]} == {one.name, two.name}
    for path in (one, two):
        with pytest.raises(BlockDamaged):
            store.read_block(path.name)
    one.write_bytes(first)
    two.write_bytes(second)
    assert all(equal(read(store, snapshot), blocks) for snapshot, blocks in world.snapshots.items())
