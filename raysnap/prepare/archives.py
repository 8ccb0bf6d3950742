"""Read the files in a .tar, .tgz or .zip one after the other, without unpacking the archive.

Archives are untrusted. Callers get checked names and bounded contents, and decide themselves where an image goes on the
disk. Links are skipped, neither followed nor created. Devices, pipes, sparse files, encrypted entries, path traversal,
duplicate names (in any case) and whatever exceeds `Limits` are rejected before they are held in memory.

`tarfile`'s own filters are not relied on (Python 3.11.2 has none), and two of its weaknesses are mended here: it reads
a long name or a sparse map of any length into memory, and takes a broken header within a file for the end of the file.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from raysnap.errors import DataError

CHUNK_BYTES = 1 << 20
MAX_BETWEEN_ENTRIES_BYTES = 1 << 20
MAX_AFTER_END_BYTES = 16 << 20
MAX_DIRECTORY_BYTES = 16 << 20
MAX_NAME_LETTERS, MAX_PART_BYTES, MAX_PARTS = 1024, 255, 32
RATIO_FREE_BYTES = 16 << 20

# What tarfile, zipfile, gzip and zlib raise on hostile bytes, as observed.
READING_ERRORS = (
    OSError, EOFError, ValueError, OverflowError, IndexError, KeyError, TypeError, AttributeError, RuntimeError,
    NotImplementedError, MemoryError, tarfile.TarError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip

Packed = io.BufferedReader | zipfile.ZipExtFile

log = logging.getLogger(__name__)


class _Readable(Protocol):
    def read(self, num_bytes: int, /) -> bytes: ...


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold; the largest named dataset is Food-101 with 101,000 images in 5 GB.

    Attributes:
        total_bytes: bound on the unpacked size of all entries together.
        entry_bytes: bound on the unpacked size of one entry.
        ratio: bound on unpacked bytes per packed byte after the first `RATIO_FREE_BYTES`; photos are at about 1.
    """

    num_entries: int = 300_000
    total_bytes: int = 32 << 30
    entry_bytes: int = 64 << 20
    ratio: int = 100


@dataclass(frozen=True)
class Entry:
    """One regular file of an archive; `read` and `entries` work until the next entry is requested."""

    name: str
    num_bytes: int
    read: Callable[[], bytes]
    entries: Callable[[], Iterator[Entry]]


def read_archive(path: Path, limits: Limits = Limits()) -> Generator[Entry]:
    """Yield the regular files of the archive at `path` in its order; `Entry.entries` reads a nested archive.

    The archive is open until its last file was read or the generator is closed. A `for` that holds the only reference
    does that, however it ends; one with a name needs `contextlib.closing`.

    Raises:
        DataError: it is not an archive, is damaged, or holds what is rejected; the message names the entry.
    """
    where = str(path)
    with _refusing(where), _BoundedReads(path) as file:
        if file.read(4) in (b"PK\x03\x04", b"PK\x05\x06"):
            yield from _zip_entries(file, where, limits)
        else:
            file.seek(0)
            yield from _tar_entries(file, where, limits)


def unpack_gzip(content: bytes, where: str, max_bytes: int) -> bytes:
    """Return the contents of the gzip stream `content`.

    Raises:
        DataError: it is not a gzip stream, is damaged, or holds more than `max_bytes`.
    """
    with _refusing(where):
        meter = _Meter(gzip.GzipFile(fileobj=io.BytesIO(content)), None, where, Limits(total_bytes=max_bytes))
        meter.allow(max_bytes)
        return b"".join(iter(lambda: meter.read(CHUNK_BYTES), b""))


