"""The store's files: staged in STORE/tmp, published by one rename, opened, set aside and restored.

Nothing here knows what a block or a manifest means. `publish` is the one place where a file becomes visible.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from blake3 import blake3

from raysnap.atomic import sync_dir
from raysnap.errors import SYSTEM_LIMITS, StoreDamaged, StoreError, StoreUnreadable
from raysnap.store.manifest import check_digest, is_digest

OnRead: TypeAlias = Callable[[str, int, float], None]
"""Called after each piece of an object is read; it may block to slow reading down.

Arguments: the object's digest, the piece's number of bytes, and when reading the object began, in seconds of
`time.perf_counter`.
"""

Chunk: TypeAlias = bytes | memoryview

CHUNK_BYTES = 2**20
MAX_ATTEMPTS = 10
MAX_OBJECT_BYTES = 2**36

_SHARDS = [f"{number:02x}" for number in range(256)]
_SET_ASIDE = re.compile(r"gone-[0-9a-f]{16}-([0-9a-f]{64})")


class Files:
    """The folders of one store and the operations on the files in them."""

    def __init__(self, root: Path, on_read: OnRead | None = None):
        self.root = root
        self.on_read = on_read
        self.objects_dir = root / "objects"
        self.snapshots_dir = root / "snapshots"
        self.refs_dir = root / "refs"
        self.records_dir = root / "records"
        self.tmp_dir = root / "tmp"

    def create_folders(self) -> None:
        """Create the store's folders, including all shards, so that publishing an object need not create one."""
        made = [self.root, *(folder for folder in self.root.parents if not folder.exists())]
        with translate_write_errors(self.root):
            for folder in (self.objects_dir, self.snapshots_dir, self.refs_dir, self.tmp_dir):
                folder.mkdir(parents=True, exist_ok=True)
            for shard in _SHARDS:
                (self.objects_dir / shard).mkdir(exist_ok=True)
            sync_dir(self.objects_dir)
            sync_dir(self.root)
            for folder in made:
                sync_dir(folder.parent)

    def create_records_dir(self) -> None:
        """Create the folder of records, which a store has from its first record on."""
        with translate_write_errors(self.records_dir):
            if not self.records_dir.is_dir():
                self.records_dir.mkdir(exist_ok=True)
                sync_dir(self.root)

    def object_path(self, digest: str) -> Path:
        """Return the path of the object with this digest, which is checked before it becomes a path."""
        check_digest(digest, "block digest")
        return self.objects_dir / digest[:2] / digest

    def stage(self, kind: str, chunks: Iterable[Chunk], digest: str | None = None) -> Path:
        """Write these bytes to a new file in STORE/tmp: on the disk, but not yet visible.

        Raises:
            StoreError: it can't be written, or its bytes are not those of `digest`: they changed since it was computed.
        """
        path = self.tmp_dir / f"{kind}-{os.getpid()}-{secrets.token_hex(8)}"
        hasher = blake3()
        try:
            with translate_write_errors(path), self._new_file(path) as file:
                for chunk in chunks:
                    file.write(chunk)
                    hasher.update(chunk)
                file.flush()
                os.fsync(file.fileno())
            if digest is not None and hasher.hexdigest() != digest:
                raise StoreError(f"block {digest}: its tensors changed while they were written; nothing was stored")
        except BaseException:
            discard(path)
            raise
        return path

    def _new_file(self, path: Path) -> BinaryIO:
        try:
            return path.open("xb")
        except FileNotFoundError:
            self.recreate_folders()
            return path.open("xb")

    def recreate_folders(self) -> None:
        """Create those of the store's folders that a copy without empty folders left out.

        Raises:
            StoreDamaged: one that is missing was not empty.
        """
        folders = (self.objects_dir, self.snapshots_dir, self.refs_dir, self.tmp_dir)
        for folder in folders:
            entries_in(folder)
        for folder in folders:
            folder.mkdir(exist_ok=True)
        sync_dir(self.root)

    @contextlib.contextmanager
    def staged(self, kind: str, chunks: Iterable[Chunk], digest: str | None = None) -> Iterator[Path]:
        """Do as `stage`, and remove the file at the end of the `with` block unless it was published."""
        path = self.stage(kind, chunks, digest)
        try:
            yield path
        finally:
            discard(path)

    def publish(self, staged: Path, target: Path) -> bool:
        """Make a staged file visible as `target`; return False if a `gc` removed it first.

        The promise: the bytes were fsynced by `stage`, so the rename shows all of them or nothing, and the folder is
        fsynced before this returns, so what was reported as written survives a power cut.
        """
        with translate_write_errors(target):
            try:
                staged.replace(target)
            except FileNotFoundError:
                if not staged.exists():
                    return False
                self.recreate_folders()
                target.parent.mkdir(exist_ok=True)
                sync_dir(target.parent.parent)
                staged.replace(target)
            sync_dir(target.parent)
        return True

    def write_new(self, target: Path, content: bytes) -> None:
        """Create `target` with `content`, unless another process was faster.

        An existing file is not replaced: `ref_lock` locks that very file.
        """
        for _ in range(MAX_ATTEMPTS):
            with self.staged("file", [content]) as staged, translate_write_errors(target):
                try:
                    os.link(staged, target)
                except FileExistsError:
                    pass
                except FileNotFoundError:
                    continue  # a gc without grace removed the staged file
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ENOTSUP):
                        raise
                    self.publish(staged, target)  # a file system without hard links, such as exFAT
                self.sync(target)
                return
        raise gc_race_error(target)

    def write(self, target: Path, content: bytes) -> None:
        """Write `content` to `target`, replacing any file there."""
        for _ in range(MAX_ATTEMPTS):
            with self.staged("file", [content]) as staged:
                if self.publish(staged, target):
                    return
        raise gc_race_error(target)

    def sync(self, target: Path) -> None:
        """Fsync the folder of a visible file: the process that renamed it may have died before its own fsync."""
        with translate_write_errors(target):
            sync_dir(target.parent)

    def remove(self, target: Path) -> bool:
        """Remove `target`, on the disk too, and return whether it was there."""
        with translate_write_errors(target):
            try:
                target.unlink()
            except FileNotFoundError:
                return False
            sync_dir(target.parent)
        return True

    def refresh(self, digest: str, num_bytes: int) -> bool:
        """Touch the object, so that its grace restarts, and return whether it is there in full length.

        Touching is the test for existence: an object that a `gc` has just set aside can't be touched and is restored
        here.
        """
        path = self.object_path(digest)
        for _ in range(MAX_ATTEMPTS):
            try:
                os.utime(path)
                return path.stat().st_size == num_bytes
            except FileNotFoundError:
                if not self.restore(digest):
                    return False
            except PermissionError:
                return False
            except OSError as error:
                raise write_error(path, error) from error
        return False

    def sync_shards(self, digests: Iterable[str]) -> None:
        """Fsync the folders of these objects: another process may have renamed one and not yet fsynced it."""
        for digest in {digest[:2]: digest for digest in digests}.values():
            self.sync(self.object_path(digest))

    def open_object(self, digest: str) -> io.FileIO:
        """Open the object for reading, from where a `gc` set it aside if need be.

        Raises:
            StoreDamaged: it is in neither place, or is no file.
            StoreError: the system refuses to open it.
        """
        path = self.object_path(digest)
        try:
            with contextlib.suppress(FileNotFoundError):
                return open_regular(path)
            for _ in range(MAX_ATTEMPTS):
                for candidate in (*self.find_set_aside(digest), path):
                    with contextlib.suppress(FileNotFoundError):
                        return open_regular(candidate)
        except OSError as error:
            raise read_error(path, error, "the file can't be read") from None
        raise StoreDamaged("the file is missing")

    def read_object(self, digest: str, allocate: Callable[[int], memoryview] | None = None) -> memoryview:
        """Read the object into memory of its own, verify the digest of that memory and return it.

        Bytes are read and hashed chunk by chunk, so that hashing finds them in the CPU's cache.

        Args:
            digest: the object's digest.
            allocate: returns memory of the given number of bytes, where a special kind is needed.

        Raises:
            StoreDamaged: it is missing, no file or has another digest.
            StoreError: the system refuses to read it.
        """
        import numpy as np  # a tenth of a second that listing a store does without

        started_s = time.perf_counter()
        with self.open_object(digest) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes > MAX_OBJECT_BYTES:
                raise StoreDamaged(f"expected at most {MAX_OBJECT_BYTES} bytes, found {num_bytes}")
            hasher, num_read = blake3(), 0
            try:
                buffer = allocate(num_bytes) if allocate else np.empty(num_bytes, dtype=np.uint8).data
                while count := file.readinto(buffer[num_read : num_read + CHUNK_BYTES]):
                    hasher.update(buffer[num_read : num_read + count])
                    num_read += count
                    if self.on_read is not None:
                        self.on_read(digest, count, started_s)
            except MemoryError:
                raise StoreError(f"block {digest}: its {num_bytes} bytes do not fit into memory") from None
            except OSError as error:
                raise read_error(self.object_path(digest), error, "the file can't be read") from None
        if num_read != num_bytes or hasher.hexdigest() != digest:
            raise StoreDamaged(f"its {num_read} bytes have the BLAKE3 {hasher.hexdigest()}")
        return buffer

    def find_set_aside(self, digest: str | None = None) -> list[Path]:
        """Return the files in STORE/tmp that a `gc` moved out of objects, those of this digest or all."""
        matches = (_SET_ASIDE.fullmatch(name) for name in names_in(self.tmp_dir))
        return [self.tmp_dir / match[0] for match in matches if match and digest in (None, match[1])]

    def restore(self, digest: str) -> bool:
        """Move an object that a `gc` set aside back into objects, and return whether it is there now."""
        for path in self.find_set_aside(digest):
            if self.publish(path, self.object_path(digest)):
                return True
        return self.object_path(digest).exists()

    def objects(self) -> Iterator[os.DirEntry[str]]:
        """Yield every file in objects whose name is a digest in its own shard."""
        present = set(names_in(self.objects_dir))
        for shard in filter(present.__contains__, _SHARDS):
            entries = entries_in(self.objects_dir / shard)
            yield from (entry for entry in entries if is_digest(entry.name) and entry.name.startswith(shard))

    def now_ns(self) -> int:
        """Return the file system's own time in nanoseconds, which the ages of its files are measured by."""
        probe = self.tmp_dir / f"clock-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            with probe.open("xb") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return time.time_ns()
        finally:
            discard(probe)

    @contextlib.contextmanager
    def ref_lock(self) -> Iterator[None]:
        """Hold the lock under which a ref is compared and moved; the kernel releases it if its holder dies.

        Blocks and manifests need no lock: their names follow from their content. A ref is the one name that can move.
        """
        path = self.root / "store.json"
        with translate_write_errors(path), contextlib.ExitStack() as opened:
            while True:
                file = opened.enter_context(path.open("r+b"))
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break  # else the store got a newer format while this process waited, and with it another file
            yield


def open_regular(path: Path) -> io.FileIO:
    """Open the file for reading; refuse a pipe in its place, where `open` would wait for a writer."""
    return io.FileIO(path, opener=_open_regular)


def _open_regular(name: str, flags: int) -> int:
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", name)
    return descriptor


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
    if not (root / "store.json").exists():
        return False
    if folder.name == "snapshots":
        return not any((root / "objects").glob("??/*"))
    if folder.name == "objects":
        return not any((root / "snapshots").glob("*"))
    return folder.name in ("refs", "tmp")


def names_in(folder: Path) -> list[str]:
    """Return the names of all entries of the folder; raise as `entries_in` does."""
    return [entry.name for entry in entries_in(folder)]


def discard(path: Path) -> None:
    """Remove a staged file, if it is still there."""
    with contextlib.suppress(OSError):
        path.unlink()


def gc_race_error(target: Path) -> StoreError:
    """Return the error for a file that a gc without grace removed every time it was about to be published."""
    return StoreError(f"{target}: a gc removed it {MAX_ATTEMPTS} times while it was being written; try again")


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
