"""The files inside a .tar, .tgz or .zip, one after the other: nothing is unpacked, nothing is written.

An archive comes from anywhere, so it is read as if it meant harm. A caller gets names that were checked and contents
that were bounded; where an image goes on the disk is decided by the caller, never by the archive. Links are skipped:
none is followed and none is made. Devices, pipes, sparse files, encrypted entries, names that leave the folder, names
that are there twice (in any case) and what is larger than `Limits` says are refused before they are held in memory.

`tarfile`'s own filters are not relied on (Python 3.11.2 has none), and two of its habits are mended here: it reads a
long name or a sparse map of any length into memory, and takes a broken header within a file for the file's end.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from raysnap.errors import DataError

CHUNK_BYTES = 1 << 20
MOST_BETWEEN_ENTRIES_BYTES = 1 << 20
MOST_AFTER_END_BYTES = 16 << 20
MOST_DIRECTORY_BYTES = 16 << 20
MOST_NAME_LETTERS, MOST_PART_BYTES, MOST_PARTS = 1024, 255, 32
RATIO_FREE_BYTES = 16 << 20

# What tarfile, zipfile, gzip and zlib were seen to raise on hostile bytes.
READING_ERRORS = (
    OSError, EOFError, ValueError, OverflowError, IndexError, KeyError, TypeError, AttributeError, RuntimeError,
    NotImplementedError, MemoryError, tarfile.TarError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold; the largest named dataset is Food-101 with 101,000 images in 5 GB.

    Attributes:
        total_bytes: what all entries come to, unpacked.
        entry_bytes: what one entry comes to, unpacked.
        ratio: unpacked bytes per packed byte, once more than `RATIO_FREE_BYTES` were unpacked; photos are about 1.
    """

    num_entries: int = 300_000
    total_bytes: int = 32 << 30
    entry_bytes: int = 64 << 20
    ratio: int = 100


@dataclass(frozen=True)
class Entry:
    """One regular file of an archive; `read` and `entries` work until the next one is asked for."""

    name: str
    num_bytes: int
    read: Callable[[], bytes]
    entries: Callable[[], Iterator[Entry]]


def read_archive(path: Path, limits: Limits = Limits()) -> Iterator[Entry]:
    """The regular files of the archive at `path`, in its order; `Entry.entries` reads an archive within it.

    Raises:
        DataError: it is no archive, is damaged, or holds what is refused; the message names the entry.
    """
    where = str(path)
    with _refusing(where), _BoundedReads(io.FileIO(path), CHUNK_BYTES) as file:
        if file.read(4) in (b"PK\x03\x04", b"PK\x05\x06"):
            yield from _zip_entries(file, where, limits)
        else:
            file.seek(0)
            yield from _tar_entries(file, where, limits)


def unpack_gzip(content: bytes, where: str, most_bytes: int) -> bytes:
    """What the gzip stream `content` holds.

    Raises:
        DataError: it is no gzip stream, is damaged, or holds more than `most_bytes`.
    """
    with _refusing(where):
        meter = _Meter(gzip.GzipFile(fileobj=io.BytesIO(content)), None, where, Limits(total_bytes=most_bytes))
        meter.allow(most_bytes)
        return b"".join(iter(lambda: meter.read(CHUNK_BYTES), b""))


