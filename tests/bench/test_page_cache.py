"""The page cache: what is written is in memory, what is dropped is not, and what can't be dropped is found out."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysnap.bench.machine import Moment
from raysnap.bench.page_cache import Residency, drop, filesystem, load, residency
from tests.support.real_disk import folder_on_disk

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def on_disk() -> Iterator[Path]:
    with folder_on_disk() as folder:
        yield folder


def written(path: Path, num_bytes: int) -> Path:
    path.write_bytes(os.urandom(num_bytes))
    return path


def test_a_dropped_file_is_read_from_the_disk(on_disk):
    paths = [written(on_disk / "long", 3_000_001), written(on_disk / "short", 10), written(on_disk / "empty", 0)]
    assert residency(paths) == Residency(3_000_011, 3_000_011)
    drop([*paths, on_disk / "gone"])
    assert residency([*paths, on_disk / "gone"]) == Residency(3_000_011, 0)
    before = Moment.now().read_bytes
    paths[0].read_bytes()
    assert Moment.now().read_bytes - before >= 3_000_001


def test_a_loaded_file_is_read_from_memory(on_disk):
    path = written(on_disk / "file", 3_000_001)
    drop([path])
    load([path, on_disk / "gone"])
    assert residency([path]).state == "warm"
    before = Moment.now().read_bytes
    path.read_bytes()
    assert Moment.now().read_bytes == before


def test_the_holes_of_a_sparse_file_count_for_nothing(on_disk):
    path = on_disk / "sparse"
    with path.open("wb") as file:
        file.truncate(40_000_000)
        file.seek(20_000_000)
        file.write(os.urandom(100_000))
        file.flush()
        os.fsync(file.fileno())
    drop([path])
    load([path])
    found = residency([path])
    assert found.state == "warm"
    assert 100_000 <= found.file_bytes < 1_000_000


@pytest.mark.skipif(not os.access(SHARED_MEMORY, os.W_OK), reason="there is no /dev/shm")
def test_a_file_in_memory_can_not_be_dropped_and_is_seen_to_stay(tmp_path):
    path = SHARED_MEMORY / f"raysnap-test-{os.getpid()}"
    try:
        written(path, 100_000)
        drop([path])
        assert residency([path]).state == "warm"
        assert filesystem(path) == "tmpfs"
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("resident_bytes", "state"),
    [(1000, "warm"), (990, "warm"), (980, "mixed"), (11, "mixed"), (10, "cold"), (0, "cold"), (None, "unknown")],
)
def test_files_are_warm_or_cold_only_when_nearly_all_of_them_is(resident_bytes, state):
    assert Residency(1000, resident_bytes).state == state


def test_of_no_bytes_nobody_knows_whether_they_are_warm():
    assert Residency(0, 0).state == "unknown"
