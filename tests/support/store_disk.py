"""A disk that tests can fail, fill, kill and cut the power of: the system calls below one folder, intercepted.

Inside `with Disk(root, fault)` each call on a path under `root` is counted and, before it is made, shown to `fault`,
which may raise or shorten it. What it changed is recorded, so that `store_power` can say what a power cut might leave.
"""

from __future__ import annotations

import fcntl
import io
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# What takes room on a disk, and what may fail when there is none.
GROWING = ("create", "write", "mkdir")
CHANGING = (*GROWING, "fsync", "rename", "link", "unlink", "utime")
# The index is a database in memory: its commits touch no disk, only a kill can hit them.
IN_MEMORY = "commit"

_FILE_NUMBERS = count(1)


class Killed(BaseException):
    """The process is gone: no code after this may change anything."""


class Call(NamedTuple):
    """One system call on a path of the store, before it is made."""

    kind: str
    path: Path


@dataclass(frozen=True)
class Change:
    """What one system call changed; `file` tells files apart that had the same path at different times."""

    kind: str
    path: Path
    file: int = 0
    offset: int = 0
    data: bytes = b""
    target: Path | None = None


# Raises in place of the call, or returns how many bytes it may move.
Fault = Callable[[int, Call], int | None]


class Disk:
    """The folder `root` as a disk under test.

    Attributes:
        calls: every call, in order.
        changes: what the calls changed, in order; `mark` adds a line of its own.
        strays: paths outside `root` that were to be changed.
        num_forgotten: fsyncs that `forgets_sync` left out.
    """

    def __init__(self, root: Path, fault: Fault | None = None, forgets_sync: Callable[[Path], bool] | None = None):
        self.root = root
        self.calls: list[Call] = []
        self.changes: list[Change] = []
        self.strays: list[Path] = []
        self.num_forgotten = 0
        self._fault = fault
        self._forgets_sync = forgets_sync
        self._is_dead = False
        self._open_files: dict[int, tuple[Path, int]] = {}
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Disk:
        for owner, name, wrap in (
            (io, "open", self._open),
            (os, "open", self._open_descriptor),
            (os, "close", self._close),
            (os, "fsync", self._fsync),
            (os, "replace", self._replace),
            (os, "link", self._link),
            (os, "unlink", self._unlink),
            (os, "mkdir", self._mkdir),
            (os, "utime", self._plain("utime")),
            (os, "scandir", self._plain("list")),
            (fcntl, "flock", self._lock),
            (sqlite3, "connect", self._connect),
        ):
            self._patch.setattr(owner, name, self._bound(wrap, getattr(owner, name)))
        self._patch.setattr(io, "FileIO", self._raw_class(io.FileIO))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def mark(self) -> None:
        """Record that the store's last call was reported to have succeeded."""
        self.changes.append(Change("mark", self.root))

    def before(self, kind: str, path: Path) -> int | None:
        """Count a call and apply the fault to it; return the number of bytes that it may move."""
        if self._is_dead:
            raise Killed
        self.calls.append(Call(kind, path))
        if self._fault is None:
            return None
        try:
            return self._fault(len(self.calls), self.calls[-1])
        except Killed:
            self._is_dead = True
            raise

    @staticmethod
    def _bound(wrap: Callable, function: Callable) -> Callable:
        return lambda *args, **kwargs: wrap(function, *args, **kwargs)

    def _is_ours(self, path: object) -> bool:
        return isinstance(path, str | Path) and Path(path).is_relative_to(self.root)

    def _changing(self, path: object) -> None:
        if isinstance(path, str | Path) and not self._is_ours(path):
            self.strays.append(Path(path))

    def _open(self, function: Callable, path: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any):
        if mode not in ("rb", "xb", "wb", "r+b"):
            self._changing(path if set(mode) & set("wax+") else None)
            return function(path, mode, buffering, *args, **kwargs)
        if not self._is_ours(path):
            self._changing(path if mode != "rb" else None)
            return function(path, mode, buffering, *args, **kwargs)
        self.before("create" if mode[0] in "xw" else "open", Path(path))
        raw = _File(self, Path(path), mode, next(_FILE_NUMBERS))
        self._open_files[raw.fileno()] = (Path(path), raw.number)
        if mode[0] in "xw":
            self.changes.append(Change("create", Path(path), raw.number))
        if buffering == 0:
            return raw
        return io.BufferedReader(raw) if mode == "rb" else io.BufferedWriter(raw)

    def _raw_class(self, own: type[io.FileIO]) -> type[io.FileIO]:
        """Return what stands for `io.FileIO`: a class, as numpy asks whether a file is one of it."""

        class Raw(own):
            def __new__(cls, *args: Any, **kwargs: Any) -> io.FileIO:
                return self._open_raw(own, *args, **kwargs)

        return Raw

    def _open_raw(self, function: Callable, path: Any, mode: str = "r", closefd: bool = True, opener: Any = None):
        """Return a file opened for reading past Python's `open`; `opener` calls `os.open`, which counts."""
        if not self._is_ours(path) or mode != "r":
            return function(path, mode, closefd, opener)
        return _File(self, Path(path), mode, 0, opener)

    def _open_descriptor(self, function: Callable, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._changing(path)
        if not self._is_ours(path) and not self._is_above(path):
            return function(path, flags, *args, **kwargs)
        self.before("open", Path(path))
        descriptor = function(path, flags, *args, **kwargs)
        self._open_files[descriptor] = (Path(path), 0)
        return descriptor

    def _is_above(self, path: object) -> bool:
        """Return whether the folder is above the store: those count too, as they are fsynced when a store is made."""
        return isinstance(path, str | Path) and self.root.is_relative_to(path)

    def _close(self, function: Callable, descriptor: int) -> None:
        self._open_files.pop(descriptor, None)
        function(descriptor)

    def _fsync(self, function: Callable, descriptor: int) -> None:
        path, number = self._open_files.get(descriptor, (None, 0))
        if path is None:
            function(descriptor)
            return
        if self._forgets_sync is not None and self._forgets_sync(path):
            self.num_forgotten += 1
            return
        self.before("fsync", path)
        self.changes.append(Change("fsync" if number else "fsync folder", path, number))

    def _replace(self, function: Callable, source: Any, target: Any) -> None:
        self._changing(source)
        self._changing(target)
        if self._is_ours(source):
            self.before("rename", Path(target))
        function(source, target)
        if self._is_ours(source):
            self.changes.append(Change("rename", Path(source), target=Path(target)))

    def _link(self, function: Callable, source: Any, target: Any) -> None:
        self._changing(source)
        self._changing(target)
        if self._is_ours(source):
            self.before("link", Path(target))
        function(source, target)
        if self._is_ours(source):
            self.changes.append(Change("link", Path(source), target=Path(target)))

    def _unlink(self, function: Callable, path: Any, **kwargs: Any) -> None:
        self._changing(path)
        if self._is_ours(path):
            self.before("unlink", Path(path))
        function(path, **kwargs)
        if self._is_ours(path):
            self.changes.append(Change("unlink", Path(path)))

    def _mkdir(self, function: Callable, path: Any, *args: Any, **kwargs: Any) -> None:
        if not self._is_above(path):
            self._changing(path)
        if self._is_ours(path):
            self.before("mkdir", Path(path))
        function(path, *args, **kwargs)
        if self._is_ours(path) or self._is_above(path):
            self.changes.append(Change("mkdir", Path(path)))

    def _plain(self, kind: str) -> Callable:
        def wrapped(function: Callable, path: Any, *args: Any, **kwargs: Any) -> Any:
            if self._is_ours(path):
                self.before(kind, Path(path))
            return function(path, *args, **kwargs)

        return wrapped

    def _lock(self, function: Callable, file: Any, operation: int) -> None:
        self.before("lock", self.root / "store.json")
        function(file, operation)

    def _connect(self, function: Callable, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        disk = self

        class Connection(sqlite3.Connection):
            def commit(self) -> None:
                disk.before(IN_MEMORY, disk.root / "index.sqlite")
                super().commit()

        return function(*args, factory=Connection, **kwargs)


class _File(io.FileIO):
    """An open file of the disk, beneath Python's own buffers like any other file."""

    def __init__(self, disk: Disk, path: Path, mode: str, number: int, opener: Any = None):
        super().__init__(path, mode.replace("b", ""), opener=opener)
        self.number = number
        self._disk = disk
        self._path = path

    def write(self, data: Any) -> int:
        limit = self._disk.before("write", self._path)
        piece = bytes(data)[: None if limit is None else max(1, min(limit, len(data) - 1))]
        offset = self.tell()
        written = super().write(piece)
        self._disk.changes.append(Change("write", self._path, self.number, offset, piece[:written]))
        return written

    def read(self, size: int = -1) -> bytes:
        limit = self._disk.before("read", self._path)
        return super().read(size if limit is None else limit)

    def readall(self) -> bytes:
        self._disk.before("read", self._path)
        return super().readall()

    def readinto(self, buffer: Any) -> int:
        limit = self._disk.before("read", self._path)
        return super().readinto(memoryview(buffer)[:limit])

    def close(self) -> None:
        if not self.closed:
            self._disk._open_files.pop(self.fileno(), None)
        super().close()


def killed_at(step: int) -> Fault:
    """End the process in place of the call of this number, the first being 1."""

    def fault(number: int, call: Call) -> None:
        if number == step:
            raise Killed

    return fault


def failing_at(step: int, code: int) -> Fault:
    """Let the call with this number fail."""

    def fault(number: int, call: Call) -> None:
        if number == step and call.kind != IN_MEMORY:
            raise OSError(code, os.strerror(code), str(call.path))

    return fault


def short_at(step: int) -> Fault:
    """Let the call with this number move a single byte, if it moves bytes at all."""
    return lambda number, call: 1 if number == step else None


def full_from(step: int, code: int) -> Fault:
    """Return a disk without room from the call of this number on: it fails, and so do later ones that take room."""

    def fault(number: int, call: Call) -> None:
        if (number == step and call.kind in CHANGING) or (number > step and call.kind in GROWING):
            raise OSError(code, os.strerror(code), str(call.path))

    return fault