def checked_name(name: str, where: str) -> str:
    """The name of a file below a folder, without `.` and empty parts.

    Raises:
        DataError: it leaves the folder, or is none that every file system could hold.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    faults = {
        "an absolute path": name.startswith("/"),
        "a way out of the folder": ".." in parts,
        "a backslash": "\\" in name,
        "a drive": re.match(r"[A-Za-z]:", name) is not None,
        "control characters": any(unicodedata.category(letter) == "Cc" for letter in name),
        "bytes that are no UTF-8": any("\ud800" <= letter <= "\udfff" for letter in name),
        "no name": not parts,
        f"{len(name)} letters": len(name) > MOST_NAME_LETTERS,
        f"{len(parts)} folders": len(parts) > MOST_PARTS,
    }
    found = [fault for fault, is_there in faults.items() if is_there]
    if not found and any(len(part.encode()) > MOST_PART_BYTES for part in parts):
        found = [f"a part of more than {MOST_PART_BYTES} bytes"]
    if found:
        raise _refusal(where, name, f"expected a name below the archive's folder, found {found[0]}")
    return "/".join(parts)


class _Meter:
    """A stream that is read forwards only, counts, and refuses to give more than it was allowed to."""

    def __init__(self, stream: IO[bytes], packed: IO[bytes] | None, where: str, limits: Limits):
        self._stream, self._packed, self._where, self._limits = stream, packed, where, limits
        self._position = 0
        self._allowed = 0
        self.last = b""

    def allow(self, num_bytes: int) -> None:
        """Let so many bytes be read from here on."""
        self._allowed = self._position + num_bytes

    def read(self, num_bytes: int) -> bytes:
        """The next bytes, fewer only at the end."""
        chunks = []
        while num_bytes > 0 and (chunk := self._stream.read(min(num_bytes, CHUNK_BYTES))):
            num_bytes -= len(chunk)
            self._position += len(chunk)
            self._refuse_excess()
            chunks.append(chunk)
        self.last = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return self.last

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise DataError(f"{self._where}: expected entries one after the other, found one that points back")
        while self._position < position and self.read(min(CHUNK_BYTES, position - self._position)):
            pass

    def _refuse_excess(self) -> None:
        if self._position > self._limits.total_bytes:
            raise DataError(f"{self._where}: expected at most {self._limits.total_bytes:,} bytes unpacked, found more")
        if self._position > self._allowed:
            raise DataError(f"{self._where}: expected the next entry, found more than a megabyte of headers")
        if self._packed is not None and self._position > RATIO_FREE_BYTES:
            _refuse_ratio(self._where, self._position, self._packed.tell(), self._limits)


class _Ledger:
    """The names met so far: each once, in any case, and not too many."""

    def __init__(self, where: str, limits: Limits):
        self._where, self._limits = where, limits
        self._num_entries = 0
        self._seen: dict[str, str] = {}

    def add(self, raw_name: str, num_bytes: int, is_file: bool) -> str:
        """The checked name of the next entry."""
        self._num_entries += 1
        if self._num_entries > self._limits.num_entries:
            raise DataError(f"{self._where}: expected at most {self._limits.num_entries:,} entries, found more")
        if raw_name.rstrip("/") == "." and not is_file:
            return "."
        name = checked_name(raw_name, self._where)
        if not 0 <= num_bytes <= self._limits.total_bytes:
            most = self._limits.total_bytes
            raise _refusal(self._where, name, f"expected 0 to {most:,} bytes, found {num_bytes:,} announced")
        if is_file:
            key = unicodedata.normalize("NFC", name).casefold()
            if key in self._seen:
                raise _refusal(self._where, name, f"expected a name of its own, found {self._seen[key]!a} there too")
            self._seen[key] = name
        return name


def _tar_entries(file: IO[bytes], where: str, limits: Limits) -> Iterator[Entry]:
    """The entries of a tar stream, gzip-packed or not; the stream is read once, forwards."""
    is_packed = file.peek(2)[:2] == b"\x1f\x8b"
    meter = _Meter(gzip.GzipFile(fileobj=file) if is_packed else file, file if is_packed else None, where, limits)
    ledger = _Ledger(where, limits)
    meter.allow(MOST_BETWEEN_ENTRIES_BYTES)
    with tarfile.open(fileobj=meter, mode="r:", errors="surrogateescape") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()
            name = ledger.add(member.name, member.size, member.isreg())
            meter.allow(member.size + MOST_BETWEEN_ENTRIES_BYTES)
            if member.issparse() or not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                raise _refusal(where, name, f"expected a file, found {_tar_kind(member)}")
            if member.isreg():
                yield _tar_entry(tar, member, name, where, limits)
            elif not member.isdir():
                log.info("%s: the link %a is skipped", where, name)
    if meter.last != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{where}: expected the end mark of a tar file, found none: it is cut or damaged; get it anew")
    meter.allow(MOST_AFTER_END_BYTES)
    while is_packed and meter.read(CHUNK_BYTES):
        pass


def _tar_entry(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, where: str, limits: Limits) -> Entry:
    def read() -> bytes:
        _refuse_large(where, name, member.size, limits)
        with _refusing(where, name):
            return tar.extractfile(member).read()

    return Entry(name, member.size, read, lambda: _nested(tar.extractfile(member), name, where, limits))


def _tar_kind(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a sparse file"
    if member.isfifo():
        return "a pipe"
    return "a device" if member.isdev() else f"an entry of kind {member.type!r}"


class _BoundedReads(io.BufferedReader):
    """A zip file whose directory can't be read whole where that is too long: zipfile would do so."""

    def read(self, num_bytes: int | None = -1, /) -> bytes:
        if num_bytes is not None and num_bytes > MOST_DIRECTORY_BYTES:
            raise DataError(
                f"{self.raw.name}: expected a directory of at most {MOST_DIRECTORY_BYTES:,} bytes, found {num_bytes:,}"
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
            raise DataError(f"{where}: expected entries one after the other, found some that share their bytes")
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            is_link = kind == stat.S_IFLNK
            name = ledger.add(info.orig_filename, info.file_size, not info.is_dir())
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                raise _refusal(where, name, "expected a file, found a device or a pipe")
            if info.flag_bits & 1:
                raise _refusal(where, name, "expected a file, found an encrypted one")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _refusal(where, name, f"expected it stored or deflated, found method {info.compress_type}")
            if info.file_size > RATIO_FREE_BYTES:
                _refuse_ratio(f"{where}: entry {name!a}", info.file_size, info.compress_size, limits)
            if is_link:
                log.info("%s: the link %a is skipped", where, name)
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
    """The entries of a tar file that is itself an entry."""
    inner = f"{where}: {name}"
    with _refusing(inner), file:
        yield from _tar_entries(file, inner, limits)


@contextmanager
def _refusing(where: str, name: str | None = None) -> Iterator[None]:
    """What the standard library raises on hostile or torn bytes, as a DataError of one line."""
    try:
        yield
    except READING_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        entry = "" if name is None else f": entry {name!a}"
        raise DataError(f"{where}{entry}: can't be read: {ascii(reason)[1:-1][:200]}; get it anew") from None


def _refuse_large(where: str, name: str, num_bytes: int, limits: Limits) -> None:
    if num_bytes > limits.entry_bytes:
        raise _refusal(where, name, f"expected at most {limits.entry_bytes:,} bytes, found {num_bytes:,}")


def _refuse_ratio(where: str, num_bytes: int, packed_bytes: int, limits: Limits) -> None:
    if num_bytes > limits.ratio * packed_bytes:
        raise DataError(
            f"{where}: expected at most {limits.ratio} bytes from each packed one, "
            f"found {num_bytes:,} from {packed_bytes:,}"
        )


def _refusal(where: str, name: str, fault: str) -> DataError:
    shown = ascii(name) if len(name) <= 200 else f"{name[:100]!a}…"
    return DataError(f"{where}: entry {shown}: {fault}; get the archive from its publisher")
