"""Mistakes that a store in a bucket could have: each is planted, and the law that must find it fails."""

from collections.abc import Callable
from typing import Any

import pytest

from raysnap.errors import RaysnapError
from raysnap.store import catalog, garbage, index
from raysnap.store import store as store_module
from raysnap.store.backends import bucket
from raysnap.store.backends.bucket import Bucket
from raysnap.store.backends.client import Client, ConditionFailed
from raysnap.store.backends.place import object_key
from raysnap.store.store import BlockWrite, Store
from raysnap.testing.places import open_store
from raysnap.testing.store_laws import FAR_S, StoreLaws
from tests.support.places import in_memory

Plant = Callable[[pytest.MonkeyPatch], None]


def existence_by_index(patch: pytest.MonkeyPatch) -> None:
    known: set[str] = set()
    ask = Bucket.has_object

    def has_object(self, digest, num_bytes):
        known.update(entry.name for entry in self.objects()) if not known else None
        return digest in known or ask(self, digest, num_bytes)

    patch.setattr(Bucket, "has_object", has_object)


def manifest_before_its_blocks(patch: pytest.MonkeyPatch) -> None:
    put, late = Store.put_block, []

    def put_late(self, tensors):
        late.append((self, tensors))
        written = put(open_store(in_memory().open(), create=True), tensors)
        return BlockWrite(written.digest, written.num_bytes, True)

    publish = store_module.publish_manifest

    def publish_first(*args):
        try:
            return publish(*args)
        finally:
            for store, tensors in late:
                put(store, tensors)

    patch.setattr(Store, "put_block", put_late)
    patch.setattr(bucket._Draft, "missing", lambda self, needed: [])
    patch.setattr(store_module, "publish_manifest", publish_first)


def a_retry_that_hides_a_lost_name(patch: pytest.MonkeyPatch) -> None:
    swap = Bucket.swap
    patch.setattr(Bucket, "swap", lambda self, *args: swap(self, *args) or True)


def swaps_without_a_condition(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Client, "put_if", lambda self, key, content, *_: self.put(key, content))


def creates_without_a_condition(patch: pytest.MonkeyPatch) -> None:
    put_if = Client.put_if

    def without(self, key, content, e_tag, *rest):
        return self.put(key, content) if e_tag is None else put_if(self, key, content, e_tag, *rest)

    patch.setattr(Client, "put_if", without)


def a_sweep_without_grace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(garbage, "_is_old", lambda entry, newest_ns: True)


def an_upload_that_ends_on_an_exception(patch: pytest.MonkeyPatch) -> None:
    def put_object(self, digest, chunks):
        sent = b""
        try:
            for chunk in chunks:
                sent += bytes(chunk)
        finally:
            self.client.put(object_key(digest), sent)

    patch.setattr(Bucket, "put_object", put_object)


def writers_that_wait_for_no_gc(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Bucket, "await_verdicts", lambda self, digests: None)


def a_gc_that_heeds_no_draft(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Bucket, "drafts", lambda self: [])


def a_gc_that_sweeps_drafts_in_use(patch: pytest.MonkeyPatch) -> None:
    def sweep(self, newest_ns):
        self.client.delete(self.drafts())
        return 0

    patch.setattr(Bucket, "sweep", sweep)


def a_gc_that_deletes_however_late(patch: pytest.MonkeyPatch) -> None:
    def delete(self, digests):
        self._bucket.client.delete([object_key(digest) for digest in digests])
        return list(digests)

    patch.setattr(bucket._Doomed, "delete", delete)


def a_writer_that_never_looks_at_its_draft_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bucket._Draft, "publish", lambda self, key, seen: self._bucket.swap(key, seen, self._content))


def a_gc_that_scans_once(patch: pytest.MonkeyPatch) -> None:
    scan = garbage.Reached.scan
    patch.setattr(garbage.Reached, "scan", lambda self: None if self._seen else scan(self))


