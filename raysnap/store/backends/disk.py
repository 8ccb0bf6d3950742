"""The files of a store in a folder, opened and listed; and what the system's errors on them mean.

An error is damage, a limit of the system, or what this user may do; and it says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from blake3 import blake3

from raysnap.errors import SYSTEM_LIMITS, StoreDamaged, StoreError, StoreUnreadable
from raysnap.store.backends.place import MAX_OBJECT_BYTES, OBJECTS, RECORDS, REFS, SNAPSHOTS, STORE_FILE, TMP, Allocate

OnPiece: TypeAlias = Callable[[int], None]
"""Called with the number of bytes of each piece that was read."""

CHUNK_BYTES = 2**20


def open_regular(path: Path) -> io.FileIO:
    """Open the file for reading; refuse a pipe in its place, where `open` would wait for a writer."""
    return io.FileIO(path, opener=_open_regular)


def _open_regular(name: str, flags: int) -> int:
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", name)
    return descriptor


def read_verified(
    file: io.FileIO, digest: str, allocate: Allocate | None = None, on_piece: OnPiece | None = None
) -> memoryview:
    """Read an object's file into memory of its own, verify the digest of that memory and return it.

    Bytes are read and hashed chunk by chunk, so that hashing finds them in the CPU's cache.

    Raises:
        StoreDamaged: it has another digest.
        StoreError: the system refuses to read it.
    """
    import numpy as np  # a tenth of a second that listing a store does without

    num_bytes = os.fstat(file.fileno()).st_size
    if num_bytes > MAX_OBJECT_BYTES:
        raise StoreDamaged(f"expected at most {MAX_OBJECT_BYTES} bytes, found {num_bytes}")
    hasher, num_read = blake3(), 0
    try:
        buffer = allocate(num_bytes) if allocate else np.empty(num_bytes, dtype=np.uint8).data
        while count := file.readinto(buffer[num_read : num_read + CHUNK_BYTES]):
            hasher.update(buffer[num_read : num_read + count])
            num_read += count
            if on_piece is not None:
                on_piece(count)
    except MemoryError:
        raise StoreError(f"block {digest}: its {num_bytes} bytes do not fit into memory") from None
    except OSError as error:
        raise read_error(Path(str(file.name)), error, "the file can't be read") from None
    if num_read != num_bytes or hasher.hexdigest() != digest:
        raise StoreDamaged(f"its {num_read} bytes have the BLAKE3 {hasher.hexdigest()}")
    return buffer


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read the file, but at most one byte more than `max_bytes`.

    Raises:
        OSError: it can't be read.
    """
    with io.BufferedReader(open_regular(path)) as file:
        return file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)


def entries_in(folder: Path) -> list[os.DirEntry[str]]:
    """Return all entries of one of the store's folders; none of one that was empty and got lost when it was copied.

    Raises:
        StoreDamaged: the folder is missing, and not because it was empty.
        StoreError: the system refuses to read it.
    """
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        if _was_empty(folder):
            return []
        raise StoreDamaged(f"{folder}: expected a folder of the store, found none; restore it from a backup") from None
    except OSError as error:
        raise read_error(folder, error, f"{folder}: can't be read") from None


def _was_empty(folder: Path) -> bool:
    """Return whether a folder that is missing in a store can have been empty, as many tools copy no empty folders."""
    root = folder.parent
    if not (root / STORE_FILE).exists():
        return False
    if folder.name == SNAPSHOTS:
        return not any((root / OBJECTS).glob("??/*"))
    if folder.name == OBJECTS:
        return not any((root / SNAPSHOTS).glob("*"))
    return folder.name in (REFS, TMP, RECORDS)


def names_in(folder: Path) -> list[str]:
    """Return the names of all entries of the folder; raise as `entries_in` does."""
    return [entry.name for entry in entries_in(folder)]


def discard(path: Path) -> None:
    """Remove a staged file, if it is still there."""
    with contextlib.suppress(OSError):
        path.unlink()


# What a path itself is: something else than the store's file or folder. All other errors are the system's.
_NOT_A_FILE = (errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


def read_error(path: Path, error: OSError, where: str) -> StoreError | StoreDamaged:
    """Return the error for a file or folder of the store that can't be read.

    Args:
        path: the file or folder.
        error: what the system said. Where it says that something else is there, the store is damaged; permissions,
            limits and failing disks say nothing of the store.
        where: how a message of damage begins, which its reader completes.
    """
    if error.errno in _NOT_A_FILE:
        return StoreDamaged(f"{where}: {error.strerror}")
    if error.errno in SYSTEM_LIMITS:
        return StoreError(f"{path}: can't be read: {SYSTEM_LIMITS[error.errno]}")
    hints = {
        errno.EACCES: "; ask its owner to let you read it (chmod)",
        errno.EPERM: "; ask its owner to let you read it (chmod)",
        errno.EIO: "; the disk or its server fails: see the system's log, and copy the store from a backup if it stays",
    }
    return StoreUnreadable(f"{path}: can't be read: {error.strerror or error}{hints.get(error.errno or 0, '')}")


@contextlib.contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError from a write into a StoreError of one line that says what is wrong."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> StoreError:
    """Return the error for a file of the store that can't be written."""
    hints = SYSTEM_LIMITS | {
        errno.ENOSPC: "the disk is full; free some space (`raysnap store gc`) and try again",
        errno.EDQUOT: "the disk quota is used up; free some space (`raysnap store gc`) and try again",
        errno.EFBIG: "the file would exceed this process's size limit; raise it (ulimit -f) and try again",
        errno.EROFS: "the file system is read-only; a store there can be read and searched, not written",
        errno.EACCES: "permission denied; a store without write permission can be read and searched, not written",
    }
    hint = hints.get(error.errno or 0, f"{error.strerror or error}")
    return StoreError(f"{path}: can't be written: {hint}; the store is intact")
