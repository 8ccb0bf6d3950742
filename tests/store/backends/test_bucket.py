"""A store in a bucket: retries that are no repeats, writers that wait, and what its requests are."""

import pytest

from raysnap.errors import SnapshotNotFound, StoreError
from raysnap.store.backends.bucket import Bucket
from raysnap.store.backends.client import Client, ConditionFailed
from raysnap.store.catalog import ABSENT
from raysnap.testing.blocks import equal, id_of, make_blocks, put, read
from raysnap.testing.places import open_store, watched
from tests.support.places import in_memory


@pytest.fixture
def new_place():
    return in_memory()


@pytest.fixture
def store(new_place):
    return open_store(new_place.open(), create=True)


def lose_answers(monkeypatch, then=lambda: None, num_lost: int = 1) -> None:
    """Let conditional writes be done and refused at their own retry, as when their answers are lost."""
    put_if, lost = Client.put_if, []

    def put_twice(self, *args):
        put_if(self, *args)
        if len(lost) < num_lost:
            lost.append(args)
            then()
            put_if(self, *args)

    monkeypatch.setattr(Client, "put_if", put_twice)


def test_a_name_whose_answer_was_lost_is_given(store, monkeypatch):
    first, second = put(store, 1, name="best").manifest.id, put(store, 2).manifest.id
    lose_answers(monkeypatch)
    store.set_ref("best", second, expected=first)
    assert store.resolve("best") == second


def test_a_lost_answer_is_found_behind_later_moves(store, new_place, monkeypatch):
    first, second = put(store, 1, name="best").manifest.id, put(store, 2).manifest.id
    other = open_store(new_place.open())
    lose_answers(monkeypatch, then=lambda: other.set_ref("best", first, expected=second))
    store.set_ref("best", second, expected=first)
    assert store.resolve("best") == first, "another moved it on since"


def test_a_name_that_another_took_meanwhile_is_not_given(store, new_place, monkeypatch):
    first, second, third = (put(store, seed).manifest.id for seed in range(3))
    store.set_ref("best", first)
    other, swap = open_store(new_place.open()), Bucket.swap

    def swap_too_late(self, *args):
        monkeypatch.undo()
        other.set_ref("best", third)
        return swap(self, *args)

    monkeypatch.setattr(Bucket, "swap", swap_too_late)
    with pytest.raises(StoreError, match="nothing is changed"):
        store.set_ref("best", second, expected=first)
    assert store.resolve("best") == third


def test_a_manifest_whose_answer_was_lost_is_stored(store, monkeypatch):
    lose_answers(monkeypatch)
    assert put(store).is_new
    assert equal(read(store, id_of(make_blocks())), make_blocks())


def test_a_swap_that_got_no_answer_is_looked_up(store, monkeypatch):
    snapshot, put_if = put(store).manifest.id, Client.put_if

    def put_and_hang(self, *args):
        put_if(self, *args)
        raise StoreError("no answer")

    monkeypatch.setattr(Client, "put_if", put_and_hang)
    store.set_ref("best", snapshot, expected=ABSENT)
    monkeypatch.setattr(Client, "put_if", lambda *args: (_ for _ in ()).throw(StoreError("no answer")))
    with pytest.raises(StoreError, match="no answer"):
        store.remove_ref("best")


def test_a_removed_name_leaves_a_mark_that_is_no_name(store, new_place):
    put(store, name="best")
    store.remove_ref("best")
    client = new_place.open().client
    assert [found.num_bytes for found in client.list_below("refs")] == [0]
    assert store.refs() == {} and store.verify()["ok"]
    assert new_place.open().names("refs") == [], "nobody asks for it"
    with pytest.raises(SnapshotNotFound):
        store.remove_ref("best")


def test_a_writer_waits_for_a_dead_gc_and_no_longer(store, new_place):
    digest = put(store).manifest.blocks[0].digest
    bucket = new_place.open()
    bucket.client.put("tmp/doomed-0123", digest.encode())
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        new_place.pass_time(seconds)

    new_place.clock.sleep = sleep
    assert put(store).is_new is False
    assert bucket.bounds.delete_s + bucket.bounds.request_s <= sum(waited) < 400
    waited.clear()
    put(store, 1)
    assert waited == [], "it needs none of those blocks"


def test_a_slow_writer_shows_no_manifest_without_its_blocks(store, new_place):
    """It stands still before it publishes, until no gc heeds its draft, and one takes the blocks that it relied on."""
    for _, tensors in make_blocks(7):
        store.put_block(tensors)
    stood = []

    def stand_still(operation) -> None:
        if operation.name == "publish" and not stood:
            stood.append(operation)
            new_place.pass_time(1e5)
            assert open_store(new_place.open()).gc(grace_s=0)["num_blocks_deleted"] == 3
        elif stood:
            assert open_store(new_place.open()).verify()["ok"]

    put(open_store(watched(new_place.open(), stand_still)), 7, name="seven")
    assert stood and equal(read(store, "seven"), make_blocks(7))


