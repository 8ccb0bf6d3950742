"""A bounded cache keeps to its budget, evicts what was used longest ago, and never what a process holds."""

import os
import shutil
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from raysnap.datasets.disk_cache import KEEP_FREE_BYTES, CacheUse, DiskCache, clear_cache, hold, mark_used


@pytest.fixture
def cache(tmp_path):
    """Return a cache of two places with three entries of 100 bytes, used in the order of their names."""
    places = (tmp_path / "first", tmp_path / "second")
    for place in places:
        place.mkdir()
    (places[0] / "a").write_bytes(bytes(100))
    (places[1] / "b").mkdir()
    (places[1] / "b" / "outputs.bin").write_bytes(bytes(100))
    (places[0] / "c").write_bytes(bytes(100))
    for time_s, path in enumerate((places[0] / "a", places[1] / "b", places[0] / "c")):
        os.utime(path, (time_s, time_s))
    return DiskCache(places, 300)


def names(cache):
    return {path.name for path in cache.entries()}


@pytest.mark.parametrize(
    ("num_bytes", "kept"), [(0, {"a", "b", "c"}), (1, {"b", "c"}), (100, {"b", "c"}), (101, {"c"}), (300, set())]
)
def test_the_least_recently_used_go_first(cache, num_bytes, kept):
    assert cache.make_room(cache.places[0], num_bytes)
    assert names(cache) == kept


def test_an_entry_that_was_used_again_stays(cache):
    mark_used(cache.places[0] / "a")
    assert cache.make_room(cache.places[0], 1)
    assert names(cache) == {"a", "c"}


def test_nothing_is_evicted_for_what_never_fits(cache):
    assert not cache.make_room(cache.places[0], 301)
    assert names(cache) == {"a", "b", "c"}


def test_a_held_entry_stays_until_it_is_let_go(cache):
    with (cache.places[1] / "b" / "outputs.bin").open("rb") as file, hold(file):
        assert not cache.make_room(cache.places[0], 300)
        assert cache.make_room(cache.places[0], 150)
        assert names(cache) == {"b"}
    assert cache.make_room(cache.places[0], 300)
    assert names(cache) == set()


@pytest.mark.parametrize(
    ("free_bytes", "num_written_bytes", "kept"),
    [(100, 0, {"a", "b", "c"}), (50, 0, {"b", "c"}), (50, 50, {"a", "b", "c"}), (-250, 0, None)],
)
def test_the_disk_keeps_its_reserve(cache, monkeypatch, free_bytes, num_written_bytes, kept):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=KEEP_FREE_BYTES + free_bytes))
    roomy = DiskCache(cache.places, 10**6)
    has_room = roomy.make_room(cache.places[0], 100, num_written_bytes=num_written_bytes)
    assert (has_room, names(cache)) == (kept is not None, kept or {"a", "b", "c"})


def test_bytes_that_a_sparse_file_lacks_count_as_used(cache, monkeypatch):
    with (cache.places[1] / "b" / "outputs.bin").open("wb") as file:
        file.truncate(200)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=KEEP_FREE_BYTES + 299))
    roomy = DiskCache(cache.places, 10**6)
    assert roomy.make_room(cache.places[0], 100)
    assert "a" not in names(cache)


def test_locks_and_unfinished_files_are_no_entries(cache):
    for name in (".lock", "d.partial"):
        (cache.places[0] / name).write_bytes(bytes(1000))
    assert names(cache) == {"a", "b", "c"}


def test_places_that_do_not_exist_are_empty_until_locked(tmp_path):
    cache = DiskCache((tmp_path / "deep" / "place",), 100)
    assert cache.entries() == []
    with ExitStack() as stack:
        stack.enter_context(cache.locked())
        assert cache.places[0].is_dir()


def test_clearing_leaves_what_has_no_entrys_name(tmp_path):
    entry, photos = tmp_path / ("a" * 32), tmp_path / "holiday"
    for folder in (entry, photos):
        folder.mkdir()
        (folder / "photo.jpg").write_bytes(b"x")
    clear_cache(CacheUse("pixels", None, tmp_path, 2))
    assert not entry.exists() and (photos / "photo.jpg").exists()
