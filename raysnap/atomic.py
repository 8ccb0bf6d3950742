"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` when the block ends without an error.

    Readers see the old file or the new one, never a part; once the block has ended, a power cut leaves the new one.
    Processes that replace the same file at the same time don't disturb each other: the last one wins.

    Raises:
        OSError: the file can't be written; `path` is as it was.
    """
    partial_path = _partial_path(path)
    try:
        with partial_path.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial_path.replace(path)
        sync_dir(path.parent)
    finally:
        partial_path.unlink(missing_ok=True)


def _partial_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


def write_atomically(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8, as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def create_zeros(path: Path, num_bytes: int) -> None:
    """Create a file of zeros that has its place on the disk, unless one of that length is there already.

    A sparse file gets its pages when they are first used; through a map on a full memory disk, even by reading. Of
    processes that create the same file at the same time, one wins and the others take its file.

    Raises:
        OSError: it can't be written; there is no room for it, for example.
    """
    if path.is_file():
        if path.stat().st_size == num_bytes:
            return
        path.unlink(missing_ok=True)
    partial_path = _partial_path(path)
    try:
        with partial_path.open("xb") as file:
            file.write(bytes(num_bytes))
        try:
            os.link(partial_path, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP):
                raise
            partial_path.replace(path)  # a file system without hard links, such as exFAT
    finally:
        partial_path.unlink(missing_ok=True)


@contextmanager
def plain_disk_errors() -> Iterator[None]:
    """Raise the OSError that a file raised inside `torch.save`, which turns it into `unexpected pos 704 vs 598`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def write_all_at(file: int, content: Any, offset: int) -> None:
    """Write the bytes of a buffer at an offset of an open file, in as many writes as it takes."""
    view = memoryview(content).cast("B")
    while view:
        num_written = os.pwrite(file, view, offset)
        view, offset = view[num_written:], offset + num_written


def sync_data(file: int) -> None:
    """Write the contents of an open file to the disk, without what only its times would need."""
    getattr(os, "fdatasync", os.fsync)(file)


def sync_dir(folder: Path) -> None:
    """Write the folder's entries to the disk: names that were created, renamed or removed in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
