"""Stores in odd places, at odd times, without permissions, and of other versions of the format."""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from raysnap.errors import StoreError
from raysnap.models.tensor_bytes import canonical_block_bytes
from raysnap.store.manifest import BlockEntry, DatasetRecord, Manifest, snapshot_id
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, make_blocks, put, read
from tests.support import ROOT, SUPPORT
from tests.support.store_blocks import object_path


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(tmp_path / "store", create=True)


# Row 24: clocks, paths, permissions


def test_a_clock_that_steps_back_and_a_time_zone_change_nothing(store, monkeypatch):
    first = put(store, seed=1, name="mine").manifest
    assert len(store.summaries()) == 1
    for folder in ("snapshots", "refs"):
        os.utime(store.path / folder, (4e9, 4e9))
    assert len(store.summaries()) == 1
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        second = put(store, seed=2, name="mine").manifest
        assert {summary.id for summary in store.summaries()} == {first.id, second.id}
        assert abs(datetime.fromisoformat(second.created) - datetime.now(UTC)) < timedelta(minutes=5)
        store.gc()
        store.gc(grace_s=0)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert store.verify()["ok"]
    assert equal(read(store, "mine"), make_blocks(2))


@pytest.mark.parametrize(
    "name", ["with blanks", " ", "ü, 火 and 👍", "new\nline", "quote'\"", "-rf", "%s {0} $HOME", "a" * 255, "e\u0301"]
)
def test_a_store_may_lie_anywhere(tmp_path, name):
    store = Store.open(tmp_path / name, create=True)
    snapshot = put(store, name="mine").manifest.id
    again = Store.open(tmp_path / name)
    assert [summary.id for summary in again.summaries("name == 'mine'")] == [snapshot]
    assert again.verify()["ok"]
    assert again.gc(grace_s=0)["num_blocks_deleted"] == 0
    assert equal(read(again, "mine"), make_blocks())


def test_a_path_works_up_to_the_systems_longest(tmp_path):
    deep = tmp_path / Path(*["d" * 200] * 15)
    store = Store.open(deep / "store", create=True)
    put(store, name="mine")
    assert equal(read(Store.open(deep / "store"), "mine"), make_blocks())
    with pytest.raises(StoreError, match="File name too long"):
        Store.open(deep / Path(*["d" * 200] * 10), create=True)
    with pytest.raises(StoreError, match="File name too long"):
        Store.open(tmp_path / ("n" * 256), create=True)


def test_relative_linked_and_dotted_paths_are_one_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = put(Store.open("store", create=True), name="mine")
    (tmp_path / "link").symlink_to("store")
    for path in ("store", "./store/../store", "link", tmp_path / "link"):
        store = Store.open(path)
        assert not put(store, name="mine").is_new
        assert store.resolve("mine") == written.manifest.id
        assert store.verify()["ok"]
        store.gc(grace_s=0)
        assert equal(read(store, "mine"), make_blocks())


def test_a_broken_link_is_rejected(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(StoreError, match="found a broken link"):
        Store.open(tmp_path / "link", create=True)


def test_a_read_only_store_can_be_read_and_explains_writes(store):
    put(store, name="mine")
    store.put_block(make_blocks(7)[0][1])  # something for gc to delete
    (store.path / "index.sqlite").unlink(missing_ok=True)
    script = SUPPORT / "read_only_reader.py"
    command = [sys.executable, str(script), store.path.name]
    result = subprocess.run(command, cwd=store.path.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "permission denied" in result.stdout


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "de_DE.ISO-8859-1"])
def test_the_locale_does_not_matter(tmp_path, locale):
    path = tmp_path / "störe"
    put(Store.open(path, create=True), name="mine", train={"note": "schön"})
    check = "print(Store.open(sys.argv[1]).manifest('mine').train == {'note': 'sch\\xf6n'})"
    script = f"import sys; from raysnap.store.store import Store; {check}"
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", script, path], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "True", result.stderr


# Row 25: stores of other versions

