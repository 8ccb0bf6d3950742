"""A crowd of processes at one store in a bucket: writers and collectors, killed at random, through a faulty server.

Run as `python bucket_crowd.py NUM_WRITERS NUM_COMMITS SECONDS SEED FOLDER`. The crowd works for at least so many
seconds and until each writer has made so many commits; then the faults end and all that was reported as stored must
read back bit for bit. Prints what happened as JSON and exits 0 when the store kept its promises.

A request that gets no answer is given up after less time than in real life (see `Times`), and the times that the laws
of a bucket rest on are shorter in the same measure; else each killed collector would stop the writers that need what it
was about to delete for six minutes.
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
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raysnap.config.folders import BucketAddress
from raysnap.errors import BlockDamaged, SnapshotNotFound, StoreDamaged, StoreError, StoreUnreadable
from raysnap.store.backends import client as client_module
from raysnap.store.backends.bucket import Bounds, Bucket
from raysnap.store.backends.client import Client
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, read
from raysnap.testing.places import open_store
from tests.support.s3_faults import Faults, at_random
from tests.support.s3_proxy import FaultyProxy, faulty_proxy
from tests.support.s3_server import BUCKET, environment, faulty_s3_server
from tests.support.seaweed import find_seaweed, seaweed
from tests.support.store_crowd import NUM_FAMILIES, crowd_blocks, put_one
from tests.support.store_processes import fork, wait

ADDRESS = BucketAddress(f"s3://{BUCKET}/crowd")
KINDS = ["cut before", "cut after", "delay", "409", "412", "503", "short"]
FAULTY_SHARE, REMOVED_SHARE = 0.03, 0.2
NUM_COLLECTORS, COLLECT_PAUSE_S = 2, 3.0
WRITER_KILL_EVERY_S, COLLECTOR_KILL_EVERY_S = 0.7, 40.0
PATIENCE_S = 600.0


class Times(NamedTuple):
    """How long things may take: a request is given up within answer + twice retries, which is less than `request_s`."""

    answer_s: int
    retries_s: int
    bounds: Bounds

    def apply(self) -> None:
        client_module.ANSWER_S, client_module.RETRIES_S = self.answer_s, self.retries_s


OF_MANY = Times(30, 40, Bounds(request_s=120.0, lease_s=300.0, delete_s=60.0))
OF_FEW = Times(5, 8, Bounds(request_s=25.0, lease_s=60.0, delete_s=10.0))
FEW = 8
TIMES = OF_MANY
NO_ONE_ELSE = Bounds(request_s=0.0, lease_s=0.0)
"""Drafts of killed processes may be swept at once where all others have ended, and their requests too."""


def open_crowd(bounds: Bounds | None = None, *, create: bool = False) -> Store:
    """Open the store as a new process does, without a block cache, which would answer for lost blocks."""
    give_up_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return open_store(Bucket(Client.connect(ADDRESS), bounds=bounds or TIMES.bounds), create=create)
        except (StoreError, StoreUnreadable):
            if time.monotonic() > give_up_s:
                raise


# The server


def serve(folder: Path) -> None:
    """Serve until the file `calm` appears, with faults, and then without; note how many requests met each fault."""
    with faulty_server(folder) as (address, faults):
        (folder / "address.part").write_text(address)
        (folder / "address.part").rename(folder / "address")
        await_file(folder / "faults")
        faults.choose = at_random(FAULTY_SHARE, KINDS)
        await_file(folder / "calm")
        faults.choose = lambda method, path: None
        (folder / "seen").write_text(json.dumps(dict(faults.seen)))
        await_file(folder / "end")


@contextmanager
def faulty_server(folder: Path) -> Iterator[tuple[str, FaultyProxy | Faults]]:
    """Run SeaweedFS where it is installed, else moto, which answers a tenth as many requests a second."""
    program = find_seaweed()
    if program is None:
        with faulty_s3_server() as server:
            yield server
    else:
        with seaweed(program, folder / "seaweed") as port, faulty_proxy(port) as server:
            yield server


def await_file(path: Path) -> None:
    """Wait for a file that another process of the crowd writes; a server ends where nobody is left to write it."""
    parent = os.getppid()
    while not path.exists():
        assert os.getppid() == parent, "the crowd is gone"
        time.sleep(0.05)


# Writers and collectors


def write(folder: Path, worker: int, life: int, num_commits: int) -> None:
    """Commit until it is enough, and remove some; what is stored is noted after, what is removed before."""
    store = open_crowd()
    rng = random.Random(1000 * worker + life)
    while True:
        ledger = rows(folder, worker)
        stored = [row for row in ledger if row["did"] == "stored"]
        number = len(stored)
        if number >= num_commits and (folder / "enough").exists():
            return
        removed = {row["id"] for row in ledger if row["did"] == "removed"}
        if rng.random() < REMOVED_SHARE and (kept := [row["id"] for row in stored if row["id"] not in removed]):
            snapshot = rng.choice(kept)
            note(folder, worker, {"did": "removed", "id": snapshot})
            remove(store, snapshot)
            continue
        family, own = rng.randrange(NUM_FAMILIES), f"{worker}-{number}"
        name = f"w{worker}-{number}"
        try:
            snapshot = put_one(store, family, own, name=name).manifest.id
        except (StoreError, StoreUnreadable) as error:
            note(folder, worker, {"did": "failed", "why": str(error)[:300]})
            continue
        note(folder, worker, {"did": "stored", "id": snapshot, "family": family, "own": own, "name": name})


def remove(store: Store, snapshot: str) -> None:
    """Remove a snapshot for good: a removal that failed half-way may have removed it."""
    for number in range(100):
        try:
            store.remove_snapshot(snapshot)
            return
        except SnapshotNotFound:
            if not number:
                raise AssertionError(f"{snapshot} was stored and is not there any more") from None
            return
        except (StoreError, StoreUnreadable):
            continue


def collect(folder: Path, number: int) -> None:
    """Collect without any grace, again and again."""
    store = open_crowd()
    while not (folder / "enough").exists():
        try:
            done = store.gc(grace_s=0)
        except (StoreError, StoreUnreadable) as error:
            append(folder / f"collector-{number}", {"failed": str(error)[:300]})
            continue
        append(folder / f"collector-{number}", done)
        time.sleep(COLLECT_PAUSE_S)


def note(folder: Path, worker: int, row: dict[str, object]) -> None:
    append(folder / f"ledger-{worker}", row | {"at": time.time()})


def append(path: Path, row: dict[str, object]) -> None:
    """Write a line in one system call, so that a kill leaves all of it or nothing."""
    with path.open("ab", buffering=0) as file:
        file.write(f"{json.dumps(row)}\n".encode())


def rows(folder: Path, worker: int) -> list[dict]:
    path = folder / f"ledger-{worker}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# The storm


Role = tuple[str, Callable[[int], None], float]
"""A name, what a process of that role does in each of its lives, and the weight of being killed."""


def storm(folder: Path, num_writers: int, num_commits: int, seconds: float, seed: int) -> dict[str, object]:
    """Let the crowd work, kill, and check that nothing that was reported as stored is lost."""
    began_s = time.monotonic()
    server = start("server", lambda: serve(folder))
    await_file(folder / "address")
    os.environ.update(environment((folder / "address").read_text()))
    assert wait(start("creator", lambda: open_crowd(create=True))) == 0
    (folder / "faults").touch()
    writers = [lambda life, one=one: write(folder, one, life, num_commits) for one in range(num_writers)]
    collectors = [lambda life, one=one: collect(folder, one) for one in range(NUM_COLLECTORS)]
    counts = work(folder, {"writer": writers, "collector": collectors}, num_commits, seconds, random.Random(seed))
    (folder / "calm").touch()
    await_file(folder / "seen")
    worked_s = time.monotonic() - began_s
    try:
        return counts | {"worked_s": round(worked_s), **check(folder, num_writers, seed)}
    finally:
        (folder / "end").touch()
        assert wait(server) == 0


def start(name: str, act: Callable[[], object]) -> int:
    def told() -> None:
        try:
            os.nice(5 if name == "writer" else 0)  # writers wait for the server, and are many beside two collectors
            act()
        except BaseException:
            sys.stderr.write(f"{name}: {traceback.format_exc()}")
            raise

    return fork(told)


def work(
    folder: Path, roles: dict[str, list[Callable[[int], None]]], num_commits: int, seconds: float, rng: random.Random
) -> dict[str, object]:
    """Run a process for each role and kill one after the other, until the time is over and all commits are made."""
    running = {
        (role, number): start(role, lambda act=act: act(0))
        for role, acts in roles.items()
        for number, act in enumerate(acts)
    }
    lives: Counter[tuple[str, int]] = Counter()
    kills: Counter[str] = Counter()
    every_s = {"writer": WRITER_KILL_EVERY_S, "collector": COLLECTOR_KILL_EVERY_S}
    now_s = time.monotonic()
    next_s = {role: now_s + rng.uniform(0, 2 * one_s) for role, one_s in every_s.items()}
    end_s = now_s + seconds
    while time.monotonic() < end_s or not all_made(folder, len(roles["writer"]), num_commits):
        time.sleep(0.2)
        for role, due_s in next_s.items():
            if time.monotonic() < due_s:
                continue
            next_s[role] = time.monotonic() + rng.uniform(0, 2 * every_s[role])
            one = (role, rng.randrange(len(roles[role])))
            os.kill(running[one], signal.SIGKILL)
            exit_code = wait(running[one])
            assert exit_code == -signal.SIGKILL, f"{one} ended by itself with {exit_code}"
            kills[role] += 1
            lives[one] += 1
            running[one] = start(role, lambda one=one: roles[one[0]][one[1]](lives[one]))
    (folder / "enough").touch()
    give_up_s = time.monotonic() + PATIENCE_S
    for one, process in running.items():
        while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < give_up_s, f"{one} does not end"
            time.sleep(0.05)
        assert os.waitstatus_to_exitcode(ended[1]) == 0, f"{one} failed"
    return {"num_writers_killed": kills["writer"], "num_collectors_killed": kills["collector"]}


def all_made(folder: Path, num_writers: int, num_commits: int) -> bool:
    if not num_commits:
        return True
    paths = (folder / f"ledger-{worker}" for worker in range(num_writers))
    return all(path.exists() and path.read_text().count('"did": "stored"') >= num_commits for path in paths)


def check(folder: Path, num_writers: int, seed: int) -> dict[str, object]:
    """Read every snapshot that was stored and not removed, count blocks that are lost, and see that gc cleans up."""
    store = open_crowd()
    ledgers = [rows(folder, worker) for worker in range(num_writers)]
    stored = {row["id"]: row for ledger in ledgers for row in ledger if row["did"] == "stored"}
    removed = {row["id"] for ledger in ledgers for row in ledger if row["did"] == "removed"}
    live = {snapshot: row for snapshot, row in stored.items() if snapshot not in removed}
    names = store.refs()
    listed = {summary.id for summary in store.summaries()}
    lost = [*chain.from_iterable(store._place.map(lambda one: lost_blocks(store, *one), live.items()))]
    collected = [json.loads(line) for path in folder.glob("collector-*") for line in path.read_text().splitlines()]
    verification = store.verify()
    last = open_crowd(NO_ONE_ELSE).gc(grace_s=0)
    needed = {block.digest for manifest in store.manifests() for block in manifest.blocks}
    figures = {
        "seed": seed,
        "num_commits": len(stored),
        "num_removed": len(removed),
        "num_live": len(live),
        "num_commits_failed": sum(row["did"] == "failed" for ledger in ledgers for row in ledger),
        "num_gc": sum("failed" not in one for one in collected),
        "num_gc_failed": sum("failed" in one for one in collected),
        "num_blocks_deleted": sum(one.get("num_blocks_deleted", 0) for one in collected),
        "num_blocks_needed": len(needed),
        "num_blocks_kept_needlessly": len({entry.name for entry in store._place.objects()} - needed),
        "num_blocks_deleted_at_the_end": last["num_blocks_deleted"],
        "num_live_blocks_lost": len(lost),
        "num_live_not_listed": len(live.keys() - listed),
        "num_names_lost": sum(names.get(row["name"]) != snapshot for snapshot, row in live.items()),
        "is_sound": verification["ok"],
        "faults": json.loads((folder / "seen").read_text()),
    }
    broken = lost or live.keys() - listed or figures["num_names_lost"] or not verification["ok"]
    assert not broken, (figures, lost[:10], verification)
    return figures


def lost_blocks(store: Store, snapshot: str, row: dict) -> list[str]:
    """Return which blocks of a snapshot that was stored are missing or have other bytes."""
    try:
        if equal(read(store, snapshot), crowd_blocks(row["family"], row["own"])):
            return []
    except (SnapshotNotFound, StoreDamaged, BlockDamaged) as error:
        return [f"{snapshot}: {error}"]
    return [f"{snapshot}: other bytes"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    *numbers, seconds, seed, target = sys.argv[1:]
    TIMES = OF_FEW if int(numbers[0]) <= FEW else OF_MANY
    TIMES.apply()
    result = storm(Path(target), int(numbers[0]), int(numbers[1]), float(seconds), int(seed))
    sys.stdout.write(json.dumps(result) + "\n")
