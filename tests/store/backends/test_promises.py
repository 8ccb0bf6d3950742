"""A bucket that doesn't keep what a store needs is refused before there is a store in it."""

import pytest

from raysnap.errors import StoreError
from raysnap.store.backends.client import Answer, Client
from raysnap.store.backends.promises import try_promises
from raysnap.testing.places import open_store
from tests.support.places import in_memory


def ignore_conditions(patch) -> None:
    patch.setattr(Client, "put_if", lambda self, key, content, *_: self.put(key, content))


def ignore_matches(patch) -> None:
    put_if = Client.put_if
    patch.setattr(Client, "put_if", lambda self, key, content, e_tag, write, writes=(): (
        self.put(key, content) if e_tag else put_if(self, key, content, e_tag, write, writes)
    ))  # fmt: skip


def drop_metadata(patch) -> None:
    get = Client.get
    patch.setattr(Client, "get", lambda self, *args: Answer(*get(self, *args)[:2], ()))


def list_late(patch) -> None:
    patch.setattr(Client, "list_below", lambda self, prefix: [])


def send_whole_objects(patch) -> None:
    get_part = Client.get_part
    patch.setattr(Client, "get_part", lambda self, key, start, num_bytes: get_part(self, key, 0, 100))


BROKEN = {
    ignore_conditions: "creates once",
    ignore_matches: "swaps once",
    drop_metadata: "keeps ids of swaps",
    list_late: "lists what was written",
    send_whole_objects: "reads parts",
}


def test_a_bucket_that_keeps_all_is_left_as_it_was():
    client = in_memory().connect()
    assert [promise.fault for promise in try_promises(client)] == [None] * 5
    assert client.list_below("") == []


@pytest.mark.parametrize("breaks", BROKEN, ids=[one.__name__ for one in BROKEN])
def test_a_broken_promise_is_found_and_no_store_begins_there(monkeypatch, breaks):
    new_place = in_memory()
    breaks(monkeypatch)
    with pytest.raises(StoreError, match=f"{BROKEN[breaks]}.*A store there would lose data"):
        open_store(new_place.open(), create=True)
    monkeypatch.undo()
    assert new_place.open().client.list_below("") == []
