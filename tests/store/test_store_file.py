"""Opening a store: only a folder that is one, of this format, is opened; only an empty place becomes one."""

from contextlib import ExitStack
from threading import Thread

import pytest

from raysnap.errors import StoreDamaged, StoreError
from raysnap.store.backends.folder import Folder
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, make_blocks, put, read
from tests.support.store_blocks import content


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


def test_a_folder_of_something_else_is_rejected_unchanged(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for create in (False, True):
        with pytest.raises(StoreError, match=r"without store\.json"):
            Store.open(tmp_path, create=create)
    assert list(content(tmp_path)) == ["photo.jpg"]


def test_an_interrupted_creation_is_finished(tmp_path):
    (tmp_path / "objects" / "00").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    with pytest.raises(StoreError):
        Store.open(tmp_path)
    assert put(Store.open(tmp_path, create=True)).is_new


def test_a_store_without_its_store_file_is_not_replaced(store):
    put(store)
    (store.path / "store.json").unlink()
    with pytest.raises(StoreError, match=r"without store\.json"):
        Store.open(store.path, create=True)


@pytest.mark.parametrize("document", ['{"format": 3, "digest": "blake3"}', '{"format": 99, "digest": "other", "x": 1}'])
def test_a_newer_format_is_rejected_unchanged(store, document):
    put(store)
    (store.path / "store.json").write_text(document)
    before = content(store.path)
    for create in (False, True):
        with pytest.raises(StoreError, match="newer"):
            Store.open(store.path, create=create)
    assert content(store.path) == before


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "null",
        '{"format": 1}',
        '{"format": 1, "digest": "blake3"}',
        '{"digest":"blake3","format":1}',
        '{"format": "1", "digest": "blake3"}',
        "[" * 9999,
    ],
)
def test_a_damaged_store_file_is_damage(store, document):
    (store.path / "store.json").write_text(document)
    with pytest.raises(StoreDamaged):
        Store.open(store.path)


SQUASHED = Preprocessing(resize_mode="squash")


def test_a_store_gets_format_2_with_what_format_1_can_not_say(store):
    def store_file() -> bytes:
        return (store.path / "store.json").read_bytes()

    old = put(store, name="old").manifest
    raw = (store.path / "snapshots" / f"{old.id}.json").read_bytes()
    assert (old.format, store_file()) == (1, b'{"digest":"blake3","format":1}\n')
    wide = put(store, 1, preprocessing=SQUASHED, name="wide").manifest
    assert (wide.format, store_file()) == (2, b'{"digest":"blake3","format":2}\n')
    assert put(Store.open(store.path), 2).manifest.format == 1
    assert store_file() == b'{"digest":"blake3","format":2}\n'
    assert (store.path / "snapshots" / f"{old.id}.json").read_bytes() == raw
    assert Store.open(store.path).manifest("wide") == wide
    assert store.verify()["ok"] and len(store.summaries()) == 3
    assert store.gc(grace_s=0)["num_blocks_deleted"] == 0


def test_format_2_is_written_before_its_first_manifest(store, monkeypatch):
    seen = []
    publish = Folder.publish

    def watch(folder, staged, target):
        seen.append((target.name, (folder.root / "store.json").read_bytes()))
        return publish(folder, staged, target)

    monkeypatch.setattr(Folder, "publish", watch)
    snapshot = put(store, preprocessing=SQUASHED).manifest.id
    assert dict(seen)[f"{snapshot}.json"] == b'{"digest":"blake3","format":2}\n'


def test_who_waits_for_the_old_lock_takes_the_new_one(store):
    snapshot = put(store).manifest.id
    folder = Folder(store.path)
    waiting = Thread(target=lambda: store.set_ref("mine", snapshot))
    with ExitStack() as new:
        with folder.hold_names():
            waiting.start()
            waiting.join(0.1)
            folder.write("store.json", b'{"digest":"blake3","format":2}\n')
            new.enter_context(folder.hold_names())
        waiting.join(0.1)
        assert store.refs() == {}
    waiting.join()
    assert store.refs() == {"mine": snapshot}


def test_a_moved_or_linked_store_can_be_opened(store, tmp_path):
    snapshot = put(store, name="mine").manifest.id
    moved = store.path.rename(tmp_path / "with blanks and ü")
    (tmp_path / "link").symlink_to(moved)
    again = Store.open(tmp_path / "link")
    assert again.resolve("mine") == snapshot
    assert not put(again).is_new
    assert equal(read(again, "mine"), make_blocks())
