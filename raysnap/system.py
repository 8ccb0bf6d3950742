"""Facts of this machine: cores, cache folders, package versions, the time."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from blake3 import blake3


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


def num_cpus() -> int:
    """Return the number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def user_cache_dir() -> Path:
    """This user's cache folder for raysnap, perhaps not made yet: below `XDG_CACHE_HOME` or `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "raysnap"


def cache_place(dataset_root: Path, kind: str) -> Path:
    """The folder of a dataset's cache, perhaps not made: beside its pixels or else in the user's cache folder."""
    beside = dataset_root / ".raysnap"
    if os.access(beside if beside.is_dir() else dataset_root, os.W_OK | os.X_OK):
        return beside.resolve() / kind
    return user_cache_dir() / kind / blake3(os.fsencode(dataset_root.resolve())).hexdigest()[:16]
