"""Any sequence of commands on a store, kills among them, checked against what two dicts would hold.

`run_store_machine` is the last of the laws; it is apart from the others as it needs hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from raysnap.errors import SnapshotNotFound, StoreError
from raysnap.models.tensor_bytes import block_digest
from raysnap.store.catalog import ABSENT
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, id_of, make_blocks, put, read
from raysnap.testing.places import Killed, NewPlace, killed_at, open_store, watched

SEEDS = range(4)
IDS = {seed: id_of(make_blocks(seed, 1)) for seed in SEEDS}
SEED_OF = {snapshot: seed for seed, snapshot in IDS.items()}
DIGESTS = {seed: {block_digest(tensors) for _, tensors in make_blocks(seed, 1)} for seed in SEEDS}
LONG_S = 100_000.0

seeds = st.sampled_from(SEEDS)
names = st.sampled_from(["a", "b"])
steps = st.integers(1, 30)


class StoreMachine(RuleBasedStateMachine):
    """A store and its model: the ids of its snapshots, and what each name refers to."""

    make_place: ClassVar[Callable[[], NewPlace]]

    def __init__(self) -> None:
        super().__init__()
        self.new_place = type(self).make_place()
        self.store = open_store(self.new_place.open(), create=True)
        self.snapshots: set[str] = set()
        self.names: dict[str, str] = {}

    def teardown(self) -> None:
        self.new_place.pass_time(LONG_S)
        self.store.gc(grace_s=0)
        assert self.store.verify()["ok"]
        assert {entry.name for entry in self.new_place.open().objects()} == self._needed()
        assert self.new_place.open().names("tmp") == []

    def _needed(self) -> set[str]:
        return {digest for snapshot in self.snapshots for digest in DIGESTS[SEED_OF[snapshot]]}

    @rule(seed=seeds, name=st.none() | names)
    def put(self, seed: int, name: str | None) -> None:
        written = put(self.store, seed, 1, name=name)
        assert written.is_new == (IDS[seed] not in self.snapshots)
        self.snapshots.add(IDS[seed])
        if name is not None:
            self.names[name] = IDS[seed]

    @rule(seed=seeds)
    def put_a_block(self, seed: int) -> None:
        self.store.put_block(make_blocks(seed, 1)[-1][1])

    @rule(seed=seeds, name=names)
    def name(self, seed: int, name: str) -> None:
        if IDS[seed] not in self.snapshots:
            with pytest.raises(SnapshotNotFound):
                self.store.set_ref(name, IDS[seed])
            return
        self.store.set_ref(name, IDS[seed], expected=self.names.get(name, ABSENT))
        self.names[name] = IDS[seed]

    @rule(seed=seeds, name=names, wrong=seeds)
    def name_from_a_wrong_state(self, seed: int, name: str, wrong: int) -> None:
        if IDS[seed] in self.snapshots and self.names.get(name) != IDS[wrong]:
            with pytest.raises(StoreError, match="nothing is changed"):
                self.store.set_ref(name, IDS[seed], expected=IDS[wrong])

    @rule(name=names)
    def take_a_name_away(self, name: str) -> None:
        if name not in self.names:
            with pytest.raises(SnapshotNotFound):
                self.store.remove_ref(name)
            return
        self.store.remove_ref(name)
        del self.names[name]

    @rule(seed=seeds)
    def remove(self, seed: int) -> None:
        if IDS[seed] in self.snapshots:
            self.store.remove_snapshot(IDS[seed])
            self._forget(IDS[seed])

    def _forget(self, snapshot: str) -> None:
        self.snapshots.discard(snapshot)
        self.names = {name: one for name, one in self.names.items() if one != snapshot}

    @rule()
    def collect(self) -> None:
        self.store.gc(grace_s=0)
        assert {entry.name for entry in self.new_place.open().objects()} >= self._needed()

    @rule()
    def collect_what_is_old(self) -> None:
        assert self.store.gc(grace_s=1e8)["num_blocks_deleted"] == 0

    @rule()
    def open_again_later(self) -> None:
        self.new_place.pass_time(LONG_S)
        self.store = open_store(self.new_place.open())

    @rule(seed=seeds, name=names, step=steps)
    def put_and_be_killed(self, seed: int, name: str, step: int) -> None:
        before = dict(self.names)
        self._be_killed(step, lambda store: put(store, seed, 1, name=name))
        assert (
            self._found(self.snapshots, before)
            or self._found(self.snapshots | {IDS[seed]}, before)
            or self._found(self.snapshots | {IDS[seed]}, before | {name: IDS[seed]})
        )
        self._take_over()

    @rule(seed=seeds, step=steps)
    def remove_and_be_killed(self, seed: int, step: int) -> None:
        if IDS[seed] not in self.snapshots:
            return
        others = {name: one for name, one in self.names.items() if one != IDS[seed]}
        self._be_killed(step, lambda store: store.remove_snapshot(IDS[seed]))
        found = self.store.refs()
        assert others.items() <= found.items() <= self.names.items()
        assert self._found(self.snapshots, found) or self._found(self.snapshots - {IDS[seed]}, others)
        self._take_over()

    @rule(step=steps)
    def collect_and_be_killed(self, step: int) -> None:
        self._be_killed(step, lambda store: store.gc(grace_s=0))

    def _be_killed(self, step: int, act: Callable[[Store], object]) -> None:
        with suppress(Killed):
            act(open_store(watched(self.new_place.open(), killed_at(step))))
        self.store = open_store(self.new_place.open())
        assert self.store.verify()["ok"]

    def _found(self, snapshots: set[str], found_names: dict[str, str]) -> bool:
        listed = {summary.id for summary in self.store.summaries()}
        return listed == snapshots and self.store.refs() == found_names

    def _take_over(self) -> None:
        self.snapshots = {summary.id for summary in self.store.summaries()}
        self.names = self.store.refs()

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        assert self._found(self.snapshots, self.names)
        for snapshot in self.snapshots:
            assert equal(read(self.store, snapshot), make_blocks(SEED_OF[snapshot], 1))


def run_store_machine(
    make_place: Callable[[], NewPlace], num_runs: int, num_steps: int, *, derandomize: bool = True
) -> None:
    """Run commands in any order on new places, and check each time that the store holds what it was told.

    Args:
        make_place: makes an empty place.
        num_runs: how many orders are tried.
        num_steps: how many commands are in each at most.
        derandomize: whether they are the same ones each time; hypothesis' own seed chooses them otherwise.
    """
    machine: Any = type("Machine", (StoreMachine,), {"make_place": staticmethod(make_place)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=num_runs,
            stateful_step_count=num_steps,
            derandomize=derandomize,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
