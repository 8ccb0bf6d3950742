"""Crowds of processes at one store: writers, collectors, checkers and readers, some of them killed at any moment.

Run as `python store_crowd.py writers FOLDER NUM_WORKERS NUM_COMMITS` or `… storm FOLDER SECONDS SEED`; prints what
happened and exits 0 when the store kept its promises.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raysnap.errors import RaysnapError, SnapshotNotFound, StoreDamaged, StoreError
from raysnap.store.store import SnapshotWrite, Store
from raysnap.testing.blocks import Blocks, equal, read
from tests.support.store_processes import fork, wait

NUM_SHARED, NUM_FAMILIES = 4, 10
KILL_EVERY_S = 0.03

Role = tuple[str, Callable[[int], None]]  # a name, and what a process of that role does in each of its lives


def crowd_blocks(family: int, own: str) -> Blocks:
    """Put a snapshot of four blocks that its family shares and a head of its own: 80 % are shared."""

    def tensors(text: str) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(int(blake3(text.encode()).hexdigest()[:15], 16))
        return {"weight": torch.randn(64, generator=generator)}

    names = [f"layer.{index}" for index in range(NUM_SHARED)]
    return [*((name, tensors(f"{family}/{name}")) for name in names), ("head", tensors(own))]


def put_one(store: Store, family: int, own: str, name: str | None = None) -> SnapshotWrite:
    blocks = crowd_blocks(family, own)
    return store.put_snapshot(architecture="resnet18", blocks=blocks, num_classes=4, trial=own, name=name)


# Row 8: concurrent writers


def writers(folder: Path, num_workers: int, num_commits: int) -> dict[str, int]:
    """Check that every commit is listed, shared blocks are stored once, and a name moves from where it was."""
    path = folder / "store"
    start = put_one(Store.open(path, create=True), 0, "start", name="latest").manifest.id

    def work(worker: int) -> None:
        store = Store.open(path)
        with (folder / f"moves-{worker}").open("w") as moves:
            for number in range(num_commits):
                # Every tenth commit is the same for all workers, and made at about the same time.
                own = f"all-{number}" if number % 10 == 9 else f"{worker}-{number}"
                written = put_one(store, number % NUM_FAMILIES, own, name=f"w{worker}-{number}")
                if own.startswith("all"):
                    continue
                moves.write(f"{move(store, written.manifest.id)} {written.manifest.id}\n")

    processes = [fork(lambda worker=worker: work(worker)) for worker in range(num_workers)]
    assert [wait(process) for process in processes] == [0] * num_workers
    store = Store.open(path)
    num_same = num_commits // 10
    num_own = num_workers * (num_commits - num_same)
    num_families = min(NUM_FAMILIES, num_commits)
    stats = store.stats()
    assert stats["num_snapshots"] == 1 + num_own + num_same, stats
    assert stats["num_blocks"] == NUM_SHARED * num_families + stats["num_snapshots"], stats
    assert len(store.refs()) == 1 + num_workers * num_commits
    assert store.verify()["ok"]
    assert not list((path / "tmp").iterdir())
    check_chain(start, store.resolve("latest"), read_moves(folder))
    return {"num_commits": num_workers * num_commits, "num_moves": num_own}


def move(store: Store, snapshot: str) -> str:
    """Move `latest` to this snapshot and return the id that it had."""
    while True:
        current = store.resolve("latest")
        try:
            store.set_ref("latest", snapshot, expected=current)
            return current
        except StoreError as error:
            if "nothing is changed" not in str(error):
                raise


def read_moves(folder: Path) -> list[tuple[str, str]]:
    return [tuple(line.split()) for path in folder.glob("moves-*") for line in path.read_text().splitlines()]


def check_chain(start: str, end: str, moves: list[tuple[str, str]]) -> None:
    """Check that each move begins where exactly one other ended: none was lost or made from a stale id."""
    following = dict(moves)
    assert len(following) == len(moves), "two moves began at one snapshot"
    current = start
    for _ in moves:
        current = following[current]
    assert current == end


# Row 9: writers, collectors, checkers and readers, with random kills


def storm(folder: Path, seconds: float, seed: int) -> dict[str, int]:
    """Check that nothing reported as stored is ever lost, and that a quiet gc leaves no unneeded block."""
    path = folder / "store"
    Store.open(path, create=True)
    roles: list[Role] = [
        *[(f"writer-{worker}", lambda life, worker=worker: write(folder, worker, life)) for worker in range(4)],
        *[(f"collector-{number}", lambda life, number=number: collect(path, number, life)) for number in range(2)],
        *[(f"checker-{number}", lambda _: check(path)) for number in range(2)],
        ("reader", lambda life: read_snapshots(path, life)),
    ]
    running = [start_role(role, 0) for role in roles]
    try:
        counts = kill_at_random(roles, running, seconds, random.Random(seed))
    finally:
        for process in running:
            os.kill(process, signal.SIGKILL)
    exit_codes = [wait(process) for process in running]
    assert exit_codes == [-signal.SIGKILL] * len(roles), exit_codes
    return counts | check_storm(folder)


def kill_at_random(roles: list[Role], running: list[int], seconds: float, rng: random.Random) -> Counter:
    """Kill one process after the other and start it again; each must have been alive."""
    lives = [0] * len(roles)
    counts = Counter()
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        time.sleep(rng.uniform(0, 2 * KILL_EVERY_S))
        index = rng.randrange(len(roles))
        os.kill(running[index], signal.SIGKILL)
        exit_code = wait(running[index])
        lives[index] += 1
        running[index] = start_role(roles[index], lives[index])
        assert exit_code == -signal.SIGKILL, f"{roles[index][0]} ended by itself with {exit_code}"
        counts["num_kills"] += 1
    return counts


def start_role(role: Role, life: int) -> int:
    def work() -> None:
        try:
            role[1](life)
        except Exception:
            sys.stderr.write(f"{role[0]}: {traceback.format_exc()}")
            raise

    return fork(work)


def write(folder: Path, worker: int, life: int) -> None:
    """Add and remove snapshots that no one else touches, and write down what is stored before and after."""
    store = Store.open(folder / "store")
    rng = random.Random(1000 * worker + life)
    with (folder / f"ledger-{worker}").open("a") as ledger:
        kept = live_snapshots(folder, worker)
        for number in range(10**9):
            if len(kept) > 30 or (kept and rng.random() < 0.3):
                snapshot = rng.choice(sorted(kept))
                note(ledger, {"removed": snapshot})
                del kept[snapshot]
                try:
                    store.remove_snapshot(snapshot)
                except SnapshotNotFound:
                    raise AssertionError(f"{snapshot} was stored and is not there any more") from None
                continue
            family, own = rng.randrange(NUM_FAMILIES), f"{worker}-{life}-{number}"
            try:
                snapshot = put_one(store, family, own, name=f"newest-{worker}").manifest.id
            except StoreError as error:
                if "a gc removed it" not in str(error):
                    raise
                continue
            kept[snapshot] = (family, own)
            note(ledger, {"stored": snapshot, "family": family, "own": own})


def note(ledger, row: dict[str, object]) -> None:
    """Write a line in one system call, so that a kill leaves all of it or nothing."""
    os.write(ledger.fileno(), f"{json.dumps(row)}\n".encode())


def live_snapshots(folder: Path, worker: int) -> dict[str, tuple[int, str]]:
    """Return what the worker knows to be stored, and did not begin to remove."""
    live: dict[str, tuple[int, str]] = {}
    for line in (folder / f"ledger-{worker}").read_text().splitlines():
        row = json.loads(line)
        if "stored" in row:
            live[row["stored"]] = (row["family"], row["own"])
        else:
            live.pop(row["removed"])
    return live


def collect(path: Path, number: int, life: int) -> None:
    """Collect without any grace, the second collector in turn with a short one."""
    store = Store.open(path)
    while True:
        store.gc(grace_s=0.2 * (number * life % 2))


def check(path: Path) -> None:
    """Verify the whole store again and again; what others remove meanwhile is no damage."""
    store = Store.open(path)
    while True:
        report = store.verify()
        assert report["ok"], report


def read_snapshots(path: Path, life: int) -> None:
    """Read snapshots whole; a block may be missing only if its snapshot is missing too."""
    store = Store.open(path)
    rng = random.Random(life)
    while True:
        for summary in rng.sample(summaries := store.summaries(), min(3, len(summaries))):
            try:
                read(store, summary.id)
            except SnapshotNotFound:
                continue
            except StoreDamaged:
                assert not (path / "snapshots" / f"{summary.id}.json").exists(), summary.id


def check_storm(folder: Path) -> dict[str, int]:
    """Check that what was stored reads back bit for bit, and that a quiet gc leaves what manifests need and no more."""
    store = Store.open(folder / "store")
    live = {snapshot: made for worker in range(4) for snapshot, made in live_snapshots(folder, worker).items()}
    for snapshot, (family, own) in live.items():
        assert equal(read(store, snapshot), crowd_blocks(family, own)), own
    listed = {summary.id for summary in store.summaries()}
    assert live.keys() <= listed
    assert store.verify()["ok"]
    store.gc(grace_s=0)
    assert not list((store.path / "tmp").iterdir())
    needed = {block.digest for manifest in store.manifests() for block in manifest.blocks}
    found = {path.name for path in (store.path / "objects").rglob("*") if path.is_file()}
    assert found == needed
    assert store.verify()["ok"]
    num_stored = sum('"stored"' in line for line in ledger_lines(folder))
    return Counter(num_stored=num_stored, num_live=len(live), num_listed=len(listed))


def ledger_lines(folder: Path) -> Iterator[str]:
    for path in folder.glob("ledger-*"):
        yield from path.read_text().splitlines()


if __name__ == "__main__":
    torch.set_num_threads(1)
    law, target, *numbers = sys.argv[1:]
    try:
        if law == "writers":
            result = writers(Path(target), int(numbers[0]), int(numbers[1]))
        else:
            result = storm(Path(target), float(numbers[0]), int(numbers[1]))
    except RaysnapError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.write(json.dumps(result))
