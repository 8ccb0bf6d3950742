"""What the store tests do in processes of their own, forked from one that has imported torch and nothing else.

Run as `python store_processes.py struck|together|collected FOLDER`; exits 0 when the store kept its promises.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raysnap.errors import SnapshotNotFound, StoreError
from raysnap.models.tensor_bytes import block_digest
from raysnap.store.manifest import snapshot_id
from raysnap.store.store import Store
from raysnap.testing.blocks import make_blocks, put, read
from tests.support.store_laws import COUNTS, SEED, World, check_laws, make_store

MAX_LIFE_S = 0.02


def fork(work: Callable[[], object]) -> int:
    """Return the id of a new process that does `work` and exits 0, or 1 where it failed."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - a fork must not return into the test that forked it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def struck(folder: Path) -> None:
    """Check that what a writer reported before it was killed is there, and at most one snapshot more."""
    random = Random(SEED)
    store, world = make_store(folder / "store")
    known = dict(world.snapshots)
    seed, num_struck = 1, 0
    while num_struck < COUNTS.real_kills:
        reports, report = os.pipe()

        def write(first: int = seed + 1, report: int = report) -> None:
            for one in range(first, first + 1000):
                written = put(Store.open(store.path), seed=one, num_retrained=1, name="latest")
                os.write(report, f"{written.manifest.id}\n".encode())

        process = fork(write)
        os.close(report)
        time.sleep(random.uniform(0, MAX_LIFE_S))
        os.kill(process, signal.SIGKILL)
        num_struck += wait(process) == -signal.SIGKILL
        with os.fdopen(reports) as lines:
            reported = lines.read().split()
        for snapshot in reported:
            seed += 1
            known[snapshot] = make_blocks(seed, 1)
            world = world.plus(snapshot, known[snapshot]).named("latest", snapshot)
        seed += 1
        blocks = make_blocks(seed, 1)
        begun = snapshot_id("resnet18", [(name, block_digest(tensors)) for name, tensors in blocks])
        known[begun] = blocks
        nameless = world.plus(begun, known[begun])
        new = nameless.named("latest", begun)

        def repeat(new: World = new, seed: int = seed) -> World:
            put(store, seed=seed, num_retrained=1, name="latest")
            return new

        check_laws(store.path, [world, nameless, new], repeat, known)
        for snapshot in list(new.snapshots)[:-3]:
            store.remove_snapshot(snapshot)
            new = new.minus(snapshot)
        world = new


def together(folder: Path) -> None:
    """Check that processes that add the same snapshots at once store each block once and lose no name."""
    path, num_workers, num_snapshots = folder / "store", 4, 15

    def work(worker: int) -> None:
        store = Store.open(path, create=True)
        for seed in range(num_snapshots):
            put(store, seed=seed, num_retrained=1, name=f"w{worker}-{seed}")

    processes = [fork(lambda worker=worker: work(worker)) for worker in range(num_workers)]
    assert [wait(process) for process in processes] == [0] * num_workers
    store = Store.open(path)
    stats = store.stats()
    assert (stats["num_snapshots"], stats["num_blocks"]) == (num_snapshots, num_snapshots + 2), stats
    assert len(store.refs()) == num_workers * num_snapshots
    assert store.verify()["ok"]
    assert not list((store.path / "tmp").iterdir())


def collected(folder: Path) -> None:
    """Run writers, a remover and two collectors without any grace: what is listed at the end is whole."""
    path, num_rounds = folder / "store", 40
    store = Store.open(path, create=True)

    def write(worker: int) -> None:
        num_done = 0
        for seed in range(num_rounds):
            try:
                put(store, seed=seed % 5, num_retrained=2, name=f"w{worker}")
                if seed % 3 == worker:
                    store.remove_snapshot(f"w{worker}")
                num_done += 1
            except SnapshotNotFound:
                continue  # another writer has the same snapshot and removed it
            except StoreError as error:
                if "a gc removed it" not in str(error):
                    raise
        assert num_done > num_rounds // 4, num_done

    def collect() -> None:
        for _ in range(num_rounds):
            store.gc(grace_s=0)

    writers = [fork(lambda worker=worker: write(worker)) for worker in range(3)]
    collectors = [fork(collect) for _ in range(2)]
    exit_codes = [wait(process) for process in writers + collectors]
    assert exit_codes == [0] * 5, exit_codes
    report = store.verify()
    assert report["ok"], report
    for manifest in store.manifests():
        read(store, manifest.id)
    store.gc(grace_s=0)
    needed = {block.digest for manifest in store.manifests() for block in manifest.blocks}
    assert store.stats()["num_blocks"] == len(needed)
    assert not list((store.path / "tmp").iterdir())


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"struck": struck, "together": together, "collected": collected}[sys.argv[1]](Path(sys.argv[2]))
