"""The store: shared blocks once, nothing half written, and never a wrong weight."""

import errno
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from raysnap.errors import BlockDamaged, SnapshotNotFound, StoreDamaged, StoreError, UsageError, WeightsError
from raysnap.models.tensor_bytes import block_digest
from raysnap.store import files as files_module
from raysnap.store.manifest import DatasetRecord
from raysnap.store.store import BlockWrite, Store
from tests.support import ROOT, SUPPORT
from tests.support.store_blocks import equal, make_blocks, object_path, put, read


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(tmp_path / "store", create=True)


# Putting and getting


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


def test_a_missing_digest_is_refused_before_a_manifest_is_written(store):
    with pytest.raises(BlockDamaged, match="missing"):
        store.put_snapshot(architecture="resnet18", blocks=[("stem", "0" * 64)], num_classes=4)
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


def test_tensors_that_change_while_they_are_written_are_not_stored(store, monkeypatch):
    tensor = torch.zeros(1000)
    refresh = files_module.Files.refresh

    def refresh_and_change(self, *args):
        tensor.add_(1)
        return refresh(self, *args)

    monkeypatch.setattr(files_module.Files, "refresh", refresh_and_change)
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


# Opening


def test_a_missing_store_is_only_made_on_request(tmp_path):
    with pytest.raises(StoreError, match="found nothing there"):
        Store.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    Store.open(tmp_path / "deep" / "er", create=True)
    assert Store.open(str(tmp_path / "deep" / "er")).manifests() == []


def test_a_file_is_no_store(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    for create in (False, True):
        with pytest.raises(StoreError, match="found a file"):
            Store.open(path, create=create)
    assert path.read_text() == "mine"


def test_a_folder_of_something_else_is_no_store_and_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for create in (False, True):
        with pytest.raises(StoreError, match=r"without store\.json"):
            Store.open(tmp_path, create=create)
    assert list(content(tmp_path)) == ["photo.jpg"]


def test_a_start_that_was_broken_off_is_finished(tmp_path):
    (tmp_path / "objects" / "00").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    with pytest.raises(StoreError):
        Store.open(tmp_path)
    assert put(Store.open(tmp_path, create=True)).is_new


def test_a_store_that_lost_its_store_file_is_not_started_anew(store):
    put(store)
    (store.path / "store.json").unlink()
    with pytest.raises(StoreError, match=r"without store\.json"):
        Store.open(store.path, create=True)


@pytest.mark.parametrize("document", ['{"format": 2, "digest": "blake3"}', '{"format": 99, "digest": "other", "x": 1}'])
def test_a_newer_format_is_refused_without_touching_anything(store, document):
    put(store)
    (store.path / "store.json").write_text(document)
    before = content(store.path)
    for create in (False, True):
        with pytest.raises(StoreError, match="newer"):
            Store.open(store.path, create=create)
    assert content(store.path) == before


@pytest.mark.parametrize(
    "document", ["", "[]", "null", '{"format": 1}', '{"format": "1", "digest": "blake3"}', "[" * 9999]
)
def test_a_damaged_store_file_is_damage(store, document):
    (store.path / "store.json").write_text(document)
    with pytest.raises(StoreDamaged):
        Store.open(store.path)


def test_a_store_moves_with_its_folder_and_may_be_reached_through_a_link(store, tmp_path):
    snapshot = put(store, name="mine").manifest.id
    moved = store.path.rename(tmp_path / "with blanks and ü")
    (tmp_path / "link").symlink_to(moved)
    again = Store.open(tmp_path / "link")
    assert again.resolve("mine") == snapshot
    assert not put(again).is_new
    assert equal(read(again, "mine"), make_blocks())


# Names


def test_a_snapshot_goes_by_name_id_and_beginning_of_its_id(store):
    manifest = put(store, name="mine").manifest
    for name in ("mine", manifest.id, manifest.id[:6], manifest.id[:63]):
        assert store.manifest(name) == manifest
    assert store.refs() == {"mine": manifest.id}
    assert store.names_of(manifest.id) == ["mine"]


@pytest.mark.parametrize("name", ["minee", "", "..", "../store", "a/b", "0" * 64, "0" * 6, "x" * 5000, "ä\n"])
def test_an_unknown_name_is_not_found(store, name):
    put(store, name="mine")
    with pytest.raises(SnapshotNotFound):
        store.manifest(name)


def test_a_name_that_is_nearly_right_gets_a_hint(store):
    put(store, name="resnet18-birds")
    with pytest.raises(SnapshotNotFound, match="did you mean 'resnet18-birds'"):
        store.manifest("resnet18-bird")


def test_the_beginning_of_several_ids_is_refused(store, monkeypatch):
    ids = [put(store, seed=seed).manifest.id for seed in range(2)]
    common = "abcdef" + "0" * 50
    for index, snapshot in enumerate(ids):
        path = store.path / "snapshots" / f"{snapshot}.json"
        path.rename(path.with_name(f"{common}{index:08d}.json"))
    with pytest.raises(SnapshotNotFound, match="prefix of 2 ids"):
        store.resolve("abcdef")


def test_a_name_moves_only_from_what_is_expected(store):
    one, two = (put(store, seed=seed).manifest.id for seed in range(2))
    store.set_ref("best", one, expected="")
    with pytest.raises(StoreError, match="nothing is changed"):
        store.set_ref("best", two, expected="")
    with pytest.raises(StoreError, match="nothing is changed"):
        store.set_ref("best", two, expected=two)
    assert store.resolve("best") == one
    store.set_ref("best", two, expected=one)
    assert store.resolve("best") == two
    with pytest.raises(SnapshotNotFound):
        store.set_ref("best", "0" * 64)
    with pytest.raises(UsageError):
        store.set_ref("../best", one)


def _count_up(path: str, ids: list[str], num_moves: int) -> int:
    """Moves the name to the next id as often as asked, each time from what was read."""
    store = Store.open(path)
    num_lost = 0
    while num_moves:
        current = store.resolve("counter")
        try:
            store.set_ref("counter", ids[(ids.index(current) + 1) % len(ids)], expected=current)
            num_moves -= 1
        except StoreError:
            num_lost += 1
    return num_lost


def test_no_move_of_a_name_is_lost_between_threads(store):
    ids = [put(store, seed=seed).manifest.id for seed in range(37)]
    store.set_ref("counter", ids[0])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: _count_up(str(store.path), ids, 8), range(4)))
    assert store.resolve("counter") == ids[32]


