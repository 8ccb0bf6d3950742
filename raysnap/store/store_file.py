"""STORE/store.json, the file that marks a place as a store of one format: checked at every opening, only raised."""

from __future__ import annotations

import json

from raysnap.canonical_json import canonical_json
from raysnap.errors import StoreDamaged, StoreError
from raysnap.store.backends.place import STORE_FILE, Place
from raysnap.store.manifest import FORMAT_1, FORMATS

MAX_STORE_FILE_BYTES = 65_536
STORE_CONTENTS = {number: canonical_json({"digest": "blake3", "format": number}) + b"\n" for number in FORMATS}


def check_or_create(place: Place, create: bool) -> None:
    """Check that the folder is a store of this format; with `create`, make it one if there is nothing yet.

    Raises:
        StoreError: there is no store, the folder holds something else, or the store's format is newer.
        StoreDamaged: store.json is damaged.
    """
    try:
        _read_format(place)
    except FileNotFoundError:
        try:
            place.check_vacant(create)
        except StoreError:
            if not place.exists(STORE_FILE):
                raise
            check_or_create(place, create=False)  # another process created it a moment ago
            return
        place.prepare()
        place.create(STORE_FILE, STORE_CONTENTS[FORMAT_1])


def raise_format(place: Place, needed: int) -> None:
    """Make the store one of this format unless it is already; called before its first manifest of that format.

    Older raysnaps then refuse the store and change nothing in it. It is replaced as names are; a lock on
    names is one on this file.

    Raises:
        StoreError: the file can't be written, or became one of a newer format meanwhile.
        StoreDamaged: the file is damaged.
    """
    if needed == FORMAT_1:
        return
    if _read_format(place) >= needed:
        place.sync(STORE_FILE)
        return
    with place.hold_names():
        while True:
            seen = place.look(STORE_FILE, MAX_STORE_FILE_BYTES)
            if seen is None:
                raise StoreDamaged(f"{place.where(STORE_FILE)}: expected the store's own file, found none")
            if _check_format(seen.content, place.where(STORE_FILE)) >= needed:
                return
            if place.swap(STORE_FILE, seen, STORE_CONTENTS[needed]):
                return


def _read_format(place: Place) -> int:
    return _check_format(place.read(STORE_FILE, MAX_STORE_FILE_BYTES), place.where(STORE_FILE))


def _check_format(raw: bytes, where: str) -> int:
    """Return the format that the file says, checked byte for byte."""
    newest = max(FORMATS)
    try:
        document = json.loads(raw)
        found, digest = document["format"], document.get("digest")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StoreDamaged(f'{where}: expected {{"digest":"blake3","format":{newest}}}, found something else') from None
    if type(found) is int and found > newest:
        raise StoreError(
            f"{where}: expected format {newest} or older, found the newer format {found}; nothing was changed. Use a "
            "newer raysnap"
        )
    if type(found) is not int or found not in FORMATS or digest != "blake3":
        shown = f"{found!r} with {digest!r}"[:200]
        raise StoreDamaged(f"{where}: expected format {newest} or older with digest blake3, found {shown}")
    if raw != STORE_CONTENTS[found]:
        raise StoreDamaged(
            f"{where}: expected {STORE_CONTENTS[found]!r}, found {raw[:200]!r}; write exactly the expected bytes"
        )
    return found
