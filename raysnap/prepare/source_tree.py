"""The files of a dataset's source under one set of names, in a folder, in archives, or in both.

A converter reads twice: first all names and the small files that describe the others, then the images it chose. So one
converter serves archives and folders, finds every fault before anything is written, and never holds an archive in
memory. The price is that a packed archive is unpacked twice, at the speed of gzip.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysnap.datasets.image_folder import RECORD_NAME
from raysnap.datasets.layout.walk import is_system
from raysnap.errors import DataError
from raysnap.prepare.archives import Entry, Limits, read_archive

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Survey:
    """What the first reading of a source found.

    Attributes:
        where: the source, for messages.
        names: every file that is not junk, sorted, `/` between folders.
        contents: contents of the files that describe the others, by name.
    """

    where: str
    names: tuple[str, ...]
    contents: dict[str, bytes]


@dataclass(frozen=True)
class Tree:
    """The files below `folder`, if any, and in `archives`; a file in both is read from the folder.

    Attributes:
        chosen: names of the files of `folder` to use; None is all.
        nested: names of archives within archives that are opened too.
    """

    where: str
    folder: Path | None = None
    chosen: tuple[str, ...] | None = None
    archives: tuple[Path, ...] = ()
    nested: frozenset[str] = frozenset()
    limits: Limits = field(default=Limits())

    def survey(self, metadata_names: Collection[str]) -> Survey:
        """Return all names, and the contents of the files that are named like one of `metadata_names`.

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
        """Yield each of the files `wanted`: its name, its content, and its path where it lies in the folder."""
        in_folder = set(self._folder_names()) if self.archives else wanted
        for name in wanted:
            if name in in_folder and self.folder is not None:
                yield name, self._read(name), self.folder / name
        for entry in self._entries(in_folder):
            if entry.name in wanted:
                yield entry.name, entry.read(), None

    def records(self, wanted: Collection[str], published: Collection[str]) -> list[dict[str, Any]]:
        """Return name, size and digests of each file that the dataset is made from, for `dataset.json`.

        Each archive has a record, and so has each file of the folder whose name is one of `published`; the other files
        `wanted` of the folder share one record, whose digest is over their names and digests.
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
        """Yield the files of the archives and of nested ones, except junk and the names `taken`."""
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
        assert self.folder is not None  # only names of the folder are read here
        path = self.folder / name
        try:
            num_bytes = path.stat().st_size
            if num_bytes > self.limits.entry_bytes:
                raise DataError(f"{path}: expected at most {self.limits.entry_bytes:,} bytes, found {num_bytes:,}")
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror}; check its permissions") from None


def list_files(folder: Path, limits: Limits) -> list[str]:
    """Return the names of the files anywhere below `folder` that are not junk, sorted.

    Linked folders are left out, and so are datasets that raysnap made there: they are not a source.

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
                f"{folder}: expected at most {limits.num_entries:,} files, found more; pass the dataset's own folder"
            )
    return sorted(names)


def is_junk(name: str) -> bool:
    """Return whether a system or a file manager left this file behind, such as dot-files and `__MACOSX`."""
    return any(is_system(part) for part in name.split("/"))


def is_archive_name(name: str) -> bool:
    """Return whether a file's name has an archive's suffix."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def archive_stem(name: str) -> str:
    """Return an archive's name in lower case without its suffix, which is the same however it is packed."""
    folded = name.lower()
    return next((folded.removesuffix(suffix) for suffix in ARCHIVE_SUFFIXES if folded.endswith(suffix)), folded)


def file_record(path: Path) -> dict[str, Any]:
    """Return name, size and digests of one file, read once."""
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
    """Return the part of a name after the last `/`."""
    return name.rsplit("/", 1)[-1]