def checked_name(name: str, where: str) -> str:
    """Return the name of a file below a folder, without `.` and empty parts.

    Raises:
        DataError: the name leaves the folder, or some file system could not hold it.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    faults = {
        "an absolute path": name.startswith("/"),
        "a path out of the folder": ".." in parts,
        "a backslash": "\\" in name,
        "a drive": re.match(r"[A-Za-z]:", name) is not None,
        "control characters": any(unicodedata.category(letter) == "Cc" for letter in name),
        "bytes that are not UTF-8": any("\ud800" <= letter <= "\udfff" for letter in name),
        "no name": not parts,
        f"{len(name)} letters": len(name) > MAX_NAME_LETTERS,
        f"{len(parts)} folders": len(parts) > MAX_PARTS,
    }
    found = [fault for fault, is_there in faults.items() if is_there]
    if not found and any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        found = [f"a part of more than {MAX_PART_BYTES} bytes"]
    if found:
        raise _refusal(where, name, f"expected a name below the archive's folder, found {found[0]}")
    return "/".join(parts)


class _Meter:
    """A stream that is read forwards only, counts bytes, and gives no more than it is allowed to."""

    def __init__(self, stream: _Readable, packed: Packed | None, where: str, limits: Limits):
        self._stream, self._packed, self._where, self._limits = stream, packed, where, limits
        self._position = 0
        self._allowed = 0
        self.last = b""

    def allow(self, num_bytes: int) -> None:
        """Allow reading this many more bytes."""
        self._allowed = self._position + num_bytes

    def read(self, num_bytes: int) -> bytes:
        """Read the next bytes; fewer only at the end."""
        chunks = []
        while num_bytes > 0 and (chunk := self._stream.read(min(num_bytes, CHUNK_BYTES))):
            num_bytes -= len(chunk)
            self._position += len(chunk)
            self._check_position()
            chunks.append(chunk)
        self.last = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return self.last

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise DataError(f"{self._where}: expected consecutive entries, found one that points back")
        while self._position < position and self.read(min(CHUNK_BYTES, position - self._position)):
            pass

    def _check_position(self) -> None:
        if self._position > self._limits.total_bytes:
            raise DataError(f"{self._where}: expected at most {self._limits.total_bytes:,} bytes unpacked, found more")
        if self._position > self._allowed:
            raise DataError(f"{self._where}: expected the next entry, found more than a megabyte of headers")
        if self._packed is not None and self._position > RATIO_FREE_BYTES:
            _refuse_ratio(self._where, self._position, self._packed.tell(), self._limits)


class _Ledger:
    """The names seen so far: not too many, and no duplicates in any case."""

    def __init__(self, where: str, limits: Limits):
        self._where, self._limits = where, limits
        self._num_entries = 0
        self._seen: dict[str, str] = {}

    def add(self, raw_name: str, num_bytes: int, is_file: bool) -> str:
        """Check the next entry; return its name."""
        self._num_entries += 1
        if self._num_entries > self._limits.num_entries:
            raise DataError(f"{self._where}: expected at most {self._limits.num_entries:,} entries, found more")
        if raw_name.rstrip("/") == "." and not is_file:
            return "."
        name = checked_name(raw_name, self._where)
        if not 0 <= num_bytes <= self._limits.total_bytes:
            max_bytes = self._limits.total_bytes
            raise _refusal(self._where, name, f"expected 0 to {max_bytes:,} bytes, found {num_bytes:,} announced")
        if is_file:
            key = unicodedata.normalize("NFC", name).casefold()
            if key in self._seen:
                raise _refusal(self._where, name, f"expected a unique name, found {self._seen[key]!a} too")
            self._seen[key] = name
        return name


def _tar_entries(file: Packed, where: str, limits: Limits) -> Iterator[Entry]:
    """Yield the entries of a tar stream, gzip-packed or not; the stream is read once, forwards."""
    is_packed = file.peek(2)[:2] == b"\x1f\x8b"
    meter = _Meter(gzip.GzipFile(fileobj=file) if is_packed else file, file if is_packed else None, where, limits)
    ledger = _Ledger(where, limits)
    meter.allow(MAX_BETWEEN_ENTRIES_BYTES)
    # Reading needs neither `write` nor `close` of the stream, which the stubs ask for.
    with tarfile.open(fileobj=meter, mode="r:", errors="surrogateescape") as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            tar.members.clear()
            name = ledger.add(member.name, member.size, member.isreg())
            meter.allow(member.size + MAX_BETWEEN_ENTRIES_BYTES)
            if member.issparse() or not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                raise _refusal(where, name, f"expected a file, found {_tar_kind(member)}")
            if member.isreg():
                yield _tar_entry(tar, member, name, where, limits)
            elif not member.isdir():
                log.info("%s: skipping the link %a", where, name)
    if meter.last != bytes(tarfile.BLOCKSIZE):
        raise DataError(
            f"{where}: expected a tar file's end mark, found none (truncated or damaged); download it again"
        )
    meter.allow(MAX_AFTER_END_BYTES)
    while is_packed and meter.read(CHUNK_BYTES):
        pass


def _tar_entry(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, where: str, limits: Limits) -> Entry:
    def read() -> bytes:
        _refuse_large(where, name, member.size, limits)
        with _refusing(where, name):
            return _extract(tar, member).read()

    return Entry(name, member.size, read, lambda: _nested(_extract(tar, member), name, where, limits))


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    return file


def _tar_kind(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a sparse file"
    if member.isfifo():
        return "a pipe"
    return "a device" if member.isdev() else f"an entry of kind {member.type!r}"


class _BoundedReads(io.BufferedReader):
    """An archive file that refuses to read a zip directory that is too long, which zipfile reads as a whole."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path), CHUNK_BYTES)
        self._path = path

    def read(self, num_bytes: int | None = -1, /) -> bytes:
        if num_bytes is not None and num_bytes > MAX_DIRECTORY_BYTES:
            raise DataError(
                f"{self._path}: expected a directory of at most {MAX_DIRECTORY_BYTES:,} bytes, found {num_bytes:,}"
            )
        return super().read(num_bytes)


