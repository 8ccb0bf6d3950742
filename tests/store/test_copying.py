"""A store copied to another place: the same bytes, only what is missing, and nothing that is damaged."""

import pytest

from raysnap.errors import StoreDamaged, StoreError
from raysnap.store import copying
from raysnap.store.backends.bucket import Bucket
from raysnap.store.backends.place import object_key
from raysnap.store.copying import copy_store
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, make_blocks, put, read
from raysnap.testing.places import Killed, count_operations, killed_at, open_store, watched
from tests.support.places import in_memory
from tests.support.start_records import record
from tests.support.store_blocks import content


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store.open(tmp_path / "store", create=True)
    put(store, 1, 1, name="one")
    put(store, 2, 1, name="two", metrics={"val_accuracy": 0.75})
    store.put_record(record("a", "pets", 0.5))
    return store


def stored(folder) -> dict[str, bytes]:
    return {key: raw for key, raw in content(folder).items() if key not in ("index.sqlite", "records.cache")}


def test_a_copy_to_a_bucket_and_back_is_the_same_bytes(store, tmp_path):
    far = open_store(in_memory().open(), create=True)
    copied = store.copy_to(far)
    assert (copied.num_snapshots, copied.num_blocks, copied.num_names, copied.num_records) == (2, 4, 2, 1)
    back = Store.open(tmp_path / "back", create=True)
    far.copy_to(back)
    assert stored(back.path) == stored(store.path)
    assert far.verify()["ok"] and back.verify()["ok"]


def test_a_second_copy_sends_nothing(store):
    new_place = in_memory()
    store.copy_to(open_store(new_place.open(), create=True))
    bucket = new_place.open()
    again = store.copy_to(open_store(bucket))
    assert (again.num_snapshots, again.num_blocks, again.num_bytes, again.num_names, again.num_records) == (0,) * 5
    assert bucket.client.requests.written_bytes < 40_000, "an index at most"


def test_only_blocks_that_are_missing_are_sent(store):
    far = open_store(in_memory().open(), create=True)
    put(far, 1, 1)
    assert store.copy_to(far).num_blocks == 1


def test_a_copy_that_broke_off_goes_on(store):
    new_place = in_memory()
    open_store(new_place.open(), create=True)
    num_operations = count_operations(in_new_store().open(), store.copy_to)
    for step in range(1, num_operations + 1, 3):
        with pytest.raises(Killed):
            store.copy_to(open_store(watched(in_new_store(new_place := in_memory()).open(), killed_at(step))))
        assert open_store(new_place.open()).verify()["ok"]
        store.copy_to(open_store(new_place.open()))
        assert open_store(new_place.open()).refs() == store.refs()


def in_new_store(new_place=None):
    new_place = new_place or in_memory()
    open_store(new_place.open(), create=True)
    return new_place


def test_names_that_others_have_stay_theirs(store):
    far = open_store(in_memory().open(), create=True)
    other = put(far, 9, name="one").manifest.id
    assert store.copy_to(far).kept_names == ("one",)
    assert far.refs() == {"one": other, "two": store.resolve("two")}


def test_some_snapshots_are_copied_with_their_names(store):
    far = open_store(in_memory().open(), create=True)
    assert store.copy_to(far, "accuracy > 0.5").num_snapshots == 1
    assert list(far.refs()) == ["two"]
    assert equal(read(far, "two"), make_blocks(2, 1))


def test_a_damaged_block_is_not_copied(store):
    digest = store.manifest("one").blocks[-1].digest
    path = store.path / object_key(digest)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    far = open_store(in_memory().open(), create=True)
    with pytest.raises(StoreDamaged, match=f"{digest}.*not copied"):
        store.copy_to(far)
    assert far.summaries() == [] and far.verify()["ok"]


@pytest.mark.parametrize("what", ["manifest", "another manifest", "record"])
def test_a_damaged_manifest_or_record_is_not_copied(store, what):
    one, two = (store.path / "snapshots" / f"{store.resolve(name)}.json" for name in ("one", "two"))
    path = next((store.path / "records").iterdir()) if what == "record" else one
    raw = two.read_bytes() if what == "another manifest" else path.read_bytes().replace(b"resnet18", b"resnet34")
    path.write_bytes(raw)
    far = open_store(in_memory().open(), create=True)
    with pytest.raises(StoreDamaged, match=path.name):
        store.copy_to(far)
    assert set(far.refs()) == ({"one", "two"} if what == "record" else {"two"}), "the rest is copied"
    assert equal(read(far, "two"), make_blocks(2, 1)) and far.verify()["ok"]
    assert len(list(far.records())) == (what != "record")


def test_a_snapshot_that_is_damaged_while_it_is_copied_is_not(store):
    snapshot, other = store.resolve("one"), store.resolve("two")
    path = store.path / "snapshots" / f"{snapshot}.json"
    path.write_bytes((store.path / "snapshots" / f"{other}.json").read_bytes())
    far = in_memory().open()
    open_store(far, create=True)
    with pytest.raises(StoreDamaged, match=snapshot):
        copy_store(store._place, far, [snapshot], {})
    assert open_store(far).summaries() == []


def test_a_name_given_during_a_copy_stays(store, monkeypatch):
    far = open_store(in_memory().open(), create=True)
    other, list_refs = put(far, 9).manifest.id, copying.list_refs

    def list_too_early(place):
        found = list_refs(place)
        far.set_ref("one", other)
        return found

    monkeypatch.setattr(copying, "list_refs", list_too_early)
    with pytest.raises(StoreError, match="nothing is changed"):
        store.copy_to(far)
    monkeypatch.undo()
    assert store.copy_to(far).kept_names == ("one",)
    assert far.refs() == {"one": other, "two": store.resolve("two")}


def test_what_a_gc_takes_during_a_copy_is_sent_again(store, monkeypatch):
    new_place, put_object, pending = in_memory(), Bucket.put_object, []

    def put_and_collect(self, digest, chunks):
        put_object(self, digest, chunks)
        if not pending:
            pending.append(digest)
            open_store(new_place.open()).gc(grace_s=0)

    far = open_store(new_place.open(), create=True)
    monkeypatch.setattr(Bucket, "put_object", put_and_collect)
    store.copy_to(far)
    assert equal(read(far, "one"), make_blocks(1, 1)) and far.verify()["ok"]


def test_a_store_that_can_not_be_written_says_so(store, monkeypatch):
    far = open_store(in_memory().open(), create=True)

    def full(self, digest, chunks):
        raise StoreError("no room left")

    monkeypatch.setattr(Bucket, "put_object", full)
    with pytest.raises(StoreError, match="no room left"):
        store.copy_to(far)
