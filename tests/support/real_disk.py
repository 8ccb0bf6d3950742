"""A folder on a disk, for tests of what only a disk has, such as files that aren't in memory."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raysnap.bench.page_cache import filesystem
from raysnap.bench.timed_search import MEMORY_FILESYSTEMS
from tests.support import ROOT


@contextmanager
def folder_on_disk() -> Iterator[Path]:
    """Return a new folder on a disk, wherever the other temporary files are; it is removed at the end.

    A test is skipped where all places for it are in memory.
    """
    places = [Path(tempfile.gettempdir()), Path("/var/tmp"), ROOT]
    place = next((one for one in places if one.is_dir() and filesystem(one) not in MEMORY_FILESYSTEMS), None)
    if place is None:
        pytest.skip("all temporary folders are in memory; files there are never cold")
    with tempfile.TemporaryDirectory(prefix="raysnap-", dir=place) as folder:
        yield Path(folder)