def _zip_entries(file: IO[bytes], where: str, limits: Limits) -> Iterator[Entry]:
    ledger = _Ledger(where, limits)
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        total_bytes = sum(info.file_size for info in infos)
        if total_bytes > limits.total_bytes:
            raise DataError(f"{where}: expected at most {limits.total_bytes:,} bytes unpacked, found {total_bytes:,}")
        if sum(info.compress_size for info in infos) > os.fstat(file.fileno()).st_size:
            raise DataError(f"{where}: expected consecutive entries, found some that share their bytes")
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            is_link = kind == stat.S_IFLNK
            name = ledger.add(info.orig_filename, info.file_size, not info.is_dir())
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                raise _refusal(where, name, "expected a file, found a device or a pipe")
            if info.flag_bits & 1:
                raise _refusal(where, name, "expected a file, found an encrypted one")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _refusal(where, name, f"expected a stored or deflated file, found method {info.compress_type}")
            if info.file_size > RATIO_FREE_BYTES:
                _refuse_ratio(f"{where}: entry {name!a}", info.file_size, info.compress_size, limits)
            if is_link:
                log.info("%s: skipping the link %a", where, name)
            elif not info.is_dir():
                yield _zip_entry(archive, info, name, where, limits)


def _zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, where: str, limits: Limits) -> Entry:
    def read() -> bytes:
        _refuse_large(where, name, info.file_size, limits)
        with _refusing(where, name), archive.open(info) as file:
            content = b"".join(iter(lambda: file.read(CHUNK_BYTES), b""))
        if len(content) != info.file_size:
            raise _refusal(where, name, f"expected {info.file_size} bytes, found {len(content)}")
        return content

    return Entry(name, info.file_size, read, lambda: _nested(archive.open(info), name, where, limits))


def _nested(file: IO[bytes], name: str, where: str, limits: Limits) -> Iterator[Entry]:
    """Yield the entries of a tar file that is itself an entry."""
    inner = f"{where}: {name}"
    assert isinstance(file, Packed)  # what tarfile and zipfile open
    with _refusing(inner), file:
        yield from _tar_entries(file, inner, limits)


@contextmanager
def _refusing(where: str, name: str | None = None) -> Iterator[None]:
    """Turn what the standard library raises on hostile or truncated bytes into a DataError of one line."""
    try:
        yield
    except READING_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        entry = "" if name is None else f": entry {name!a}"
        raise DataError(f"{where}{entry}: can't be read: {ascii(reason)[1:-1][:200]}; download it again") from None


def _refuse_large(where: str, name: str, num_bytes: int, limits: Limits) -> None:
    if num_bytes > limits.entry_bytes:
        raise _refusal(where, name, f"expected at most {limits.entry_bytes:,} bytes, found {num_bytes:,}")


def _refuse_ratio(where: str, num_bytes: int, packed_bytes: int, limits: Limits) -> None:
    if num_bytes > limits.ratio * packed_bytes:
        raise DataError(
            f"{where}: expected at most {limits.ratio} unpacked bytes per packed byte, "
            f"found {num_bytes:,} from {packed_bytes:,}"
        )


def _refusal(where: str, name: str, fault: str) -> DataError:
    shown = ascii(name) if len(name) <= 200 else f"{name[:100]!a}…"
    return DataError(f"{where}: entry {shown}: {fault}; get the archive from its publisher")
