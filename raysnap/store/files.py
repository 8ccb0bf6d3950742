"""The store's files: staged in STORE/tmp, published by one rename, opened, set aside and put back.

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
from typing import Any

from blake3 import blake3

from raysnap.atomic import sync_dir
from raysnap.errors import StoreDamaged, StoreError
from raysnap.store.manifest import check_digest, is_digest

CHUNK_BYTES = 2**20
MAX_ATTEMPTS = 10
MAX_OBJECT_BYTES = 2**36

_SHARDS = [f"{number:02x}" for number in range(256)]
_SET_ASIDE = re.compile(r"gone-[0-9a-f]{16}-([0-9a-f]{64})")


class Files:
    """The folders of one store and what may be done to the files in them.

    Attributes:
        on_read: called after each piece of an object that was read, with the object's digest, the piece's bytes and
            the time at which reading the object began, in seconds of `time.perf_counter`; it may wait.
    """

    def __init__(self, root: Path, on_read: Callable[[str, int, float], None] | None = None):
        self.root = root
        self.on_read = on_read
        self.objects_dir = root / "objects"
        self.snapshots_dir = root / "snapshots"
        self.refs_dir = root / "refs"
        self.tmp_dir = root / "tmp"

    def create_folders(self) -> None:
        """Makes the store's folders, all shards included, so that a published object never waits for its folder."""
        made = [self.root, *(folder for folder in self.root.parents if not folder.exists())]
        with explained(self.root):
            for folder in (self.objects_dir, self.snapshots_dir, self.refs_dir, self.tmp_dir):
                folder.mkdir(parents=True, exist_ok=True)
            for shard in _SHARDS:
                (self.objects_dir / shard).mkdir(exist_ok=True)
            sync_dir(self.objects_dir)
            sync_dir(self.root)
            for folder in made:
                sync_dir(folder.parent)

    def object_path(self, digest: str) -> Path:
        """Where the object of this digest lies; the digest is checked before it becomes a path."""
        check_digest(digest, "block digest")
        return self.objects_dir / digest[:2] / digest

    def stage(self, kind: str, chunks: Iterable[Any], digest: str | None = None) -> Path:
        """A new file in STORE/tmp with these bytes, on the disk but not yet visible.

        Raises:
            StoreError: it can't be written, or its bytes are not those of `digest`: they changed since it was computed.
        """
        path = self.tmp_dir / f"{kind}-{os.getpid()}-{secrets.token_hex(8)}"
        hasher = blake3()
        try:
            with explained(path), path.open("xb") as file:
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

    @contextlib.contextmanager
    def staged(self, kind: str, chunks: Iterable[Any], digest: str | None = None) -> Iterator[Path]:
        """As `stage`; what was not published when the block ends is removed."""
        path = self.stage(kind, chunks, digest)
        try:
            yield path
        finally:
            discard(path)

    def publish(self, staged: Path, target: Path) -> bool:
        """Makes a staged file visible as `target`; False when `gc` swept it away before.

        The promise: the bytes were fsynced by `stage`, so the rename shows all of them or nothing, and the folder is
        fsynced before anyone is told, so what was reported survives a power cut.
        """
        with explained(target):
            try:
                staged.replace(target)
            except FileNotFoundError:
                if not staged.exists():
                    return False
                target.parent.mkdir(exist_ok=True)
                sync_dir(target.parent.parent)
                staged.replace(target)
            sync_dir(target.parent)
        return True

    def write_new(self, target: Path, content: bytes) -> None:
        """Makes `target` hold `content`, unless another process was faster.

        What stands there is never replaced: `ref_lock` locks that very file, not whatever has its name.
        """
        for _ in range(MAX_ATTEMPTS):
            with self.staged("file", [content]) as staged, explained(target):
                try:
                    os.link(staged, target)
                except FileExistsError:
                    pass
                except FileNotFoundError:
                    continue  # a gc without grace swept the staged file away
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ENOTSUP):
                        raise
                    self.publish(staged, target)  # a file system without hard links, such as exFAT
                self.sync(target)
                return
        raise swept_away(target)

    def write(self, target: Path, content: bytes) -> None:
        """Makes `target` hold `content`, whatever stood there."""
        for _ in range(MAX_ATTEMPTS):
            with self.staged("file", [content]) as staged:
                if self.publish(staged, target):
                    return
        raise swept_away(target)

    def sync(self, target: Path) -> None:
        """Makes sure of a file that is visible already: who renamed it may have been killed before the fsync."""
        with explained(target):
            sync_dir(target.parent)

    def remove(self, target: Path) -> bool:
        """Whether `target` was there; it is not any more, and that is on the disk."""
        with explained(target):
            try:
                target.unlink()
            except FileNotFoundError:
                return False
            sync_dir(target.parent)
        return True

    def refresh(self, digest: str, num_bytes: int) -> bool:
        """Whether the object is there in full length; if so, its age starts anew and `gc` leaves it for its grace.

        Touching is the test for existence: what `gc` set aside a moment before can't be touched, and is put back here.
        """
        path = self.object_path(digest)
        for _ in range(MAX_ATTEMPTS):
            try:
                os.utime(path)
                return path.stat().st_size == num_bytes
            except FileNotFoundError:
                if not self.put_back(digest):
                    return False
            except PermissionError:
                return False
            except OSError as error:
                raise unwritable(path, error) from error
        return False

    def sync_shards(self, digests: Iterable[str]) -> None:
        """Fsyncs the folders of these objects: another process may have renamed one, but not yet fsynced."""
        for digest in {digest[:2]: digest for digest in digests}.values():
            self.sync(self.object_path(digest))

    def open_object(self, digest: str) -> io.FileIO:
        """The object, open for reading, from where `gc` set it aside if need be.

        Raises:
            StoreDamaged: it is in neither place, or can't be opened.
        """
        path = self.object_path(digest)
        try:
            with contextlib.suppress(FileNotFoundError):
                return open_regular(path)
            for _ in range(MAX_ATTEMPTS):
                for candidate in (*self.set_aside(digest), path):
                    with contextlib.suppress(FileNotFoundError):
                        return open_regular(candidate)
        except OSError as error:
            raise StoreDamaged(f"the file can't be read: {error.strerror}") from None
        raise StoreDamaged("the file is missing")

    def read_object(self, digest: str, allocate: Callable[[int], memoryview] | None = None) -> memoryview:
        """The object's bytes in memory of their own, after that memory was found to have this digest.

        Read and hashed chunk by chunk, so that hashing finds the bytes in the CPU's cache.

        Args:
            allocate: gives memory of a number of bytes, where any memory will not do.

        Raises:
            StoreDamaged: it is missing, can't be read or has another digest.
        """
        import numpy as np  # a tenth of a second that listing a store does without

        started_s = time.perf_counter()
        with self.open_object(digest) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes > MAX_OBJECT_BYTES:
                raise StoreDamaged(f"expected at most {MAX_OBJECT_BYTES} bytes, found {num_bytes}")
            hasher, num_read = blake3(), 0
            try:
                buffer = allocate(num_bytes) if allocate else memoryview(np.empty(num_bytes, dtype=np.uint8))
                while count := file.readinto(buffer[num_read : num_read + CHUNK_BYTES]):
                    hasher.update(buffer[num_read : num_read + count])
                    num_read += count
                    if self.on_read is not None:
                        self.on_read(digest, count, started_s)
            except MemoryError:
                raise StoreError(f"block {digest}: its {num_bytes} bytes do not fit into memory") from None
            except OSError as error:
                raise StoreDamaged(f"the file can't be read: {error.strerror}") from None
        if num_read != num_bytes or hasher.hexdigest() != digest:
            raise StoreDamaged(f"its {num_read} bytes have the BLAKE3 {hasher.hexdigest()}")
        return buffer

    def set_aside(self, digest: str | None = None) -> list[Path]:
        """The files in STORE/tmp that a `gc` took out of objects, of this digest or of any."""
        matches = (_SET_ASIDE.fullmatch(name) for name in names_in(self.tmp_dir))
        return [self.tmp_dir / match[0] for match in matches if match and digest in (None, match[1])]

    def put_back(self, digest: str) -> bool:
        """Whether an object that `gc` set aside lies in objects again."""
        for path in self.set_aside(digest):
            if self.publish(path, self.object_path(digest)):
                return True
        return self.object_path(digest).exists()

    def objects(self) -> Iterator[os.DirEntry]:
        """Every file in objects whose name is a digest in its own shard."""
        present = set(names_in(self.objects_dir))
        for shard in filter(present.__contains__, _SHARDS):
            entries = entries_in(self.objects_dir / shard)
            yield from (entry for entry in entries if is_digest(entry.name) and entry.name.startswith(shard))

    def now_ns(self) -> int:
        """The file system's own time, which is what ages of its files are measured by."""
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
        """Held for the moment in which a ref is compared and moved; the kernel frees it when its holder dies.

        Blocks and manifests need no lock: their names follow from their content. A ref is the one name that can move.
        """
        path = self.root / "store.json"
        with explained(path), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def open_regular(path: Path) -> io.FileIO:
    """The file, open for reading; a pipe in its place is refused, where `open` would wait for a writer."""
    return io.FileIO(path, opener=_open_regular)


