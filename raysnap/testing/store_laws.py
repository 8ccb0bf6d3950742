"""The laws of a store as tests, which any place passes that a store can be kept in.

Subclass `StoreLaws` in a test module and say in the fixture `make_place` how empty places are made; pytest runs the
laws. A law uses a place through what `Place` says and nothing else, so it holds for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeAlias, cast

import pytest
import torch
from blake3 import blake3

from raysnap.errors import BlockDamaged, SnapshotNotFound, StoreDamaged, StoreError
from raysnap.store.backends.place import object_key
from raysnap.store.catalog import ABSENT, manifest_key, ref_key
from raysnap.store.store import Store
from raysnap.testing.blocks import Blocks, equal, id_of, make_blocks, put, read
from raysnap.testing.places import Killed, NewPlace, Operation, count_operations, killed_at, open_store, watched

Contents: TypeAlias = tuple[dict[str, bool], dict[str, str]]
MakePlace: TypeAlias = Callable[[], NewPlace]

FAR_S = 100_000.0
"""More than anything that a place waits for."""

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "cut": lambda raw: raw[:-1],
    "longer": lambda raw: raw + b"\0",
    "empty": lambda raw: b"",
}

WRITES: dict[str, Callable[[Store], object]] = {
    "put": lambda store: put(store, 1, 1),
    "put and name": lambda store: put(store, 2, 2, name="best"),
    "move a name": lambda store: store.set_ref("best", id_of(make_blocks(3)), expected=id_of(make_blocks(0))),
    "remove": lambda store: store.remove_snapshot(id_of(make_blocks(3))),
    "collect": lambda store: store.gc(grace_s=0),
}
"""What may be done to the store of `filled`."""


class StoreLaws:
    """The laws; `new_place` is for a subclass to give.

    Attributes:
        every: of long rows of moments, try every n-th; more than 1 for places that are slow.
    """

    every = 1
    num_writers = 8
    num_commits = 5

    @pytest.fixture
    def make_place(self) -> MakePlace:
        """Return what makes empty places."""
        raise NotImplementedError("a subclass says how empty places are made")

    @pytest.fixture
    def new_place(self, make_place: MakePlace) -> NewPlace:
        """Return a place with an empty store."""
        new_place = make_place()
        open_store(new_place.open(), create=True)
        return new_place

    @pytest.fixture
    def store(self, new_place: NewPlace) -> Store:
        """Return the empty store in the place."""
        return open_store(new_place.open())

    # One process

    def test_what_is_put_comes_back_bit_for_bit(self, store: Store, new_place: NewPlace) -> None:
        put(store, name="mine")
        assert equal(read(open_store(new_place.open()), "mine"), make_blocks())

    def test_a_block_that_two_snapshots_share_is_stored_once(self, store: Store) -> None:
        assert (put(store, 1, 1).new_blocks, put(store, 2, 1).new_blocks) == (3, 1)
        assert store.stats()["num_blocks"] == 4

    def test_putting_a_snapshot_again_changes_nothing(self, store: Store, new_place: NewPlace) -> None:
        first, again = put(store), put(open_store(new_place.open()))
        assert (again.is_new, again.new_blocks, again.manifest) == (False, 0, first.manifest)

    def test_a_block_that_went_missing_is_written_again(self, store: Store, new_place: NewPlace) -> None:
        digest = put(store).manifest.blocks[0].digest
        store.summaries()
        new_place.open().remove(object_key(digest))
        assert put(store).new_blocks == 1
        assert store.verify()["ok"]

    def test_a_large_block_comes_back_bit_for_bit(self, store: Store) -> None:
        tensors = {"weight": torch.arange(5 * 2**20, dtype=torch.int32)}
        assert torch.equal(store.read_block(store.put_block(tensors).digest)["weight"], tensors["weight"])

    def test_names_are_listed_moved_and_removed(self, store: Store) -> None:
        first, second = put(store, 1).manifest.id, put(store, 2).manifest.id
        store.set_ref("best", first, expected=ABSENT)
        store.set_ref("best", second, expected=first)
        assert store.refs() == {"best": second} and store.resolve("best") == second
        store.remove_ref("best", expected=second)
        assert store.refs() == {}
        with pytest.raises(SnapshotNotFound):
            store.resolve("best")
        store.set_ref("best", first, expected=ABSENT)
        assert store.refs() == {"best": first}

    def test_a_name_moves_only_from_what_is_expected(self, store: Store) -> None:
        first, second = put(store, 1).manifest.id, put(store, 2).manifest.id
        store.set_ref("best", first)
        with pytest.raises(StoreError, match="nothing is changed"):
            store.set_ref("best", second, expected=second)
        with pytest.raises(StoreError, match="nothing is changed"):
            store.remove_ref("best", expected=second)
        assert store.refs() == {"best": first}

    def test_a_removed_snapshot_is_gone_with_its_names(self, store: Store) -> None:
        snapshot = put(store, name="mine").manifest.id
        store.remove_snapshot("mine")
        assert (store.refs(), store.summaries()) == ({}, [])
        with pytest.raises(SnapshotNotFound):
            store.manifest(snapshot)

    def test_an_index_that_is_damaged_or_old_decides_nothing(self, store: Store, new_place: NewPlace) -> None:
        first = put(store, 1, name="best").manifest.id
        store.summaries()
        old = new_place.open().read("index.sqlite", 2**30)
        second = put(store, 2).manifest.id
        for content in (old, b"", old[:100], b"x" * 5000):
            new_place.open().write("index.sqlite", content)
            assert {one.id for one in store.summaries()} == {first, second}

    # The place

    def test_a_document_is_created_once(self, new_place: NewPlace) -> None:
        places = [new_place.open() for _ in range(self.num_writers)]
        with ThreadPoolExecutor(len(places)) as pool:
            for number in range(10):
                key = f"records/{number:064x}.json"
                done = pool.map(lambda place, key=key: place.create(key, f"{id(place)}".encode()), places)
                winners = [place for place, is_done in zip(places, done, strict=True) if is_done]
                assert [f"{id(place)}".encode() for place in winners] == [places[0].read(key, 1000)]

    def test_swaps_of_one_document_lose_none(self, new_place: NewPlace) -> None:
        def count_up(_: int) -> None:
            place, key = new_place.open(), "refs/counter"
            for _ in range(self.num_commits):
                while True:
                    with place.hold_names():
                        seen = place.look(key, 100)
                        number = int(seen.content) if seen else 0
                        if place.swap(key, seen, str(number + 1).encode()):
                            break

        with ThreadPoolExecutor(self.num_writers) as pool:
            list(pool.map(count_up, range(self.num_writers)))
        seen = new_place.open().look("refs/counter", 100)
        assert seen is not None and int(seen.content) == self.num_writers * self.num_commits

    def test_what_was_seen_before_a_swap_swaps_nothing(self, new_place: NewPlace) -> None:
        place = new_place.open()
        with place.hold_names():
            assert place.swap("refs/a", None, b"1")
            first = place.look("refs/a", 100)
            assert place.swap("refs/a", first, b"2")
            assert not place.swap("refs/a", first, b"3") and not place.swap("refs/a", None, b"3")
            seen = place.look("refs/a", 100)
            assert place.swap("refs/a", seen, b"")
            assert not place.swap("refs/a", seen, b"3")
        assert place.names("refs") == []

    def test_what_is_written_and_removed_is_listed_so(self, new_place: NewPlace) -> None:
        writer, other = new_place.open(), new_place.open()
        for number in range(5):
            writer.write(f"snapshots/{number:064x}.json", bytes(number + 1))
            found = {entry.name: entry.num_bytes for entry in other.entries("snapshots")}
            assert found == {f"{one:064x}.json": one + 1 for one in range(number + 1)}
            assert set(other.names("snapshots")) == found.keys()
        writer.remove(f"snapshots/{0:064x}.json")
        assert f"snapshots/{0:064x}.json" not in set(other.keys())
        with pytest.raises(FileNotFoundError):
            other.read(f"snapshots/{0:064x}.json", 100)

    def test_an_object_of_other_bytes_is_not_stored(self, new_place: NewPlace) -> None:
        with pytest.raises(StoreError, match="changed while"):
            new_place.open().put_object("0" * 64, [b"other", b"bytes"])
        assert list(new_place.open().objects()) == []

    def test_an_object_whose_bytes_end_in_an_error_is_not_stored(self, new_place: NewPlace) -> None:
        def chunks() -> Iterator[bytes]:
            yield b"half"
            raise OSError("the source failed")

        with pytest.raises((OSError, StoreError)):
            new_place.open().put_object(blake3(b"half").hexdigest(), cast(Any, chunks()))
        assert list(new_place.open().objects()) == []

    # Damage

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_block_is_found_and_never_returned(self, store: Store, new_place: NewPlace, damage: str) -> None:
        manifest = put(store, name="mine").manifest
        self._damage(new_place, object_key(manifest.blocks[1].digest), damage)
        with pytest.raises(BlockDamaged) as caught:
            read(open_store(new_place.open()), "mine")
        assert (caught.value.block, caught.value.snapshots) == (manifest.blocks[1].digest, (manifest.id,))
        report = store.verify()
        assert [(one["block"], one["snapshots"]) for one in report["damaged"]] == [
            (manifest.blocks[1].digest, [manifest.id])
        ]

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_manifest_is_found_and_stops_gc(self, store: Store, new_place: NewPlace, damage: str) -> None:
        snapshot = put(store, 1).manifest.id
        good = put(store, 2).manifest.id
        self._damage(new_place, manifest_key(snapshot), damage)
        with pytest.raises(StoreDamaged):
            store.manifest(snapshot)
        assert [summary.id for summary in open_store(new_place.open()).summaries()] == [good]
        assert [row["file"] for row in store.verify()["damaged_files"]] == [manifest_key(snapshot)]
        with pytest.raises(StoreDamaged, match="nothing is deleted"):
            store.gc(grace_s=0)
        assert put(store, 1).manifest.id == snapshot and store.verify()["ok"]

    def test_a_block_cut_short_is_mended_by_putting_it_again(self, store: Store, new_place: NewPlace) -> None:
        manifest = put(store).manifest
        self._damage(new_place, object_key(manifest.blocks[0].digest), "cut")
        assert put(store).new_blocks == 1
        assert store.verify()["ok"]

    def test_a_damaged_name_is_found_and_can_be_set_again(self, store: Store, new_place: NewPlace) -> None:
        snapshot = put(store, name="mine").manifest.id
        new_place.open().write(ref_key("mine"), b"nothing\n")
        with pytest.raises(StoreDamaged, match="set the name again"):
            store.resolve("mine")
        store.set_ref("mine", snapshot)
        assert store.resolve("mine") == snapshot

    @staticmethod
    def _damage(new_place: NewPlace, key: str, damage: str) -> None:
        place = new_place.open()
        place.write(key, DAMAGES[damage](place.read(key, 2**30)))

    # Half states and kills

    def test_no_snapshot_is_visible_before_all_its_blocks_are(self, store: Store, new_place: NewPlace) -> None:
        def look(_: Operation) -> None:
            other = open_store(new_place.open())
            for summary in other.summaries():
                read(other, summary.id)

        put(open_store(watched(new_place.open(), look)), name="mine")
        assert store.resolve("mine") == id_of(make_blocks())

    @pytest.mark.parametrize("act", WRITES)
    def test_a_kill_at_any_operation_leaves_old_or_new(self, make_place: MakePlace, act: str) -> None:
        counted = self.fill(make_place())
        self.contents(open_store(counted.open()))  # makes the index, as below
        num_operations = count_operations(counted.open(), WRITES[act])
        for step in range(1, num_operations + 1, self.every):
            new_place = self.fill(make_place())
            before = self.contents(open_store(new_place.open()))
            with pytest.raises(Killed):
                WRITES[act](open_store(watched(new_place.open(), killed_at(step))))
            store = open_store(new_place.open())
            assert store.verify()["ok"], (act, step)
            self.check_step(act, before, self.contents(store))
            if self.contents(store) == before:
                WRITES[act](store)
            self.check_clean(new_place)

    @staticmethod
    def check_step(act: str, before: Contents, found: Contents) -> None:
        """Check that what was killed did all it was to do, nothing, or a part that is whole by itself."""
        old, new = before, dict(before[0])
        names = dict(before[1])
        if act.startswith("put"):
            new[id_of(make_blocks(1, 1) if act == "put" else make_blocks(2, 2))] = True
        allowed = [old, (new, names)]
        if act == "put and name":
            allowed.append((new, names | {"best": id_of(make_blocks(2, 2))}))
        if act == "move a name":
            allowed.append((new, names | {"best": id_of(make_blocks(3))}))
        if act == "remove":
            allowed.append(({key: one for key, one in new.items() if key != id_of(make_blocks(3))}, names))
        assert found in allowed

    @staticmethod
    def contents(store: Store) -> Contents:
        return {summary.id: True for summary in store.summaries()}, store.refs()

    @staticmethod
    def fill(new_place: NewPlace) -> NewPlace:
        store = open_store(new_place.open(), create=True)
        put(store, 0, name="best")
        put(store, 3)
        for _, tensors in make_blocks(7):
            store.put_block(tensors)
        new_place.pass_time(FAR_S)
        return new_place

    @staticmethod
    def check_clean(new_place: NewPlace) -> None:
        """Check that a later `gc` leaves what snapshots need and nothing else."""
        new_place.pass_time(FAR_S)
        store = open_store(new_place.open())
        store.gc(grace_s=0)
        assert store.verify()["ok"]
        needed = {block.digest for manifest in store.manifests() for block in manifest.blocks}
        assert {entry.name for entry in new_place.open().objects()} == needed
        assert new_place.open().names("tmp") == []

    # Garbage

    def test_gc_deletes_what_nothing_needs_and_keeps_the_rest(self, make_place: MakePlace) -> None:
        filled = self.fill(make_place())
        store = open_store(filled.open())
        assert store.gc(grace_s=0)["num_blocks_deleted"] == 3
        store.remove_snapshot(id_of(make_blocks(3)))
        assert store.gc(grace_s=0)["num_blocks_deleted"] == 3
        assert equal(read(store, "best"), make_blocks())
        self.check_clean(filled)

    def test_gc_keeps_what_is_younger_than_the_grace(self, store: Store) -> None:
        store.put_block(make_blocks()[0][1])
        assert store.gc(grace_s=3600)["num_blocks_deleted"] == 0

    def test_gc_at_any_operation_of_a_writer_loses_nothing(self, make_place: MakePlace) -> None:
        """The blocks are there and needed by nothing when the writer begins, so that it relies on them."""
        num_operations = count_operations(self.fill(make_place()).open(), lambda store: put(store, 7))
        for step in range(1, num_operations + 1, self.every):
            new_place = self.fill(make_place())

            def collect(operation: Operation, step: int = step, new_place: NewPlace = new_place) -> None:
                if operation.number == step:
                    open_store(new_place.open()).gc(grace_s=0)
                if operation.number > step:
                    assert open_store(new_place.open()).verify()["ok"]

            put(open_store(watched(new_place.open(), collect)), 7, name="seven")
            assert equal(read(open_store(new_place.open()), "seven"), make_blocks(7)), step
            self.check_clean(new_place)

    def test_a_writer_at_any_operation_of_a_gc_loses_nothing(self, make_place: MakePlace) -> None:
        """The writer puts what this gc is about to delete; it may wait for the gc, which goes on meanwhile."""
        num_operations = count_operations(self.fill(make_place()).open(), lambda store: store.gc(grace_s=0))
        for step in range(1, num_operations + 1, self.every):
            new_place, beside = self.fill(make_place()), Beside()

            def write(operation: Operation, step: int = step, new_place: NewPlace = new_place) -> None:
                if operation.number == step:
                    beside.do(lambda: put(open_store(new_place.open()), 7, name="seven"))  # noqa: B023

            open_store(watched(new_place.open(), write)).gc(grace_s=0)
            beside.join()
            assert equal(read(open_store(new_place.open()), "seven"), make_blocks(7)), step
            self.check_clean(new_place)

    @pytest.mark.parametrize("delay_s", [0.0, FAR_S])
    def test_a_slow_writer_loses_nothing_to_gc(self, make_place: MakePlace, delay_s: float) -> None:
        """It stands still before an operation, for longer than anything waits, and a gc begins and ends meanwhile."""
        self._with_a_slow(make_place, lambda store: put(store, 7, name="seven"), lambda store: store.gc(0), delay_s)

    def test_a_slow_gc_takes_nothing_from_writers(self, make_place: MakePlace) -> None:
        """It stands still before an operation, longer than writers wait for it, and a writer comes and goes."""
        self._with_a_slow(make_place, lambda store: store.gc(0), lambda store: put(store, 7, name="seven"), FAR_S)

    def _with_a_slow(
        self, make_place: MakePlace, slow: Callable[[Store], Any], quick: Callable[[Store], Any], delay_s: float
    ) -> None:
        num_operations = count_operations(self.fill(make_place()).open(), slow)
        for step in range(1, num_operations + 1, self.every):
            new_place = self.fill(make_place())

            def stand_still(operation: Operation, step: int = step, new_place: NewPlace = new_place) -> None:
                if operation.number == step:
                    new_place.pass_time(delay_s)
                    quick(open_store(new_place.open()))

            slow(open_store(watched(new_place.open(), stand_still)))
            assert equal(read(open_store(new_place.open()), "seven"), make_blocks(7)), step
            self.check_clean(new_place)

    # Many processes

    def test_many_writers_lose_no_commit_and_store_blocks_once(self, store: Store, new_place: NewPlace) -> None:
        def work(worker: int) -> None:
            own = open_store(new_place.open())
            for number in range(self.num_commits):
                put(own, 100 * worker + number, 1, name=f"w{worker}-{number}")

        with ThreadPoolExecutor(self.num_writers) as pool:
            list(pool.map(work, range(self.num_writers)))
        num_commits = self.num_writers * self.num_commits
        assert len(store.refs()) == len(store.summaries()) == num_commits
        assert store.stats()["num_blocks"] == 2 + num_commits
        assert store.verify()["ok"]

    def test_writers_of_one_snapshot_all_find_it_stored(self, store: Store, new_place: NewPlace) -> None:
        stores = [open_store(new_place.open()) for _ in range(self.num_writers)]
        for seed in range(self.num_commits):
            with ThreadPoolExecutor(len(stores)) as pool:
                written = list(pool.map(lambda one, seed=seed: put(one, seed, name=f"n{seed}"), stores))
            assert {one.manifest.id for one in written} == {store.resolve(f"n{seed}")}
            assert any(one.is_new for one in written)
            assert equal(read(store, f"n{seed}"), make_blocks(seed))

    def test_a_name_given_while_its_snapshot_goes_is_no_damage(self, make_place: MakePlace) -> None:
        num_operations = count_operations(
            self.fill(make_place()).open(), lambda store: store.set_ref("three", id_of(make_blocks(3)))
        )
        for step in range(1, num_operations + 1, self.every):
            new_place, beside = self.fill(make_place()), Beside()

            def remove(operation: Operation, step: int = step, new_place: NewPlace = new_place) -> None:
                if operation.number == step and operation.name != "hold_names":
                    beside.do(lambda: open_store(new_place.open()).remove_snapshot(id_of(make_blocks(3))))  # noqa: B023

            with suppress(SnapshotNotFound):
                open_store(watched(new_place.open(), remove)).set_ref("three", id_of(make_blocks(3)))
            beside.join()
            assert open_store(new_place.open()).verify()["ok"], step

    def test_a_snapshot_that_goes_while_it_is_named_leaves_no_name(self, make_place: MakePlace) -> None:
        snapshot = id_of(make_blocks(3))
        num_operations = count_operations(self.fill(make_place()).open(), lambda store: store.remove_snapshot(snapshot))
        for step in range(1, num_operations + 1, self.every):
            new_place, beside = self.fill(make_place()), Beside()

            def give(new_place: NewPlace = new_place) -> None:
                with suppress(SnapshotNotFound):
                    open_store(new_place.open()).set_ref("three", snapshot)

            def name(operation: Operation, step: int = step) -> None:
                if operation.number == step and operation.name != "hold_names":
                    beside.do(give)  # noqa: B023

            open_store(watched(new_place.open(), name)).remove_snapshot(snapshot)
            beside.join()
            store = open_store(new_place.open())
            assert store.verify()["ok"] and store.refs() == {"best": id_of(make_blocks(0))}, step

    def test_writers_and_collectors_lose_nothing(self, store: Store, new_place: NewPlace) -> None:
        """Writers put and remove snapshots that share blocks while two collectors run without a grace."""
        stop = threading.Event()

        def collect() -> None:
            own = open_store(new_place.open())
            while not stop.is_set():
                own.gc(grace_s=0)

        def write(worker: int) -> dict[str, Blocks]:
            own, kept = open_store(new_place.open()), dict[str, Blocks]()
            for number in range(2 * self.num_commits):
                seed = 100 * worker + number
                snapshot = _put_beside_gc(own, seed)
                kept[snapshot] = make_blocks(seed, 1)
                if number % 2:
                    own.remove_snapshot(snapshot)
                    del kept[snapshot]
            return kept

        with ThreadPoolExecutor(self.num_writers + 2) as pool:
            collectors = [pool.submit(collect) for _ in range(2)]
            try:
                written = [one.result() for one in [pool.submit(write, worker) for worker in range(self.num_writers)]]
            finally:
                stop.set()
            for collector in collectors:
                collector.result()
        for kept in written:
            for snapshot, blocks in kept.items():
                assert equal(read(store, snapshot), blocks)
        assert store.verify()["ok"]
        self.check_clean(new_place)


class Beside:
    """What is done beside the process under test, which it may have to wait for."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def do(self, act: Callable[[], object]) -> None:
        """Do something in another thread, and wait for it a moment."""
        self._threads.append(threading.Thread(target=act))
        self._threads[-1].start()
        self._threads[-1].join(0.3)

    def join(self) -> None:
        """Wait until all is done."""
        for thread in self._threads:
            thread.join()


def _put_beside_gc(store: Store, seed: int) -> str:
    """Put a snapshot; where collectors without a grace leave a writer no time, it is told to try again."""
    while True:
        try:
            return put(store, seed, 1).manifest.id
        except StoreError as error:
            if "a gc removed it" not in str(error):
                raise
