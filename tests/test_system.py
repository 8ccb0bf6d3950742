"""Facts about the machine: where caches lie, which versions are installed, what time it is."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from raysnap.system import (
    cache_place,
    cache_places,
    free_memory_bytes,
    num_cpus,
    package_version,
    user_cache_dir,
    utc_timestamp,
)


def test_a_timestamp_is_now_in_utc_to_the_second():
    found = datetime.strptime(utc_timestamp(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs(found - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_package_that_is_not_installed_has_no_version():
    assert package_version("no-such-package-anywhere") is None
    assert package_version("numpy").count(".") >= 1


def test_some_of_the_machines_memory_is_free():
    assert 0 < free_memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


FREED = """
import os
from pathlib import Path

from raysnap.system import giving_back_memory

def rss_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before = rss_bytes()
with giving_back_memory():
    pieces = [bytearray(2**16) for _ in range(2**11)]
    kept = pieces[::100]
    assert rss_bytes() > before + 2**26, "128 MiB were not taken"
    del pieces
assert rss_bytes() < before + 2**25 and len(kept) == 21, "they were not given back"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is asked")
def test_freed_memory_is_given_back():
    # In a process of its own: one that has freed memory before takes from that, and its size says nothing.
    subprocess.run([sys.executable, "-c", FREED], check=True)


def test_this_process_may_run_on_a_cpu():
    assert 1 <= num_cpus() <= os.cpu_count()


@pytest.mark.parametrize(("home", "expected"), [("", ".cache/raysnap"), ("elsewhere", "elsewhere/raysnap")])
def test_the_users_cache_follows_xdg_cache_home(tmp_path, monkeypatch, home, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home) if home else "")
    assert user_cache_dir() == tmp_path / expected


def test_a_writable_dataset_holds_its_cache(tmp_path):
    assert cache_place(tmp_path, "features") == tmp_path.resolve() / ".raysnap" / "features"


def test_each_dataset_has_its_own_cache_in_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    birds, cars = (cache_place(tmp_path / name, "features") for name in ("birds", "cars"))
    assert birds == cache_places(tmp_path / "birds", "features")[1] != cars
    assert birds.parent == cars.parent == user_cache_dir() / "features"
