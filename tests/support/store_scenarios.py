"""What the fault tests do to a store, step by step, with all that the store may hold while a step is under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from raysnap.errors import SnapshotNotFound
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from raysnap.testing.blocks import Blocks, make_blocks
from tests.support.start_records import record
from tests.support.store_laws import World, make_store


@dataclass(frozen=True)
class Step:
    """One command: what it does, what the store may hold in its midst, and what it holds after it."""

    act: Callable[[Path], object]
    midst: list[World]
    after: World


@dataclass(frozen=True)
class Scenario:
    """What a store holds before (None: there is no store), and the steps."""

    old: World | None
    steps: list[Step]

    @property
    def known(self) -> dict[str, Blocks]:
        """Return the blocks of every snapshot that is ever there."""
        worlds = [world for step in self.steps for world in (*step.midst, step.after)]
        return {one: blocks for world in (self.old or World(), *worlds) for one, blocks in world.snapshots.items()}

    def allowed(self, num_done: int) -> list[World]:
        """Return what the store may hold when so many steps were reported done and the next one was broken off."""
        before = self.steps[num_done - 1].after if num_done else (self.old or World())
        if num_done == len(self.steps):
            return [before]
        return [before, *self.steps[num_done].midst, self.steps[num_done].after]

    def finish(self, path: Path, num_done: int) -> World:
        """Do the steps that are left, the broken one again; return what the store holds then."""
        for step in self.steps[num_done:]:
            step.act(path)
        return self.steps[-1].after


def _put(path: Path, seed: int, name: str, preprocessing: Preprocessing | None = None) -> None:
    blocks = make_blocks(seed, 1)
    store = Store.open(path, create=True)
    store.put_snapshot(architecture="resnet18", blocks=blocks, num_classes=4, name=name, preprocessing=preprocessing)


def _remove(path: Path, snapshot: str) -> None:
    try:
        Store.open(path).remove_snapshot(snapshot)
    except SnapshotNotFound:
        return  # what a broken step has removed already


def _putting(
    old: World | None, path: Path, seed: int, name: str, preprocessing: Preprocessing | None = None
) -> Scenario:
    blocks = make_blocks(seed, 1)
    snapshot = make_store(path, (seed,))[0].resolve("old")
    without_name = (old or World()).plus(snapshot, blocks)
    new = without_name.named(name, snapshot)
    return Scenario(
        old,
        [
            Step(lambda path: _put(path, seed, name, preprocessing), [without_name], new),
            Step(lambda path: Store.open(path).summaries(), [], new),
        ],
    )


def in_no_store(path: Path, scratch: Path, seed: int) -> Scenario:
    """Return the scenario of the first snapshot of a store that doesn't exist yet, nor do the folders above it."""
    return _putting(None, scratch, seed + 2, "mine")


def beside_shared_blocks(path: Path, scratch: Path, seed: int) -> Scenario:
    """Return the scenario of a snapshot of which all but the head is there."""
    return _putting(make_store(path, (seed + 1,))[1], scratch, seed + 2, "mine")


def under_an_old_name(path: Path, scratch: Path, seed: int) -> Scenario:
    """Return the scenario of a new snapshot that takes over a name."""
    return _putting(make_store(path, (seed + 1, seed + 3))[1], scratch, seed + 2, "old")


def first_of_format_2(path: Path, scratch: Path, seed: int) -> Scenario:
    """Return the scenario of the first snapshot that format 1 can't say, in a store of format 1."""
    return _putting(make_store(path, (seed + 1,))[1], scratch, seed + 2, "mine", Preprocessing(resize_mode="squash"))


def with_a_first_record(path: Path, scratch: Path, seed: int) -> Scenario:
    """Return the scenario of a fine-tune that is recorded after its snapshot, in a store without any record."""
    putting = _putting(make_store(path, (seed + 1,))[1], scratch, seed + 2, "mine")
    found = record(f"start {seed}", "pets", 0.5)
    new = putting.steps[-1].after
    with_record = new.recorded(blake3(found.to_bytes()).hexdigest())
    return replace(
        putting,
        steps=[
            *putting.steps,
            Step(lambda path: Store.open(path).put_record(found), [], with_record),
            Step(lambda path: Store.open(path).record_table(), [], with_record),
        ],
    )


def after_a_removal(path: Path, scratch: Path, seed: int) -> Scenario:
    """Return the scenario of a snapshot that is removed, its head collected, and that is put again."""
    store, old = make_store(path, (seed + 1, seed + 2))
    removed = store.resolve("old")
    nameless, rest = old.without_names(removed), old.minus(removed)
    again = rest.plus(removed, old.snapshots[removed])
    return Scenario(
        old,
        [
            Step(lambda path: _remove(path, removed), [nameless], rest),
            Step(lambda path: Store.open(path).gc(grace_s=0), [], rest),
            Step(lambda path: _put(path, seed + 2, "again"), [again], again.named("again", removed)),
            Step(lambda path: Store.open(path).summaries(), [], again.named("again", removed)),
        ],
    )


SCENARIOS = {
    "in no store": in_no_store,
    "beside shared blocks": beside_shared_blocks,
    "under an old name": under_an_old_name,
    "first of format 2": first_of_format_2,
    "with a first record": with_a_first_record,
    "after a removal": after_a_removal,
}
