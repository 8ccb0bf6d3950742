"""Where raysnap may keep what it can make again, and how a whole file appears there or anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from blake3 import blake3


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


def write_atomically(path: Path, text: str) -> None:
    """Writes a whole file: readers see the old one or the new one, never a part."""
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial_path.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def write_all_at(file: int, content: Any, offset: int) -> None:
    """Writes the bytes of a buffer at an offset of an open file, whatever short writes it takes."""
    view = memoryview(content).cast("B")
    while view:
        num_written = os.pwrite(file, view, offset)
        view, offset = view[num_written:], offset + num_written