STEM = {"bn.num_batches_tracked": torch.tensor(7), "conv.weight": torch.tensor([[1.5], [-2.0]])}
HEAD = {"fc.weight": torch.tensor([0.25])}
STEM_ID = "614d53dd78eba8172245c3927e4c60345f5da9ce566c64e77f16a623e6eee350"
HEAD_ID = "d6bb507fd74af2bc63fc9207423ea4e756b98bd3ebf2960c525af03d6c6b3130"
SNAPSHOT_ID = "2d6ccc5c067b2cd7695368a6a82aef176a3903a7c98bca8a103db64928c46772"
# A store of format 1, to the last byte; every later version must read it, and write it so.
GOLDEN = {
    "store.json": b'{"digest":"blake3","format":1}\n',
    f"objects/61/{STEM_ID}": b"\x90\0\0\0\0\0\0\0"
    b'{"bn.num_batches_tracked":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
    b'"conv.weight":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]}}    '
    b"\7\0\0\0\0\0\0\0\0\0\xc0?\0\0\0\xc0",
    f"objects/d6/{HEAD_ID}": b"@\0\0\0\0\0\0\0"
    b'{"fc.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  \0\0\x80>',
    f"snapshots/{SNAPSHOT_ID}.json": (
        '{"architecture":"resnet18","base":"' + "ab" * 32 + '",'
        '"blocks":[{"digest":"' + STEM_ID + '","name":"stem","num_bytes":168},'
        '{"digest":"' + HEAD_ID + '","name":"head","num_bytes":76}],'
        '"checksum":"5efd4b312632058b212e30fb10f930d4e66f94eafdb5d5c43c11b59f35517192",'
        '"created":"2026-01-02T03:04:05Z","dataset":{"classes":["a \\"b\\"","c"],"digest":null,"name":"vögel"},'
        '"format":1,"id":"' + SNAPSHOT_ID + '","metrics":{"n":3.0,"val_accuracy":0.1,"val_loss":1e-07},'
        '"num_classes":2,"preprocessing":{"image_size":224,"interpolation":"bilinear","mean":[0.485,0.456,0.406],'
        '"resize_size":256,"std":[0.229,0.224,0.225]},"raysnap_version":"0.1.0","retrain_index":1,'
        '"train":{"lr":0.001,"note":"ü\\n"},"trial":"001"}'
    ).encode(),
    "refs/best": f"{SNAPSHOT_ID}\n".encode(),
}


def golden_manifest() -> Manifest:
    blocks = (BlockEntry("stem", STEM_ID, 168), BlockEntry("head", HEAD_ID, 76))
    return Manifest(
        id=snapshot_id("resnet18", [(block.name, block.digest) for block in blocks]),
        architecture="resnet18",
        num_classes=2,
        blocks=blocks,
        base="ab" * 32,
        retrain_index=1,
        dataset=DatasetRecord(name="vögel", classes=('a "b"', "c")),
        metrics={"val_accuracy": 0.1, "val_loss": 1e-7, "n": 3.0},
        train={"lr": 1e-3, "note": "ü\n"},
        trial="001",
        created="2026-01-02T03:04:05Z",
        raysnap_version="0.1.0",
    )


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def golden(tmp_path) -> Path:
    for name, raw in GOLDEN.items():
        path = tmp_path / "golden" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    for folder in ("refs", "tmp"):
        (tmp_path / "golden" / folder).mkdir(exist_ok=True)
    return tmp_path / "golden"


def test_a_store_of_format_1_is_read_the_same_forever(golden):
    store = Store.open(golden)
    assert store.manifest("best") == golden_manifest()
    assert [summary.names for summary in store.summaries("dataset == 'vögel' and accuracy > 0.05")] == [("best",)]
    assert equal(read(store, "best"), [("stem", STEM), ("head", HEAD)])
    assert store.verify()["ok"]


def test_format_1_is_written_the_same_forever(golden, store):
    assert canonical_block_bytes(STEM) == GOLDEN[f"objects/61/{STEM_ID}"]
    assert canonical_block_bytes(HEAD) == GOLDEN[f"objects/d6/{HEAD_ID}"]
    assert golden_manifest().to_bytes() == GOLDEN[f"snapshots/{SNAPSHOT_ID}.json"]
    written = store.put_snapshot(
        architecture="resnet18", blocks=[("stem", STEM), ("head", HEAD)], num_classes=2, name="best"
    )
    assert written.manifest.id == SNAPSHOT_ID
    for name in GOLDEN.keys() - {f"snapshots/{SNAPSHOT_ID}.json"}:
        assert (store.path / name).read_bytes() == GOLDEN[name]
    assert object_path(store, STEM_ID).exists()


def test_a_store_of_format_1_is_added_to(golden):
    store = Store.open(golden, create=True)
    assert not store.put_snapshot(
        architecture="resnet18", blocks=[("stem", STEM), ("head", HEAD)], num_classes=2
    ).is_new
    assert (golden / f"snapshots/{SNAPSHOT_ID}.json").read_bytes() == GOLDEN[f"snapshots/{SNAPSHOT_ID}.json"]
    assert put(store, name="new").is_new
    assert store.gc(grace_s=0)["num_blocks_deleted"] == 0
    assert store.verify()["ok"]


@pytest.mark.parametrize(
    "document", ['{"format": 3, "digest": "blake3"}', '{"format": 3}', '{"format": 1000, "x": []}']
)
def test_a_store_of_a_later_format_is_refused_and_not_touched(golden, document):
    (golden / "store.json").write_text(document)
    before = content(golden)
    for create in (False, True):
        with pytest.raises(StoreError, match="newer"):
            Store.open(golden, create=create)
    command = [sys.executable, "-m", "raysnap", "store", "gc", "--store", str(golden)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert "newer" in result.stderr
    assert result.stderr.count("\n") == 1
    assert content(golden) == before
