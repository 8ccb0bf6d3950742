"""What a user without write permission can do with the store: run as `python read_only_reader.py STORE` from the
folder of the store.

A process of root becomes nobody; the folders above the one it stands in need not be open to it.
"""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raysnap.errors import StoreError
from raysnap.models import tensor_bytes as objects
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, make_blocks, put, read

NOBODY = 65534
READABLE = 0o555


def main(path: Path) -> None:
    """Read, list, filter and verify the store; print what each write says."""
    objects.block_digest({"x": torch.zeros(1)})
    for folder, _, names in os.walk(path):
        Path(folder).chmod(READABLE)
        for name in names:
            (Path(folder) / name).chmod(READABLE)
    Path.cwd().chmod(0o755)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    store = Store.open(path)
    assert equal(read(store, "mine"), make_blocks())
    assert [summary.names for summary in store.summaries("accuracy == None")] == [("mine",)]
    assert store.verify()["ok"]
    snapshot = store.resolve("mine")
    writes = {
        "put": lambda: put(store, seed=7),
        "put again": lambda: put(store),
        "name": lambda: store.set_ref("other", snapshot),
        "remove a name": lambda: store.remove_ref("mine"),
        "remove": lambda: store.remove_snapshot("mine"),
        "gc": lambda: store.gc(grace_s=0),
    }
    for name, write in writes.items():
        try:
            write()
        except StoreError as error:
            sys.stdout.write(f"{name}: {error}\n")
        else:
            raise AssertionError(f"{name} wrote to a store that can't be written")
    assert store.verify()["ok"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
