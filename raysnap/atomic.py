"""Where raysnap may keep what it can make again, and how a whole file appears there or anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


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


def sync_dir(folder: Path) -> None:
    """Writes the folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
