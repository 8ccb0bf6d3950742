"""Facts about this machine: CPUs, cache folders, package versions, the time."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from blake3 import blake3

PRETEND_GPUS = "RAYSNAP_PRETEND_GPUS"
"""Environment variable; 1 lets what has a GPU of Ray's run on the CPU, for tests of clusters without GPUs."""

# What drivers of GPUs have on Linux: NVIDIA's, its in a container, on a Jetson and on Windows; AMD's.
GPU_DRIVERS = tuple(map(Path, ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")))

_entered_s: float | None = None  # when this process began to run a command


def package_version(package: str = "raysnap") -> str | None:
    """Return the version of an installed package; None where it is not installed, as Ray need not be."""
    from importlib import metadata  # 20 ms that reading a store does without

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def utc_timestamp() -> str:
    """Return the current time in UTC as ISO 8601 to the second, such as `2026-01-31T12:00:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def free_memory_bytes() -> int:
    """Return the bytes of main memory that this process may still take, of the machine's or its container's."""
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free_bytes = 1024 * int(facts["MemAvailable"].split()[0])
    except (OSError, KeyError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min([free_bytes, *(max(0, limit - used) for limit, used in _cgroup_memory())])


def _cgroup_memory() -> Iterator[tuple[int, int]]:
    """Yield the limit of each control group that this process is in, and what is used of it, caches left out."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names, inactive = Path("/sys/fs/cgroup"), ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            root, names = Path("/sys/fs/cgroup/memory"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
            inactive = "total_inactive_file"
        else:
            continue
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError, KeyError):  # the root has no limit, "max" is none
                limit, used = (int((group / name).read_text()) for name in names)
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield limit, used - int(stat[inactive])
            if group == root:
                break


def release_pages(memory_map: object) -> None:
    """Let go of the pages of a memory map (`mmap.mmap`) that were read; they are mapped again when they are read."""
    assert isinstance(memory_map, mmap.mmap), "an array of `np.memmap` is based on one"
    if hasattr(mmap, "MADV_DONTNEED"):
        memory_map.madvise(mmap.MADV_DONTNEED)


@contextmanager
def giving_back_memory() -> Iterator[None]:
    """Give memory that was freed inside back to the machine; the C library holds gigabytes of it otherwise."""
    try:
        yield
    finally:
        with suppress(OSError, AttributeError, TypeError):  # only glibc has it
            ctypes.CDLL(None).malloc_trim(0)


def num_cpus() -> int:
    """Return the number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu_driver() -> bool:
    """Return whether a GPU's driver may be here, which on Linux is known without torch."""
    return sys.platform != "linux" or any(path.exists() for path in GPU_DRIVERS)


def cpu_name() -> str:
    """Return the model of this machine's CPU, as far as the system says."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def user_cache_dir() -> Path:
    """Return this user's cache folder for raysnap, in `XDG_CACHE_HOME` or `~/.cache`; it may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "raysnap"


def cache_places(dataset_root: Path, kind: str) -> tuple[Path, Path]:
    """Return where a cache of that kind may lie for a dataset: in its folder, and in the user's cache folder."""
    identity = blake3(os.fsencode(dataset_root.resolve())).hexdigest()[:16]
    return dataset_root / ".raysnap" / kind, user_cache_dir() / kind / identity


def cache_place(dataset_root: Path, kind: str) -> Path:
    """Return the first of a dataset's `cache_places` that can be written; it may not exist yet."""
    in_dataset, in_user_cache = cache_places(dataset_root, kind)
    parent = in_dataset.parent
    is_writable = os.access(parent if parent.is_dir() else dataset_root, os.W_OK | os.X_OK)
    return parent.resolve() / kind if is_writable else in_user_cache


def note_entry() -> None:
    """Note that this process runs a command, and when it began."""
    global _entered_s
    _entered_s = time.perf_counter() - _age_s()


def since_enter_s() -> float:
    """Return the seconds since this process began; 0 where it runs no command, so that calls count from the call."""
    return 0.0 if _entered_s is None else time.perf_counter() - _entered_s


def _age_s() -> float:
    """Return how long ago this process began, to 10 ms; 0 where the system doesn't tell."""
    try:
        fields = Path("/proc/self/stat").read_text("ascii").rpartition(")")[2].split()
        began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_s)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