def test_a_removed_snapshot_is_gone_with_its_names(store):
    put(store, seed=1, name="other")
    snapshot = put(store, name="mine").manifest.id
    store.set_ref("alias", snapshot)
    store.remove_snapshot("mine")
    assert list(store.refs()) == ["other"]
    assert len(store.manifests()) == 1
    with pytest.raises(SnapshotNotFound):
        store.manifest(snapshot)
    assert store.verify()["ok"]


# Listing


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


def test_a_snapshot_added_again_with_other_metrics_is_listed_with_them(store):
    snapshot = put(store, metrics={"val_accuracy": 0.25}).manifest.id
    assert store.summaries()[0].accuracy == 0.25
    store.remove_snapshot(snapshot)
    put(store, metrics={"val_accuracy": 0.75})
    assert store.summaries()[0].accuracy == 0.75


def test_a_snapshot_that_comes_within_one_tick_of_the_clock_is_listed(store):
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


# Damage


def flip(path: Path, seed: int) -> None:
    raw = bytearray(path.read_bytes())
    where = (seed * 2654435761) % (len(raw) * 8)
    raw[where // 8] ^= 1 << (where % 8)
    path.write_bytes(raw)


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_in_a_block_is_found_and_names_what_it_breaks(store, seed):
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


def test_a_damaged_manifest_is_mended_by_adding_the_snapshot_again(store):
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
    import pickle

    digest = put(store).manifest.blocks[0].digest
    object_path(store, digest).unlink()
    with pytest.raises(BlockDamaged) as caught:
        store.read_block(digest)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.block, again.snapshots) == (str(caught.value), digest, caught.value.snapshots)


# Writes that fail


def test_folders_of_blocks_that_others_wrote_are_on_the_disk_before_the_manifest(store, monkeypatch):
    writes = [(name, store.put_block(tensors)) for name, tensors in make_blocks()]
    synced = []
    monkeypatch.setattr(files_module, "sync_dir", synced.append)
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


def test_a_store_that_can_not_be_written_can_be_listed_and_read(store, monkeypatch):
    manifest = put(store, name="mine").manifest

    def read_only(self, *args, **kwargs):
        raise StoreError("read-only")

    monkeypatch.setattr(files_module.Files, "stage", read_only)
    assert [summary.names for summary in store.summaries("accuracy == None")] == [("mine",)]
    assert equal(read(store, "mine"), make_blocks())
    assert store.verify()["ok"]
    assert manifest.id in store.refs().values()


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


def test_a_head_only_fine_tune_adds_its_head_and_nothing_else(store):
    put(store, seed=0)
    written = put(store, seed=7, num_retrained=1)
    assert written.new_bytes == store.block_bytes(block_digest(make_blocks(7, 1)[-1][1]))
