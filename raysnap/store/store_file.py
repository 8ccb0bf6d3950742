"""STORE/store.json, the file that marks a folder as a store of one format: checked at every opening, only raised."""

from __future__ import annotations

import errno
import json
from pathlib import Path

from raysnap.canonical_json import canonical_json
from raysnap.errors import StoreDamaged, StoreError
from raysnap.store.files import Files, names_in, read_bounded, translate_write_errors
from raysnap.store.manifest import FORMAT_1, FORMATS

STORE_FILE = "store.json"
MAX_STORE_FILE_BYTES = 65_536
STORE_CONTENTS = {number: canonical_json({"digest": "blake3", "format": number}) + b"\n" for number in FORMATS}


def check_or_create(files: Files, create: bool) -> None:
    """Check that the folder is a store of this format; with `create`, make it one if there is nothing yet.

    Raises:
        StoreError: there is no store, the folder holds something else, or the store's format is newer.
        StoreDamaged: store.json is damaged.
    """
    path = files.root / STORE_FILE
    try:
        raw = read_bounded(path, MAX_STORE_FILE_BYTES)
    except FileNotFoundError:
        try:
            _check_vacant(files, create)
        except StoreError:
            if not path.exists():
                raise
            check_or_create(files, create=False)  # another process created it a moment ago
            return
        files.create_folders()
        files.write_new(path, STORE_CONTENTS[FORMAT_1])
        return
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise StoreError(f"{files.root}: expected a store's folder, found a file") from None
        raise StoreError(f"{files.root}: can't be read as a store: {error.strerror}") from None
    _check_format(raw, path)


def raise_format(files: Files, needed: int) -> None:
    """Make the store one of this format unless it is already; called before its first manifest of that format.

    Older raysnaps then refuse the store and change nothing in it. The file is replaced under the names' lock, which is
    on this file.

    Raises:
        StoreError: the file can't be written, or became one of a newer format meanwhile.
        StoreDamaged: the file is damaged.
    """
    path = files.root / STORE_FILE
    if needed == FORMAT_1:
        return
    if _read_format(path) >= needed:
        files.sync(path)
        return
    with files.ref_lock():
        if _read_format(path) < needed:
            files.write(path, STORE_CONTENTS[needed])


def _read_format(path: Path) -> int:
    with translate_write_errors(path):
        return _check_format(read_bounded(path, MAX_STORE_FILE_BYTES), path)


def _check_vacant(files: Files, create: bool) -> None:
    """Refuse to create a store where anything else is; the empty folders of an interrupted start are allowed."""
    path = files.root
    if path.is_symlink() and not path.exists():
        raise StoreError(f"{path}: expected a folder, found a broken link")
    if not path.exists():
        if not create:
            raise StoreError(f"{path}: expected a model store, found nothing there")
        return
    with translate_write_errors(path):
        names = set(names_in(path))
    if names and not (names <= {"objects", "snapshots", "refs", "tmp"} and _is_empty(files)):
        raise StoreError(f"{path}: expected a model store, found a folder without {STORE_FILE}")
    if not create:
        raise StoreError(f"{path}: expected a model store, found an empty folder")


def _is_empty(files: Files) -> bool:
    folders = (folder for folder in (files.snapshots_dir, files.refs_dir) if folder.is_dir())
    has_objects = files.objects_dir.is_dir() and next(files.objects(), None) is not None
    return not any(names_in(folder) for folder in folders) and not has_objects


def _check_format(raw: bytes, path: Path) -> int:
    """Return the format that the file says, checked byte for byte."""
    newest = max(FORMATS)
    try:
        document = json.loads(raw)
        found, digest = document["format"], document.get("digest")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StoreDamaged(f'{path}: expected {{"digest":"blake3","format":{newest}}}, found something else') from None
    if type(found) is int and found > newest:
        raise StoreError(
            f"{path}: expected format {newest} or older, found the newer format {found}; nothing was changed. Use a "
            "newer raysnap"
        )
    if type(found) is not int or found not in FORMATS or digest != "blake3":
        shown = f"{found!r} with {digest!r}"[:200]
        raise StoreDamaged(f"{path}: expected format {newest} or older with digest blake3, found {shown}")
    if raw != STORE_CONTENTS[found]:
        raise StoreDamaged(
            f"{path}: expected {STORE_CONTENTS[found]!r}, found {raw[:200]!r}; write exactly the expected bytes"
        )
    return found
