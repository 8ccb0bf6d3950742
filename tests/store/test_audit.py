"""Damage: found, named with the snapshots that it breaks, never returned as weights, repaired by putting again."""

import pickle
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from raysnap.errors import BlockDamaged, StoreDamaged
from raysnap.testing.blocks import make_blocks, put
from tests.support.store_blocks import object_path


def flip(path: Path, seed: int) -> None:
    raw = bytearray(path.read_bytes())
    where = (seed * 2654435761) % (len(raw) * 8)
    raw[where // 8] ^= 1 << (where % 8)
    path.write_bytes(raw)


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_names_the_snapshots_that_it_breaks(store, seed):
    one = put(store, seed=1, num_retrained=1).manifest
    two = put(store, seed=2, num_retrained=1).manifest
    digest = one.blocks[seed % 2].digest
    flip(object_path(store, digest), seed)
    with pytest.raises(BlockDamaged) as caught:
        store.read_block(digest)
    assert caught.value.block == digest
    assert caught.value.snapshots == tuple(sorted([one.id, two.id]))
    report = store.verify()
    assert [(row["block"], row["snapshots"]) for row in report["damaged"]] == [(digest, sorted([one.id, two.id]))]
    assert not report["ok"]


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "longer", "swapped", "folder", "link to nowhere"])
def test_a_block_that_is_not_what_it_was_is_never_returned(store, damage):
    manifest = put(store).manifest
    digest, other = manifest.blocks[0].digest, manifest.blocks[1].digest
    path = object_path(store, digest)
    raw = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "link to nowhere":
        path.symlink_to("nowhere")
    elif damage != "missing":
        swapped = object_path(store, other).read_bytes()
        path.write_bytes({"cut": raw[:-1], "empty": b"", "longer": raw + b"\0", "swapped": swapped}[damage])
    with pytest.raises(BlockDamaged):
        store.read_block(digest)
    assert [row["block"] for row in store.verify()["damaged"]] == [digest]
    assert torch.equal(store.read_block(manifest.blocks[2].digest)["head.weight"], make_blocks()[2][1]["head.weight"])


def test_bytes_with_a_sound_digest_that_are_no_block_are_damage(store):
    raw = b"not a safetensors file"
    digest = blake3(raw).hexdigest()
    object_path(store, digest).write_bytes(raw)
    with pytest.raises(BlockDamaged, match="safetensors"):
        store.read_block(digest)
    assert [row["block"] for row in store.verify()["damaged"]] == [digest]


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_adding_a_snapshot_again_mends_its_missing_or_cut_blocks(store, damage):
    manifest = put(store).manifest
    path = object_path(store, manifest.blocks[1].digest)
    raw = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(raw[:-4])
    written = put(store)
    assert (written.is_new, written.new_blocks) == (False, 1)
    assert store.verify()["ok"]


def test_adding_a_snapshot_again_repairs_its_manifest(store):
    manifest = put(store).manifest
    flip(store.path / "snapshots" / f"{manifest.id}.json", 5)
    assert not store.verify()["ok"]
    assert put(store).is_new
    assert store.verify()["ok"]


@pytest.mark.parametrize("raw", [b"", b"x", b"0" * 64 + b"\n", b"0" * 100, b"\xff" * 65])
def test_a_damaged_ref_is_found_and_can_be_set_again(store, raw):
    snapshot = put(store, name="mine").manifest.id
    (store.path / "refs" / "mine").write_bytes(raw)
    with pytest.raises(StoreDamaged, match="mine"):
        store.resolve("mine")
    assert [row["file"] for row in store.verify()["damaged_files"]] == ["refs/mine"]
    store.set_ref("mine", snapshot)
    assert store.verify()["ok"]


def test_files_that_do_not_belong_are_named(store):
    put(store)
    strays = ["objects/ab/photo.jpg", "objects/note", "refs/.hidden", "snapshots/x.json"]
    for stray in strays:
        (store.path / stray).write_text("x")
    assert [row["file"] for row in store.verify()["damaged_files"]] == strays


def test_errors_survive_the_way_between_processes(store):

    digest = put(store).manifest.blocks[0].digest
    object_path(store, digest).unlink()
    with pytest.raises(BlockDamaged) as caught:
        store.read_block(digest)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.block, again.snapshots) == (str(caught.value), digest, caught.value.snapshots)