def a_gc_that_leaves_its_list(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bucket._Doomed, "end", lambda self: None)
    patch.setattr(Bucket, "_may_delete", lambda self, found, digests, harmless: False)
    patch.setattr(Bucket, "sweep", lambda self, newest_ns: 0)


def objects_read_unverified(patch: pytest.MonkeyPatch) -> None:
    def fetch(self, digest, allocate, on_piece):
        content, _ = self.client.get_part(object_key(digest), 0, 2**24)
        return memoryview(bytearray(content))

    patch.setattr(Bucket, "_fetch", fetch)


def existence_whatever_the_length(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Bucket, "has_object", lambda self, digest, _: self.client.head(object_key(digest)) is not None)


def an_index_that_is_believed(patch: pytest.MonkeyPatch) -> None:
    update = index._update

    def update_once(connection, place):
        has_rows = connection.execute("SELECT 1 FROM snapshots").fetchone() is not None
        return False if has_rows else update(connection, place)

    patch.setattr(index, "_update", update_once)


def names_without_a_second_look(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        catalog,
        "_refer",
        lambda place, name, snapshot, seen: place.swap(catalog.ref_key(name), seen, f"{snapshot}\n".encode()),
    )


MISTAKES: list[tuple[Plant, str, dict[str, Any]]] = [
    (existence_by_index, "test_a_block_that_went_missing_is_written_again", {}),
    (manifest_before_its_blocks, "test_no_snapshot_is_visible_before_all_its_blocks_are", {}),
    (a_retry_that_hides_a_lost_name, "test_what_was_seen_before_a_swap_swaps_nothing", {}),
    (swaps_without_a_condition, "test_what_was_seen_before_a_swap_swaps_nothing", {}),
    (creates_without_a_condition, "test_a_document_is_created_once", {}),
    (a_sweep_without_grace, "test_gc_keeps_what_is_younger_than_the_grace", {}),
    (an_upload_that_ends_on_an_exception, "test_an_object_whose_bytes_end_in_an_error_is_not_stored", {}),
    (writers_that_wait_for_no_gc, "test_a_writer_at_any_operation_of_a_gc_loses_nothing", {}),
    (a_gc_that_heeds_no_draft, "test_gc_at_any_operation_of_a_writer_loses_nothing", {}),
    (a_gc_that_sweeps_drafts_in_use, "test_gc_at_any_operation_of_a_writer_loses_nothing", {}),
    (a_gc_that_deletes_however_late, "test_a_slow_gc_takes_nothing_from_writers", {}),
    (a_writer_that_never_looks_at_its_draft_again, "test_a_slow_writer_loses_nothing_to_gc", {"delay_s": FAR_S}),
    (a_gc_that_scans_once, "test_a_writer_at_any_operation_of_a_gc_loses_nothing", {}),
    (a_gc_that_leaves_its_list, "test_gc_deletes_what_nothing_needs_and_keeps_the_rest", {}),
    (objects_read_unverified, "test_a_damaged_block_is_found_and_never_returned", {"damage": "flipped"}),
    (existence_whatever_the_length, "test_a_block_cut_short_is_mended_by_putting_it_again", {}),
    (an_index_that_is_believed, "test_an_index_that_is_damaged_or_old_decides_nothing", {}),
    (names_without_a_second_look, "test_a_name_given_while_its_snapshot_goes_is_no_damage", {}),
]


@pytest.mark.parametrize(("plant", "law", "given"), MISTAKES, ids=[plant.__name__ for plant, *_ in MISTAKES])
def test_a_planted_mistake_breaks_its_law(monkeypatch, plant, law, given):
    new_place = in_memory()
    store = open_store(new_place.open(), create=True)
    offered = {"make_place": in_memory, "new_place": new_place, "store": store} | given
    function = getattr(StoreLaws, law)
    wanted = function.__code__.co_varnames[1 : function.__code__.co_argcount]
    plant(monkeypatch)
    with pytest.raises((AssertionError, RaysnapError, ConditionFailed, pytest.fail.Exception)):
        function(StoreLaws(), **{name: offered[name] for name in wanted})
