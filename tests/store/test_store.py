"""The store: what is put comes back bit for bit, shared blocks are stored once, many processes may work at once."""

import json
import subprocess
import sys
import threading

import pytest
import torch
from blake3 import blake3

from raysnap.errors import BlockDamaged, StoreDamaged, StoreError, UsageError, WeightsError
from raysnap.models.tensor_bytes import block_digest
from raysnap.store.backends import folder as folder_module
from raysnap.store.manifest import DatasetRecord
from raysnap.store.store import BlockWrite, Store
from raysnap.testing.blocks import equal, make_blocks, put, read
from tests.support import SUPPORT
from tests.support.store_blocks import content, object_path


def test_what_is_put_comes_back_bit_for_bit(store):
    written = put(store)
    assert written.is_new
    assert written.new_blocks == 3
    assert equal(read(store, written.manifest.id), make_blocks())


def test_shared_blocks_are_stored_once(store):
    put(store, seed=1, num_retrained=1)
    second = put(store, seed=2, num_retrained=1)
    assert (second.new_blocks, second.new_bytes) == (1, second.manifest.blocks[-1].num_bytes)
    stats = store.stats()
    assert (stats["num_snapshots"], stats["num_blocks"]) == (2, 4)
    assert stats["bytes_if_copied"] == 6 * second.new_bytes
    assert stats["bytes_on_disk"] == sum(len(raw) for raw in content(store.path).values())


def test_adding_the_same_snapshot_twice_changes_nothing(store):
    first = put(store, metrics={"val_accuracy": 0.5}, name="mine")
    before = content(store.path)
    second = put(store, metrics={"val_accuracy": 0.9}, name="mine")
    assert (second.is_new, second.new_blocks, second.new_bytes) == (False, 0, 0)
    assert second.manifest == first.manifest
    assert content(store.path) == before


def test_a_block_may_be_given_by_digest_by_write_or_by_tensors(store):
    blocks = make_blocks()
    first = store.put_block(blocks[0][1])
    second = store.put_block(blocks[1][1])
    mixed = [("stem", first.digest), ("layer1.0", second), blocks[2]]
    written = store.put_snapshot(architecture="resnet18", blocks=mixed, num_classes=4)
    assert equal(read(store, written.manifest.id), blocks)
    assert written.new_blocks == 2
    assert store.block_bytes(first.digest) == first.num_bytes


def test_a_snapshot_keeps_where_it_comes_from(store):
    base = put(store).manifest
    written = put(
        store,
        seed=1,
        num_retrained=1,
        base=base.id,
        retrain_index=0,
        dataset=DatasetRecord(name="birds", classes=("a", "b")),
        metrics={"val_accuracy": 0.25},
        train={"lr": 0.1},
        trial="001",
    )
    manifest = store.manifest(written.manifest.id)
    assert manifest == written.manifest
    assert (manifest.base, manifest.retrain_index, manifest.trial) == (base.id, 0, "001")
    assert (manifest.accuracy, manifest.dataset.classes, manifest.train) == (0.25, ("a", "b"), {"lr": 0.1})


def test_a_missing_digest_is_rejected_before_the_manifest(store):
    with pytest.raises(BlockDamaged, match="missing"):
        store.put_snapshot(architecture="resnet18", blocks=[("stem", "0" * 64)], num_classes=4)
    assert store.manifests() == []


def test_a_block_deleted_since_it_was_put_is_an_error(store):
    gone = BlockWrite("0" * 64, 8, is_new=True)
    with pytest.raises(StoreError, match="found it gone"):
        store.put_snapshot(architecture="resnet18", blocks=[("stem", gone)], num_classes=4)
    assert store.manifests() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"metrics": {"val_accuracy": float("nan")}},
        {"train": {"x": object()}},
        {"retrain_index": -1},
        {"train": {"note": "x" * 2**24}},
    ],
    ids=["a metric of NaN", "training that is no JSON", "a negative index", "a manifest too long to be read"],
)
def test_a_snapshot_that_can_not_be_described_is_refused(store, fields):
    with pytest.raises((StoreError, TypeError)):
        put(store, **fields)
    assert store.manifests() == []


@pytest.mark.parametrize("digest", ["../../store.json", "/etc/passwd", "A" * 64, "", "0" * 63])
def test_a_digest_that_is_a_path_opens_nothing(store, digest):
    with pytest.raises(UsageError):
        store.read_block(digest)


def test_tensors_that_change_during_a_write_are_not_stored(store, monkeypatch):
    tensor = torch.zeros(1000)
    refresh = folder_module.Folder.has_object

    def refresh_and_change(self, *args):
        tensor.add_(1)
        return refresh(self, *args)

    monkeypatch.setattr(folder_module.Folder, "has_object", refresh_and_change)
    with pytest.raises(StoreError, match="changed while"):
        store.put_block({"x": tensor})
    assert store.stats()["num_blocks"] == 0
    assert not list((store.path / "tmp").iterdir())


def test_a_store_can_be_read_with_json_and_blake3_alone(store):
    written = put(store, name="mine")
    snapshot = (store.path / "refs" / "mine").read_text().strip()
    document = json.loads((store.path / "snapshots" / f"{snapshot}.json").read_text())
    assert json.loads((store.path / "store.json").read_text()) == {"format": 1, "digest": "blake3"}
    for block, (_, tensors) in zip(document["blocks"], make_blocks(), strict=True):
        raw = object_path(store, block["digest"]).read_bytes()
        assert blake3(raw).hexdigest() == block["digest"]
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        assert list(header) == list(tensors)
    assert written.manifest.id == snapshot


def test_a_head_only_fine_tune_adds_its_head_and_nothing_else(store):
    put(store, seed=0)
    written = put(store, seed=7, num_retrained=1)
    assert written.new_bytes == store.block_bytes(block_digest(make_blocks(7, 1)[-1][1]))


@pytest.mark.parametrize("law", ["together", "collected"])
def test_processes_that_work_at_once_leave_a_sound_store(tmp_path, law):
    script = SUPPORT / "store_processes.py"
    result = subprocess.run([sys.executable, str(script), law, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_readers_beside_a_writer_never_see_half_a_snapshot(store):
    stop = threading.Event()
    faults = []

    def watch() -> None:
        reader = Store.open(store.path)
        while not stop.is_set():
            try:
                for manifest in reader.manifests():
                    for block in manifest.blocks:
                        reader.read_block(block.digest)
            except (StoreDamaged, WeightsError) as error:
                faults.append(error)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    for seed in range(30):
        put(store, seed=seed, num_retrained=2, name="latest")
    stop.set()
    watcher.join()
    assert not faults
