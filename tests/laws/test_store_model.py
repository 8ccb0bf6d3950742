"""Any sequence of commands, kills among them, leaves a store that holds what a dict would hold.

Row 10 of the fault table.
"""

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from raysnap.errors import SnapshotNotFound, StoreError
from raysnap.models.tensor_bytes import block_digest
from raysnap.store.catalog import ABSENT
from raysnap.store.manifest import snapshot_id
from raysnap.store.store import Store
from raysnap.testing.blocks import make_blocks
from tests.support.store_disk import Disk, Killed, killed_at
from tests.support.store_laws import COUNTS, IS_DEEP, World, check_clean, copy, disk_folder, few_shards, read_world

SEEDS = range(5)
BLOCKS = {seed: make_blocks(seed, 1) for seed in SEEDS}
DIGESTS = {seed: [(name, block_digest(tensors)) for name, tensors in blocks] for seed, blocks in BLOCKS.items()}
IDS = {seed: snapshot_id("resnet18", digests) for seed, digests in DIGESTS.items()}
KNOWN = {IDS[seed]: BLOCKS[seed] for seed in SEEDS}
NEEDS = {IDS[seed]: {digest for _, digest in digests} for seed, digests in DIGESTS.items()}

seeds = st.sampled_from(SEEDS)
names = st.sampled_from(["a", "b", "c"])
KILLS = st.integers(1, 45)


class StoreMachine(RuleBasedStateMachine):
    """A store and its model: a `World`, and the digests of the blocks that lie in objects."""

    folder: ClassVar[Path]
    numbers: ClassVar = count()

    def __init__(self):
        super().__init__()
        self.path = copy(self.folder / "template", self.folder / f"store-{next(self.numbers)}")
        self.store = Store.open(self.path)
        self.world = World()
        self.objects: set[str] = set()

    def teardown(self) -> None:
        assert self.store.verify()["ok"]
        assert read_world(self.path, KNOWN) == self.world
        check_clean(self.path)
        shutil.rmtree(self.path)

    @rule(seed=seeds, name=st.none() | names)
    def put(self, seed: int, name: str | None) -> None:
        written = self._put(seed, name)
        expected = {digest for _, digest in DIGESTS[seed]} - self.objects
        assert written.is_new == (IDS[seed] not in self.world.snapshots)
        assert written.new_blocks == len(expected)
        self.objects |= expected
        self.world = self.world.plus(IDS[seed], BLOCKS[seed])
        if name is not None:
            self.world = self.world.named(name, IDS[seed])

    def _put(self, seed: int, name: str | None):
        return self.store.put_snapshot(architecture="resnet18", blocks=BLOCKS[seed], num_classes=4, name=name)

    @rule(seed=seeds)
    def put_a_block(self, seed: int) -> None:
        written = self.store.put_block(BLOCKS[seed][-1][1])
        assert written.is_new == (written.digest not in self.objects)
        self.objects.add(written.digest)

    @rule(seed=seeds, name=names)
    def name(self, seed: int, name: str) -> None:
        if IDS[seed] not in self.world.snapshots:
            with pytest.raises(SnapshotNotFound):
                self.store.set_ref(name, IDS[seed])
            return
        self.store.set_ref(name, IDS[seed], expected=self.world.names.get(name, ABSENT))
        self.world = self.world.named(name, IDS[seed])

    @rule(seed=seeds, name=names, wrong=seeds)
    def name_from_a_wrong_state(self, seed: int, name: str, wrong: int) -> None:
        if IDS[seed] in self.world.snapshots and self.world.names.get(name) != IDS[wrong]:
            with pytest.raises(StoreError, match="nothing is changed"):
                self.store.set_ref(name, IDS[seed], expected=IDS[wrong])

    @rule(name=names)
    def take_a_name_away(self, name: str) -> None:
        if name not in self.world.names:
            with pytest.raises(SnapshotNotFound):
                self.store.remove_ref(name)
            return
        self.store.remove_ref(name)
        self.world = World(self.world.snapshots, {key: one for key, one in self.world.names.items() if key != name})

    @rule(seed=seeds)
    def remove(self, seed: int) -> None:
        if IDS[seed] not in self.world.snapshots:
            with pytest.raises(SnapshotNotFound):
                self.store.remove_snapshot(IDS[seed])
            return
        self.store.remove_snapshot(IDS[seed])
        self.world = self.world.minus(IDS[seed])

    @rule()
    def collect(self) -> None:
        report = self.store.gc(grace_s=0)
        reached = self._reached()
        assert report["num_blocks_deleted"] >= len(self.objects - reached)
        self.objects = reached
        assert self._on_disk() == reached
        assert not list((self.path / "tmp").iterdir())

    @rule()
    def collect_with_grace(self) -> None:
        assert self.store.gc()["num_blocks_deleted"] == 0

    @rule()
    def open_again(self) -> None:
        self.store = Store.open(self.path)
        assert read_world(self.path, KNOWN) == self.world

    @rule(seed=seeds, name=names, step=KILLS)
    def put_and_be_killed(self, seed: int, name: str, step: int) -> None:
        without_name = self.world.plus(IDS[seed], BLOCKS[seed])
        new = without_name.named(name, IDS[seed])
        self._be_killed(step, lambda: self._put(seed, name), [self.world, without_name, new])

    @precondition(lambda self: self.world.snapshots)
    @rule(seed=seeds, step=KILLS)
    def remove_and_be_killed(self, seed: int, step: int) -> None:
        if IDS[seed] not in self.world.snapshots:
            return
        keys = [name for name, one in self.world.names.items() if one == IDS[seed]]
        partly = [
            World(self.world.snapshots, {key: one for key, one in self.world.names.items() if key not in gone})
            for gone in ([], *([key] for key in keys), *([a, b] for a in keys for b in keys), keys)
        ]
        allowed = [*partly, self.world.minus(IDS[seed])]
        self._be_killed(step, lambda: self.store.remove_snapshot(IDS[seed]), allowed)

    @rule(step=KILLS)
    def collect_and_be_killed(self, step: int) -> None:
        self._be_killed(step, lambda: self.store.gc(grace_s=0), [self.world])

    def _be_killed(self, step: int, act: Callable[[], object], allowed: list[World]) -> None:
        try:
            with Disk(self.path, killed_at(step)):
                act()
        except Killed:
            pass
        self.store = Store.open(self.path)
        found = read_world(self.path, KNOWN)
        assert found in allowed
        self.world = found
        self.objects = self._on_disk()
        assert self.store.verify()["ok"]

    def _reached(self) -> set[str]:
        return {digest for snapshot in self.world.snapshots for digest in NEEDS[snapshot]}

    def _on_disk(self) -> set[str]:
        """Return the blocks in objects, and those that a killed gc set aside and that are restored when asked for."""
        aside = {path.name[-64:] for path in (self.path / "tmp").glob("gone-*")}
        return {path.name for path in (self.path / "objects").glob("*/*")} | aside

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        assert {summary.id for summary in self.store.summaries()} == self.world.snapshots.keys()
        assert self.store.refs() == self.world.names


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_any_commands_and_kills_leave_what_the_model_says(monkeypatch):
    few_shards(monkeypatch)
    with disk_folder() as folder:
        StoreMachine.folder = folder
        Store.open(folder / "template", create=True)
        run_state_machine_as_test(
            StoreMachine,
            settings=settings(
                max_examples=COUNTS.model_runs,
                stateful_step_count=COUNTS.model_steps,
                derandomize=not IS_DEEP,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
