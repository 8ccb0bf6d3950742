"""What must hold for a store after any fault, the stores that faults are tried on, and how many are tried.

The counts are those of a test run; with RAYSNAP_DEEP=1 (`tools/deep` sets it) those of a long one. RAYSNAP_SEED, a
number, makes another choice of random faults, and RAYSNAP_PARTS=N tries an Nth of the long one's: run it N times with
seeds that are 100 apart.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from raysnap.models.tensor_bytes import block_digest
from raysnap.store.backends import folder
from raysnap.store.backends.folder import Folder
from raysnap.store.records import read_record, record_digests
from raysnap.store.store import Store
from raysnap.testing.blocks import Blocks, equal, make_blocks, read

IS_DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
SEED = int(os.environ.get("RAYSNAP_SEED", "0"))
NUM_PARTS = int(os.environ.get("RAYSNAP_PARTS", "1"))


@dataclass(frozen=True)
class Counts:
    """How many faults of each kind are tried."""

    kill_seeds: int  # each with a kill at every step of every workload
    real_kills: int
    power_states: int
    random_errors: int
    random_full: int
    bit_flips: int
    file_damages: int
    model_runs: int
    model_steps: int


def part(count: int) -> int:
    """Return how many of these many faults one part of a long run tries."""
    return -(-count // NUM_PARTS)


_DEEP = Counts(*map(part, (20, 1_000, 5_000, 2_000, 200, 20_000, 2_000, 5_000)), model_steps=100)
COUNTS = _DEEP if IS_DEEP else Counts(1, 50, 200, 0, 0, 500, 60, 80, 50)


@dataclass
class World:
    """What a store holds: the snapshots by id, the names, and the digests of records."""

    snapshots: dict[str, Blocks] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    records: frozenset[str] = frozenset()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, World):
            return NotImplemented
        is_same = (self.names, self.records) == (other.names, other.records)
        return is_same and self.snapshots.keys() == other.snapshots.keys()

    def plus(self, snapshot: str, blocks: Blocks) -> World:
        return replace(self, snapshots=self.snapshots | {snapshot: blocks})

    def named(self, name: str, snapshot: str) -> World:
        return replace(self, names=self.names | {name: snapshot})

    def recorded(self, record: str) -> World:
        return replace(self, records=self.records | {record})

    def without_names(self, snapshot: str) -> World:
        return replace(self, names={name: one for name, one in self.names.items() if one != snapshot})

    def minus(self, snapshot: str) -> World:
        rest = {one: blocks for one, blocks in self.snapshots.items() if one != snapshot}
        return replace(self.without_names(snapshot), snapshots=rest)


def read_world(path: Path, known: dict[str, Blocks]) -> World:
    """Read every listed snapshot, check that it is bit-equal to the known one, and return what the store holds."""
    store = Store.open(path)
    snapshots = {summary.id: known[summary.id] for summary in store.summaries()}
    for snapshot, blocks in snapshots.items():
        assert equal(read(store, snapshot), blocks), snapshot
    names = store.refs()
    assert names == {name: store.resolve(name) for name in names}
    place = Folder(path)
    records = record_digests(place)
    for digest in records:
        read_record(place, digest)
    assert len(store.record_table()) == len(records)
    return World(snapshots, names, frozenset(records))


def check_clean(path: Path) -> None:
    """Collect, then check that no fault, unreached block, temporary file or lock is left."""
    store = Store.open(path)
    store.gc(grace_s=0)
    report = store.verify()
    assert report["ok"], report
    needed = {block.digest for manifest in store.manifests() for block in manifest.blocks}
    assert store.stats()["num_blocks"] == len(needed)
    assert not list((path / "tmp").iterdir())
    with (path / "store.json").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_laws(path: Path, allowed: list[World], repeat: Callable[[], World], known: dict[str, Blocks]) -> World:
    """Check the state that a fault left: sound, one of those allowed, and what was begun can be finished.

    Args:
        path: the store.
        allowed: what it may hold: all that was there before the fault, and nothing half.
        repeat: does again what the fault broke off; what the store must hold then.
        known: the blocks of every snapshot that may be there.
    """
    report = Store.open(path).verify()
    assert report["ok"], report
    found = read_world(path, known)
    assert found in allowed, (found.snapshots.keys(), found.names)
    expected = repeat()
    assert read_world(path, known) == expected
    check_clean(path)
    assert read_world(path, known) == expected
    return found


@contextmanager
def disk_folder() -> Iterator[Path]:
    """Return a folder for thousands of small files: in memory where there is a memory disk, else on the real one."""
    memory = Path("/dev/shm")
    is_usable = memory.is_dir() and os.access(memory, os.W_OK)
    with TemporaryDirectory(prefix="raysnap-", dir=memory if is_usable else None) as folder:
        yield Path(folder)


def few_shards(patch: pytest.MonkeyPatch, seeds: range = range(10)) -> None:
    """Restrict a store to the shards of these seeds' blocks; copying and checking all 256 takes most of the time."""
    digests = {block_digest(tensors) for seed in seeds for _, tensors in make_blocks(seed, 1)}
    patch.setattr(folder, "_SHARDS", sorted({digest[:2] for digest in digests}))


def make_store(path: Path, seeds: tuple[int, ...] = (1,), name: str = "old") -> tuple[Store, World]:
    """Return a store with a snapshot of each seed, `name` for the last one, and what it holds."""
    store = Store.open(path, create=True)
    world = World()
    for seed in seeds:
        blocks = make_blocks(seed, 1)
        snapshot = store.put_snapshot(architecture="resnet18", blocks=blocks, num_classes=4).manifest.id
        world = world.plus(snapshot, blocks)
    store.set_ref(name, snapshot)
    return store, world.named(name, snapshot)


def copy(template: Path, path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return Path(shutil.copytree(template, path))
