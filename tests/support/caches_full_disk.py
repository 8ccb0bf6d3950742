"""The caches of a dataset on a memory disk with room for some of their pages, from none to all.

Run as `unshare --user --map-root-user --mount python caches_full_disk.py FOLDER`; exits 0 when each cache answered or
said that the disk is full, 77 where no memory disk can be mounted. Each try is a process of its own, forked from this
one: a map that lacks a page kills its process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from PIL import Image

from raysnap.datasets import disk_cache
from raysnap.datasets.dataset import read_folder
from raysnap.datasets.image_file import read_image
from raysnap.datasets.pixel_cache import PixelCache
from raysnap.datasets.resizing import Resizing
from raysnap.errors import DataError
from raysnap.training.prefix_cache import PrefixCache

SKIPPED = 77
PAGE_BYTES = 4096
NUM_ITEMS = 6 * PAGE_BYTES // 16  # so that their records take several pages


def fill(disk: Path, num_free_pages: int) -> None:
    """Take all the room but that of a few pages."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(PAGE_BYTES))
    os.truncate(filler, max(0, filler.stat().st_size - num_free_pages * PAGE_BYTES))


def read_pixels(dataset_dir: Path) -> None:
    dataset = read_folder(dataset_dir)
    items = dataset.splits["train"]
    PixelCache._check_room = lambda *room: None  # as if others had filled the disk after the cache found room there
    try:
        cache = PixelCache.open(items, dataset, Resizing(32))
        pixels = cache.read(range(len(items)), 32)
    except DataError as error:
        if "No space left on device" not in str(error):
            raise
    else:
        assert len(pixels) == len(items)


def read_outputs(dataset_dir: Path) -> None:
    disk_cache.KEEP_FREE_BYTES = -(2**30)  # as if others had filled the disk after the cache found room there
    try:
        outputs = PrefixCache.beside(dataset_dir, 1, 2**30).open({}, NUM_ITEMS, (16,), torch.float32)
        assert outputs is not None
        outputs.fill(lambda positions: positions[:, None].expand(-1, 16).float())
        found = outputs.read(torch.arange(NUM_ITEMS), torch.device("cpu"))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    else:
        assert torch.equal(found[:, 0], torch.arange(NUM_ITEMS).float())


def read_sparse_image(dataset_dir: Path) -> None:
    path = dataset_dir / "sparse.bmp"
    try:
        Image.new("L", (256, 256)).save(path)
    except OSError:
        return
    num_bytes = path.stat().st_size
    os.truncate(path, PAGE_BYTES)
    os.truncate(path, num_bytes)
    fill(dataset_dir.parent, num_free_pages=0)
    with contextlib.suppress(DataError):
        read_image(path)


def ends_well(act: Callable[[Path], None], dataset_dir: Path) -> bool:
    process = os.fork()
    if not process:
        status = 70
        try:
            act(dataset_dir)
            status = 0
        except BaseException:  # noqa: BLE001 - the parent only sees how this process ends
            traceback.print_exc()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status:
        sys.stderr.write(f"{act.__name__}: ended with {status}\n")
    return status == 0


def mounted(folder: Path, act: Callable[[Path], bool]) -> bool | None:
    """Return what `act` returns of a new memory disk; None where none can be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={256 * PAGE_BYTES}", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        return None
    try:
        return act(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def check(disk: Path, num_free_pages: int) -> bool:
    for number in range(4):
        path = disk / "data" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(path)
    good = True
    for act in (read_pixels, read_outputs, read_sparse_image):
        fill(disk, num_free_pages)
        good &= ends_well(act, disk / "data")
    return good


def main(folder: Path) -> int:
    disk = folder / "disk"
    disk.mkdir()
    torch.set_num_threads(1)
    for num_free_pages in (0, 1, 2, 3, 4, 6, 9, 14, 30, 130):
        os.environ["XDG_CACHE_HOME"] = str(disk / "cache")
        good = mounted(disk, lambda disk, pages=num_free_pages: check(disk, pages))
        if good is None:
            return SKIPPED
        if not good:
            sys.stderr.write(f"with {num_free_pages} free pages\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