def test_a_writer_stopped_at_its_last_step_puts_what_a_gc_took(store, new_place, monkeypatch):
    for _, tensors in make_blocks(7):
        store.put_block(tensors)
    swap, stood = Bucket.swap, []

    def swap_late(self, key, *args):
        if key.startswith("snapshots/") and not stood:
            stood.append(key)
            new_place.pass_time(1e5)
            assert open_store(new_place.open()).gc(grace_s=0)["num_blocks_deleted"] == 3
        return swap(self, key, *args)

    monkeypatch.setattr(Bucket, "swap", swap_late)
    put(store, 7, name="seven")
    assert stood and equal(read(store, "seven"), make_blocks(7)) and store.verify()["ok"]


def test_a_gc_whose_deletion_got_no_answer_leaves_its_list(store, new_place, monkeypatch):
    store.put_block(make_blocks()[0][1])
    delete = Client.delete

    def hang(self, keys):
        if keys and keys[0].startswith("objects/"):
            raise StoreError("no answer")
        delete(self, keys)

    monkeypatch.setattr(Client, "delete", hang)
    with pytest.raises(StoreError, match="no answer"):
        store.gc(grace_s=0)
    assert [key[:11] for key in (found.key for found in new_place.open().client.list_below("tmp"))] == ["tmp/doomed-"]
    monkeypatch.undo()
    new_place.pass_time(1e5)
    assert store.gc(grace_s=0)["num_blocks_deleted"] == 1
    assert new_place.open().names("tmp") == []


def test_blocks_that_the_bucket_has_are_not_sent(store, new_place):
    put(store, 1, 1)
    bucket = new_place.open()
    put(open_store(bucket), 2, 1)
    sent = bucket.client.requests.written_bytes
    assert sent < 4_000, "a head, a draft, a manifest"
    before = bucket.client.requests.to_dict()
    put(open_store(bucket), 2, 1)
    after = bucket.client.requests.to_dict()
    assert after["num_put"] - before["num_put"] == 1, "the draft alone"


@pytest.mark.parametrize("num_snapshots", [1, 40])
def test_a_listing_takes_as_many_requests_for_many_as_for_one(store, new_place, num_snapshots):
    for seed in range(num_snapshots):
        put(store, seed, 1, name=f"n{seed}")
    store.summaries()
    bucket = new_place.open()
    assert len(open_store(bucket).summaries()) == num_snapshots
    counts = bucket.client.requests.to_dict()
    assert {name: counts[name] for name in ("num_get", "num_head", "num_list", "num_put", "num_delete")} == {
        "num_get": 2, "num_head": 0, "num_list": 2, "num_put": 0, "num_delete": 0,
    }  # fmt: skip


def test_a_store_begins_only_where_nothing_else_is(new_place):
    new_place.open().client.put("holiday.jpg", b"x")
    with pytest.raises(StoreError, match=r"found other objects without store.json, such as holiday.jpg"):
        open_store(new_place.open(), create=True)
    with pytest.raises(StoreError, match="expected a model store, found nothing there"):
        open_store(in_memory().open())


def test_a_condition_that_fails_is_no_error_of_the_store():
    client = in_memory().connect()
    client.put_if("a", b"1", None, "w")
    with pytest.raises(ConditionFailed):
        client.put_if("a", b"2", None, "w")
    with pytest.raises(ConditionFailed):
        client.put_if("a", b"2", "another", "w")
    assert client.get("a", 100).content == b"1"


def test_a_removal_reads_no_name_that_the_index_knows(store, new_place):
    gone = put(store, 1, name="gone").manifest.id
    put(store, 2)
    for number in range(10):
        store.set_ref(f"kept-{number}", id_of(make_blocks(2)))
    store.summaries()
    store.set_ref("gone-too", gone)
    bucket = new_place.open()
    before = bucket.client.requests.num_get
    open_store(bucket).remove_snapshots([gone])
    assert bucket.client.requests.num_get - before == len(["store.json", "index", "gone-too", "gone", "gone-too"])
    assert list(open_store(new_place.open()).refs()) == [f"kept-{number}" for number in range(10)]


@pytest.mark.parametrize("moment", ["resolve", "remove"])
def test_a_name_that_moves_to_what_is_removed_goes_too(store, new_place, monkeypatch, moment):
    gone = put(store, 1, name="gone").manifest.id
    kept = put(store, 2, name="moves").manifest.id
    store.summaries()
    bucket, other = new_place.open(), open_store(new_place.open())
    act = bucket.remove if moment == "remove" else bucket.hold_names

    def move_first(*args):
        monkeypatch.undo()
        other.set_ref("moves", gone, expected=kept)
        return act(*args)

    monkeypatch.setattr(bucket, act.__name__, move_first)
    open_store(bucket).remove_snapshots([gone])
    assert open_store(new_place.open()).refs() == {}


def test_a_writer_that_waits_for_a_gc_asks_less_and_less(store, new_place, monkeypatch):
    digest = put(store, 1).manifest.blocks[0].digest
    bucket, naps = new_place.open(), []
    monkeypatch.setattr(bucket.clock, "sleep", lambda nap_s: naps.append(nap_s) or new_place.pass_time(nap_s))
    with bucket.condemn([one for one in bucket.objects() if one.name == digest]):
        bucket.await_verdicts({digest})
    bounds = bucket.bounds
    assert naps == sorted(naps) and (naps[0], naps[-1]) == (bounds.poll_s, bounds.max_poll_s)
    assert sum(naps) > bounds.delete_s + bounds.request_s
