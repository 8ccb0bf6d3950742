"""A store in a folder: files staged in STORE/tmp, published by one rename, opened, set aside and restored.

Nothing here knows what a block or a manifest means. `publish` is the one place where a file becomes visible. `gc` sets
objects aside by renaming them into STORE/tmp, so what it deletes is in nobody's way: see `garbage`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from raysnap.atomic import sync_dir
from raysnap.errors import RaysnapError, StoreDamaged, StoreError
from raysnap.store.backends.disk import (
    discard,
    entries_in,
    names_in,
    open_regular,
    read_bounded,
    read_error,
    read_verified,
    translate_write_errors,
    write_error,
)
from raysnap.store.backends.place import (
    MANY_AT_ONCE,
    MAX_ATTEMPTS,
    OBJECTS,
    REFS,
    SNAPSHOTS,
    STORE_FILE,
    TMP,
    Allocate,
    Chunk,
    Entry,
    Item,
    Needed,
    OnRead,
    Result,
    Sighting,
    gc_race_error,
    object_key,
)
from raysnap.store.manifest import is_digest

CHUNK_BYTES = 2**20

_SHARDS = [f"{number:02x}" for number in range(256)]
_SET_ASIDE = re.compile(r"gone-[0-9a-f]{16}-([0-9a-f]{64})")


class Folder:
    """The place of a store on a disk: `Place`, by files."""

    is_far = False

    def __init__(self, root: Path, on_read: OnRead | None = None):
        self.root = root
        self.on_read = on_read
        self.objects_dir = root / OBJECTS
        self.snapshots_dir = root / SNAPSHOTS
        self.refs_dir = root / REFS
        self.tmp_dir = root / TMP

    def where(self, key: str = "") -> str:
        return str(self.root / key)

    # The folder itself

    def is_there(self) -> bool:
        return self.root.exists()

    def check_vacant(self, create: bool) -> None:
        """Refuse to create a store where anything else is; the empty folders of an interrupted start are allowed."""
        path = self.root
        if path.is_symlink() and not path.exists():
            raise StoreError(f"{path}: expected a folder, found a broken link")
        if not path.exists():
            if not create:
                raise StoreError(f"{path}: expected a model store, found nothing there")
            return
        with translate_write_errors(path):
            names = set(names_in(path))
        if names and not (names <= {OBJECTS, SNAPSHOTS, REFS, TMP} and self._is_empty()):
            raise StoreError(f"{path}: expected a model store, found a folder without {STORE_FILE}")
        if not create:
            raise StoreError(f"{path}: expected a model store, found an empty folder")

    def _is_empty(self) -> bool:
        folders = (folder for folder in (self.snapshots_dir, self.refs_dir) if folder.is_dir())
        has_objects = self.objects_dir.is_dir() and next(self.objects(), None) is not None
        return not any(names_in(folder) for folder in folders) and not has_objects

    def prepare(self) -> None:
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

    def object_path(self, digest: str) -> Path:
        """Return the path of the object with this digest, which is checked before it becomes a path."""
        return self.root / object_key(digest)

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

    # Documents

    def read(self, key: str, max_bytes: int) -> bytes:
        path = self.root / key
        try:
            return read_bounded(path, max_bytes)
        except FileNotFoundError:
            raise
        except OSError as error:
            if key != STORE_FILE:
                raise read_error(path, error, f"{path}: can't be read") from None
            if error.errno == errno.ENOTDIR:
                raise StoreError(f"{self.root}: expected a store's folder, found a file") from None
            raise StoreError(f"{self.root}: can't be read as a store: {error.strerror}") from None

    def exists(self, key: str) -> bool:
        return (self.root / key).exists()

    def names(self, folder: str) -> list[str]:
        return names_in(self.root / folder)

    def entries(self, folder: str) -> list[Entry]:
        found = []
        for entry in entries_in(self.root / folder):
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():
                    found.append(_entry(entry.name, entry.stat()))
        return found

    def keys(self) -> Iterator[str]:
        for folder in (SNAPSHOTS, REFS, OBJECTS):
            yield from (f"{folder}/{name}" for name in names_in(self.root / folder))
        for shard in entries_in(self.objects_dir):
            if shard.is_dir():
                yield from (f"{OBJECTS}/{shard.name}/{name}" for name in names_in(Path(shard.path)))

    def last_change(self, folder: str) -> int:
        """Return when the folder last changed; 0 where it is missing and was empty."""
        path = self.root / folder
        try:
            return path.stat().st_mtime_ns
        except FileNotFoundError:
            return len(entries_in(path))
        except OSError as error:
            raise read_error(path, error, f"{path}: can't be read") from None

    def create(self, key: str, content: bytes) -> bool:
        """Create a document; an existing file is not replaced, as `hold_names` locks that very file."""
        target = self.root / key
        for _ in range(MAX_ATTEMPTS):
            with self.staged("file", [content]) as staged, translate_write_errors(target):
                is_new = True
                try:
                    os.link(staged, target)
                except FileExistsError:
                    is_new = False
                except FileNotFoundError:
                    if not target.parent.is_dir():
                        self._make_folder(target.parent)
                    continue  # or else a gc without grace removed the staged file
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ENOTSUP):
                        raise
                    self.publish(staged, target)  # a file system without hard links, such as exFAT
                self.sync(key)
                return is_new
        raise gc_race_error(str(target))

    def _make_folder(self, folder: Path) -> None:
        """Create the folder of records, which a store has from its first record on."""
        folder.mkdir(exist_ok=True)
        sync_dir(self.root)

    def write(self, key: str, content: bytes) -> None:
        for _ in range(MAX_ATTEMPTS):
            with self.staged("file", [content]) as staged:
                if self.publish(staged, self.root / key):
                    return
        raise gc_race_error(self.where(key))

    def sync(self, key: str) -> None:
        """Fsync the folder of a visible file: the process that renamed it may have died before its own fsync."""
        target = self.root / key
        with translate_write_errors(target):
            sync_dir(target.parent)

    def remove(self, key: str) -> None:
        target = self.root / key
        with translate_write_errors(target), contextlib.suppress(FileNotFoundError):
            target.unlink()
            sync_dir(target.parent)

    def look(self, key: str, max_bytes: int) -> Sighting | None:
        with contextlib.suppress(FileNotFoundError):
            return Sighting(self.read(key, max_bytes))
        return None

    def swap(self, key: str, seen: Sighting | None, content: bytes) -> bool:
        current = self.look(key, len(seen.content) - 1 if seen else 0)
        if current != seen:
            return False
        if not content:
            self.remove(key)
        elif seen is not None and seen.content == content:
            self.sync(key)
        else:
            self.write(key, content)
        return True

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        at_once: int = MANY_AT_ONCE,  # noqa: ARG002
    ) -> Iterator[Result]:
        return map(function, items)

    # Objects

    def has_object(self, digest: str, num_bytes: int) -> bool:
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

    def put_object(self, digest: str, chunks: Sequence[Chunk]) -> None:
        for _ in range(MAX_ATTEMPTS):
            with self.staged("block", chunks, digest) as staged:
                if self.publish(staged, self.object_path(digest)):
                    return
        raise gc_race_error(str(self.object_path(digest)))

    def sync_shards(self, digests: Iterable[str]) -> None:
        """Fsync the folders of these objects: another process may have renamed one and not yet fsynced it."""
        for digest in {digest[:2]: digest for digest in digests}.values():
            self.sync(object_key(digest))

    def object_bytes(self, digest: str) -> int:
        with self._open_object(digest) as file:
            return os.fstat(file.fileno()).st_size

    def _open_object(self, digest: str) -> io.FileIO:
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

    def read_object(
        self,
        digest: str,
        allocate: Allocate | None = None,
        *,
        may_be_near: bool = True,  # noqa: ARG002 - a folder is near
    ) -> memoryview:
        started_s = time.perf_counter()

        def on_piece(num_bytes: int) -> None:
            if self.on_read is not None:
                self.on_read(digest, num_bytes, started_s)

        with self._open_object(digest) as file:
            return read_verified(file, digest, allocate, on_piece)

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

    def objects(self) -> Iterator[Entry]:
        """Yield every file in objects whose name is a digest in its own shard."""
        present = set(names_in(self.objects_dir))
        for shard in filter(present.__contains__, _SHARDS):
            for entry in entries_in(self.objects_dir / shard):
                if is_digest(entry.name) and entry.name.startswith(shard):
                    with contextlib.suppress(FileNotFoundError):
                        yield _entry(entry.name, entry.stat())

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
    def hold_names(self) -> Iterator[None]:
        """Hold the lock under which a name is compared and moved; the kernel releases it if its holder dies.

        Blocks and manifests need no lock: their names follow from their content. A ref is the one name that can move.
        """
        path = self.root / STORE_FILE
        with translate_write_errors(path), contextlib.ExitStack() as opened:
            while True:
                file = opened.enter_context(path.open("r+b"))
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break  # else the store got a newer format while this process waited, and with it another file
            yield

    # Drafts and garbage

    @contextlib.contextmanager
    def draft(self, content: bytes) -> Iterator[_Draft]:
        with self.staged("draft", [content]) as path:
            yield _Draft(self, path)

    def drafts(self) -> list[str]:
        return [f"{TMP}/{name}" for name in names_in(self.tmp_dir) if name.startswith("draft-")]

    def sweep(self, newest_ns: int | None) -> int:
        num_swept = 0
        with translate_write_errors(self.root):
            self.recreate_folders()
            for entry in entries_in(self.tmp_dir):
                with contextlib.suppress(FileNotFoundError):
                    is_swept = not entry.name.startswith("gone-") and entry.is_file()
                    if is_swept and (newest_ns is None or entry.stat().st_mtime_ns <= newest_ns):
                        discard(Path(entry.path))
                        num_swept += 1
        return num_swept

    @contextlib.contextmanager
    def condemn(self, entries: Iterable[Entry]) -> Iterator[_SetAside]:
        token = secrets.token_hex(8)
        with translate_write_errors(self.root):
            owned = self._set_aside((entry.name for entry in entries), token) + self._adopt_abandoned(token)
            aside = _SetAside(self, token, owned)
            try:
                yield aside
            except RaysnapError:
                aside.spare(owned)
                raise

    def _set_aside(self, digests: Iterable[str], token: str) -> list[str]:
        """Rename these objects into STORE/tmp, to names that only this `gc` uses; return those that were there."""
        owned = []
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):
                self.object_path(digest).replace(self._aside_path(token, digest))
                owned.append(digest)
        return owned

    def _adopt_abandoned(self, token: str) -> list[str]:
        """Make this `gc` the owner of objects that another one set aside and left; return their digests."""
        owned = []
        for path in self.find_set_aside():
            digest = path.name[-64:]
            if path.name.startswith(f"gone-{token}-"):
                continue
            with contextlib.suppress(FileNotFoundError):
                path.replace(self._aside_path(token, digest))
                owned.append(digest)
        return owned

    def _aside_path(self, token: str, digest: str) -> Path:
        return self.tmp_dir / f"gone-{token}-{digest}"


class _Draft:
    """A manifest staged in STORE/tmp, published by renaming it; one that a `gc` removed can't be renamed."""

    def __init__(self, folder: Folder, path: Path):
        self._folder, self._path = folder, path
        self._digests: list[str] = []

    def missing(self, needed: Sequence[Needed]) -> list[Needed]:
        self._digests = [one.digest for one in needed]
        return [one for one in needed if not self._folder.has_object(one.digest, one.num_bytes)]

    def publish(self, key: str, seen: Sighting | None) -> bool:  # noqa: ARG002 - a rename replaces what is there
        self._folder.sync_shards(self._digests)
        return self._folder.publish(self._path, self._folder.root / key)


class _SetAside:
    """Objects that one `gc` renamed out of objects, where it alone deletes them."""

    def __init__(self, folder: Folder, token: str, digests: list[str]):
        self._folder, self._token, self._digests = folder, token, digests

    def _path(self, digest: str) -> Path:
        return self._folder._aside_path(self._token, digest)

    def entries(self) -> Iterator[Entry]:
        """Yield them with the times that they have now: a touch after the first look at its age counts."""
        for digest in self._digests:
            with contextlib.suppress(FileNotFoundError):
                yield _entry(digest, self._path(digest).stat())

    def spare(self, digests: Sequence[str]) -> None:
        for digest in digests:
            self._folder.publish(self._path(digest), self._folder.object_path(digest))

    def delete(self, digests: Sequence[str]) -> list[str]:
        deleted = []
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):
                self._path(digest).unlink()
                deleted.append(digest)
        return deleted


def _entry(name: str, status: os.stat_result) -> Entry:
    stamp = f"{status.st_mtime_ns} {status.st_ino} {status.st_size}"
    return Entry(name, status.st_size, status.st_mtime_ns, stamp)
