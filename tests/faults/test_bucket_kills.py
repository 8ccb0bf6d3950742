"""A process that uses a bucket is killed at each of its requests, before it is made or after it was done."""

import threading

import pytest

from raysnap.store.backends.client import Client
from raysnap.testing.blocks import equal, id_of, make_blocks, put, read
from raysnap.testing.places import Killed, open_store
from raysnap.testing.store_laws import FAR_S, WRITES, StoreLaws
from tests.support.places import NewBucket, in_memory

pytestmark = pytest.mark.slow

REQUESTS = ("get", "get_part", "head", "list_below", "list_top", "put", "put_if", "delete")


class Mortal(Client):
    """A client whose process dies at one of its requests."""

    def __init__(self, client: Client, step: int = 0, *, is_done: bool = False):
        self.__dict__.update(client.__dict__)
        self.num_requests, self.step, self.is_done, self.is_dead = 0, step, is_done, False
        self.lock = threading.Lock()
        for name in REQUESTS:
            setattr(self, name, self._mortal(getattr(super(), name)))

    def _mortal(self, request):
        def made(*args):
            with self.lock:
                if self.is_dead:
                    raise Killed
                self.num_requests += 1
                self.is_dead = self.num_requests == self.step
                if self.is_dead and not self.is_done:
                    raise Killed
            result = request(*args)
            if self.is_dead:
                raise Killed
            return result

        return made


def place_of(client: Client, new_place: NewBucket):
    bucket = new_place.open()
    bucket.client = client
    return bucket


def filled() -> NewBucket:
    return StoreLaws.fill(in_memory())


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("act", WRITES)
def test_a_kill_at_any_request_leaves_old_or_new(act, is_done):
    new_place = filled()
    StoreLaws.contents(open_store(new_place.open()))  # makes the index, as below
    whole = Mortal(new_place.open().client)
    WRITES[act](open_store(place_of(whole, new_place)))
    assert whole.num_requests > 3
    for step in range(1, whole.num_requests + 1):
        new_place = filled()
        before = StoreLaws.contents(open_store(new_place.open()))
        with pytest.raises(Killed):
            WRITES[act](open_store(place_of(Mortal(new_place.open().client, step, is_done=is_done), new_place)))
        store = open_store(new_place.open())
        assert store.verify()["ok"], step
        StoreLaws.check_step(act, before, StoreLaws.contents(store))
        assert equal(read(store, id_of(make_blocks(0))), make_blocks(0))
        new_place.pass_time(FAR_S)
        put(store, 5, name="later")
        StoreLaws.check_clean(new_place)
