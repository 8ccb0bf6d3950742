"""The files of a dataset's source under one set of names, be they in a folder, in archives, or in both.

A converter looks twice: first at all names and the small files that say what is what, then at the images it chose.
So it is written once for archives and folders, knows of every fault before anything is written, and never holds an
archive in memory. A packed archive is unpacked twice for it, at the speed of gzip.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysnap.datasets.image_folder import RECORD_NAME
from raysnap.errors import DataError
from raysnap.prepare.archives import Entry, Limits, read_archive

JUNK_NAMES = frozenset(("__MACOSX", "Thumbs.db", "desktop.ini"))
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Survey:
    """What a first look at a source gave.

    Attributes:
        where: the source, for messages.
        names: every file that is not junk, sorted, `/` between folders.
        contents: the files that say what the others are.
    """

    where: str
    names: tuple[str, ...]
    contents: dict[str, bytes]


@dataclass(frozen=True)
class Tree:
    """The files below `folder` (where it is one) and in `archives`; what is in both is taken from the folder.

    Attributes:
        chosen: the files of `folder` to take, or None for all.
        nested: names of archives in archives that are opened too.
    """

    where: str
    folder: Path | None = None
    chosen: tuple[str, ...] | None = None
    archives: tuple[Path, ...] = ()
    nested: frozenset[str] = frozenset()
    limits: Limits = field(default=Limits())

    def survey(self, metadata_names: Collection[str]) -> Survey:
        """All names, and the contents of the files that are called one of `metadata_names`.

        Raises:
            DataError: something can't be read, or an archive is damaged or hostile.
        """
        names = set(self._folder_names())
        contents = {name: self._read(name) for name in names if base_name(name) in metadata_names}
        for entry in self._entries(frozenset(names)):
            if entry.name in names:
                raise DataError(f"{self.where}: expected each file once, found {entry.name!a} in two archives")
            names.add(entry.name)
            if base_name(entry.name) in metadata_names:
                contents[entry.name] = entry.read()
        return Survey(self.where, tuple(sorted(names)), contents)

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes, Path | None]]:
        """Each of the files `wanted` with its content, and its path where it lies in the folder, in reading order."""
        in_folder = set(self._folder_names()) if self.archives else wanted
        for name in wanted:
            if name in in_folder and self.folder is not None:
                yield name, self._read(name), self.folder / name
        for entry in self._entries(in_folder):
            if entry.name in wanted:
                yield entry.name, entry.read(), None

    def records(self, wanted: Collection[str], published: Collection[str]) -> list[dict[str, Any]]:
        """Name, size and digests of each file that the dataset is made from, for `dataset.json`.

        An archive stands for itself, and so does a file of the folder whose name is one of `published`; the other files
        `wanted` of the folder share one record, whose digest is that of their names and digests.
        """
        records = [file_record(path) for path in self.archives]
        if self.folder is None:
            return records
        own_names = [name for name in self._folder_names() if name in wanted]
        records += [file_record(self.folder / name) for name in own_names if base_name(name) in published]
        shared = [name for name in own_names if base_name(name) not in published]
        if shared:
            listing, num_bytes = hashlib.sha256(), 0
            for name in shared:
                content = self._read(name)
                num_bytes += len(content)
                listing.update(os.fsencode(f"{name}\0{hashlib.sha256(content).hexdigest()}\n"))
            records.append(
                {
                    "name": f"{self.folder.name}/",
                    "num_files": len(shared),
                    "num_bytes": num_bytes,
                    "sha256": listing.hexdigest(),
                }
            )
        return records

    def _entries(self, taken: Collection[str]) -> Iterator[Entry]:
        """The archives' files, those of nested archives among them, without junk and without what is `taken`."""
        for path in self.archives:
            for entry in read_archive(path, self.limits):
                inner = entry.entries() if base_name(entry.name) in self.nested else (entry,)
                for file in inner:
                    if not is_junk(file.name) and file.name not in taken:
                        yield file

    def _folder_names(self) -> list[str]:
        if self.folder is None or self.chosen is not None:
            return list(self.chosen or ())
        return list_files(self.folder, self.limits)

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            num_bytes = path.stat().st_size
            if num_bytes > self.limits.entry_bytes:
                raise DataError(f"{path}: expected at most {self.limits.entry_bytes:,} bytes, found {num_bytes:,}")
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror}; check its permissions") from None


def list_files(folder: Path, limits: Limits) -> list[str]:
    """The names of the files anywhere below `folder` that are not junk, sorted.

    Folders that are links are left out, and so are datasets that raysnap made there: they are no source.

    Raises:
        DataError: a folder can't be listed, or there are more files than a dataset has.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: can't be listed: {error.strerror}; check its permissions") from None

    names: list[str] = []
    for parent, subfolders, files in os.walk(folder, onerror=refuse):
        if RECORD_NAME in files and Path(parent) != folder:
            subfolders.clear()
            continue
        subfolders[:] = [name for name in subfolders if not is_junk(name)]
        prefix = Path(parent).relative_to(folder)
        paths = ((prefix / name).as_posix() for name in files if not is_junk(name))
        names.extend(name for name in paths if (folder / name).is_file())
        if len(names) > limits.num_entries:
            raise DataError(
                f"{folder}: expected at most {limits.num_entries:,} files, found more; name the dataset's own"
            )
    return sorted(names)


def is_junk(name: str) -> bool:
    """Whether file managers left this file behind: a part of its name begins with a dot or is `__MACOSX`."""
    return any(part.startswith(".") or part in JUNK_NAMES for part in name.split("/"))


def is_archive_name(name: str) -> bool:
    """Whether a file's name says that it is an archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def archive_stem(name: str) -> str:
    """An archive's name without its suffix, in lower case: what stays the same when it is packed in another way."""
    folded = name.lower()
    return next((folded.removesuffix(suffix) for suffix in ARCHIVE_SUFFIXES if folded.endswith(suffix)), folded)


def file_record(path: Path) -> dict[str, Any]:
    """Name, size and digests of one file, read once."""
    sha256, md5, num_bytes = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(HASH_CHUNK_BYTES):
                sha256.update(chunk)
                md5.update(chunk)
                num_bytes += len(chunk)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}; check its permissions") from None
    return {"name": path.name, "num_bytes": num_bytes, "sha256": sha256.hexdigest(), "md5": md5.hexdigest()}


def base_name(name: str) -> str:
    """The part of a name after the last `/`."""
    return name.rsplit("/", 1)[-1]
