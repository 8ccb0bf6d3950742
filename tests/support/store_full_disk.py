"""`raysnap store` on a disk that is really full: a memory disk of a few megabytes, in a mount namespace of its own.

Run as `unshare --user --map-root-user --mount python store_full_disk.py FOLDER WEIGHTS`; exits 0 when the store kept
its promises, 77 where no memory disk can be mounted. Each command is `python -m raysnap`, in a process of its own,
forked from this one, which has imported torch.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
import torch

from raysnap.errors import StoreError
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, make_blocks, put, read

SKIPPED = 77
DISK_BYTES = 16 * 2**20


def raysnap(*arguments: object) -> tuple[int, str]:
    """Return the exit code and the output, both streams, of one command."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.argv = ["raysnap", *map(str, arguments)]
        status = 70
        try:
            runpy.run_module("raysnap", run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as output:
        text = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), text


def fill(disk: Path) -> None:
    """Take all the room that is left."""
    with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def check_refused(arguments: tuple[object, ...], store: Store, num_snapshots: int) -> None:
    """Check that the command ends with an error that says why, and that the store is what it was."""
    exit_code, text = raysnap(*arguments)
    assert exit_code == 2, (exit_code, text)
    assert "the disk is full" in text and "Traceback" not in text, text
    assert store.verify()["ok"]
    assert len(store.manifests()) == num_snapshots
    assert equal(read(store, "old"), make_blocks(1))
    assert not list((store.path / "tmp").iterdir())


def check(disk: Path, weights: Path) -> None:
    store = Store.open(disk / "store", create=True)
    put(store, seed=1, name="old")
    add = ("store", "add", weights, "--arch", "mobilenet_v3_small", "--name", "mine", "--store", store.path)
    filler = disk / "filler"

    fill(disk)
    check_refused(add, store, num_snapshots=1)
    exit_code, text = raysnap("store", "ls", "--store", store.path)
    assert exit_code == 0 and "old" in text, text  # the index can't be written, the list is right all the same

    os.truncate(filler, filler.stat().st_size - weights.stat().st_size // 2)
    check_refused(add, store, num_snapshots=1)
    num_blocks = store.stats()["num_blocks"]
    assert num_blocks > 3  # some of the new blocks found room
    fill(disk)
    exit_code, text = raysnap("store", "gc", "--grace", 0, "--store", store.path)
    assert exit_code == 0, text
    assert store.stats()["num_blocks"] == 3

    filler.unlink()
    digest = store.put_block({"x": torch.zeros(50_000)}).digest
    fill(disk)
    with pytest.raises(StoreError, match="draft.*the disk is full"):
        store.put_snapshot(architecture="resnet18", blocks=[("stem", digest)], num_classes=4)
    assert len(store.manifests()) == 1

    filler.unlink()
    exit_code, text = raysnap(*add)
    assert exit_code == 0, text
    fill(disk)
    with pytest.raises(StoreError, match="the disk is full"):
        store.set_ref("other", store.resolve("mine"))
    assert store.refs().keys() == {"old", "mine"}
    assert raysnap("store", "verify", "--store", store.path)[0] == 0


def main(folder: Path, weights: Path) -> int:
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        return SKIPPED
    try:
        check(disk, weights)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