def _open_regular(name: str, flags: int) -> int:
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", name)
    return descriptor


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The file's bytes, at most one more than `max_bytes` of them.

    Raises:
        OSError: it can't be read.
    """
    with io.BufferedReader(open_regular(path)) as file:
        return file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)


def entries_in(folder: Path) -> list[os.DirEntry]:
    """All entries of one of the store's folders.

    Raises:
        StoreDamaged: the folder is missing or can't be read.
    """
    with looked_at(folder), os.scandir(folder) as entries:
        return list(entries)


def names_in(folder: Path) -> list[str]:
    """The names of all entries of the folder; raises as `entries_in` does."""
    return [entry.name for entry in entries_in(folder)]


def discard(path: Path) -> None:
    """Removes a staged file, if it is still there."""
    with contextlib.suppress(OSError):
        path.unlink()


def swept_away(target: Path) -> StoreError:
    """The error for a file that a gc without grace removed each time it was about to be published."""
    return StoreError(f"{target}: a gc swept it away {MAX_ATTEMPTS} times while it was written; repeat")


@contextlib.contextmanager
def looked_at(folder: Path) -> Iterator[None]:
    """Turns an OSError of looking at one of the store's folders into one line that names it."""
    try:
        yield
    except FileNotFoundError:
        raise StoreDamaged(f"{folder}: expected a folder of the store, found none; make it again (mkdir)") from None
    except OSError as error:
        raise StoreDamaged(f"{folder}: can't be read: {error.strerror}") from None


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an OSError of a write into one line that says what is the matter with the store."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> StoreError:
    """The error for a file of the store that can't be written."""
    hints = {
        errno.ENOSPC: "the disk is full; free some space (`raysnap store gc`) and repeat",
        errno.EDQUOT: "the disk quota is used up; free some space (`raysnap store gc`) and repeat",
        errno.EFBIG: "the file would pass this process's size limit; raise it (ulimit -f) and repeat",
        errno.EROFS: "the file system is read-only; a store there can be read and searched, not written",
        errno.EACCES: "permission denied; a store without write permission can be read and searched, not written",
    }
    hint = hints.get(error.errno, f"{error.strerror or error}")
    return StoreError(f"{path}: can't be written: {hint}; the store is intact")
