"""The store's manifests and refs, read with every byte checked; refs move by compare-and-swap."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import nullcontext, suppress

from raysnap.errors import SnapshotNotFound, StoreDamaged, StoreError, StoreUnreadable
from raysnap.humanize import suggest
from raysnap.store.backends.place import REFS, SNAPSHOTS, Place, Sighting, is_manifest_name
from raysnap.store.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    block_digests,
    check_digest,
    check_ref_name,
    is_digest,
    is_ref_name,
    parse_manifest,
)

REF_BYTES = 65
ABSENT = ""


def manifest_key(snapshot: str) -> str:
    """Return the key of the manifest with this id, which is checked before it becomes a path."""
    return f"{SNAPSHOTS}/{check_digest(snapshot, 'snapshot id')}.json"


def ref_key(name: str) -> str:
    """Return the key of the ref with this name, which is checked before it becomes a path."""
    return f"{REFS}/{check_ref_name(name)}"


def snapshot_ids(place: Place) -> list[str]:
    """Return the ids of all snapshots, in no particular order."""
    return [name.removesuffix(".json") for name in place.names(SNAPSHOTS) if is_manifest_name(name)]


def read_manifest(place: Place, snapshot: str) -> Manifest:
    """Read the manifest with this id.

    Raises:
        FileNotFoundError: there is no such manifest.
        StoreDamaged: it can't be read, is too large or not the manifest with that id.
    """
    key = manifest_key(snapshot)
    return parse_manifest(read_manifest_bytes(place, key), place.where(key), expected_id=snapshot)


def read_manifest_bytes(place: Place, key: str) -> bytes:
    """Read the bytes of a manifest or draft without checking them.

    Raises:
        FileNotFoundError: there is none.
        StoreDamaged: it can't be read or is too large.
    """
    raw = place.read(key, MAX_MANIFEST_BYTES)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise StoreDamaged(f"{place.where(key)}: expected at most {MAX_MANIFEST_BYTES} bytes, found more")
    return raw


def read_ref(place: Place, name: str) -> str:
    """Read the snapshot id that a name refers to.

    Raises:
        FileNotFoundError: there is no such ref.
        StoreDamaged: it holds something other than an id.
    """
    found = place.look(ref_key(name), REF_BYTES)
    if found is None or found.is_removed:
        raise FileNotFoundError(name)
    return _parse_ref(place, name, found.content)


def _parse_ref(place: Place, name: str, raw: bytes) -> str:
    text = raw.decode("ascii", errors="replace")
    if len(raw) != REF_BYTES or not is_digest(text[:-1]) or text[-1] != "\n":
        where = place.where(ref_key(name))
        raise StoreDamaged(f"{where}: expected a snapshot id and a newline, found {text[:80]!r}; set the name again")
    return text[:-1]


def ref_names(place: Place) -> list[str]:
    """Return all names, in no particular order."""
    return [*filter(is_ref_name, place.names(REFS))]


def snapshots_with(place: Place, digests: Iterable[str]) -> dict[str, list[str]]:
    """Return, for each digest, the sorted ids of the snapshots that contain this block."""
    holders: dict[str, list[str]] = {digest: [] for digest in digests}
    snapshots = sorted(snapshot_ids(place))
    for snapshot, needed in zip(snapshots, place.map(lambda one: needed_by(place, one), snapshots), strict=True):
        for digest in {found.decode() for found in needed} & holders.keys():
            holders[digest].append(snapshot)
    return holders


def needed_by(place: Place, snapshot: str) -> list[bytes]:
    """Return the digests of a snapshot's objects, as ASCII, without checking its manifest; none of one unreadable."""
    with suppress(FileNotFoundError, StoreDamaged, StoreUnreadable):
        return block_digests(read_manifest_bytes(place, manifest_key(snapshot)))
    return []


def resolve(place: Place, name_or_id: str, *, by_prefix: bool = False) -> str:
    """Return the full id of the snapshot with this name, id or prefix of an id (6 characters or more).

    Args:
        by_prefix: whether the beginning of names will do too, if they all are one snapshot's.

    Raises:
        SnapshotNotFound: there is none, or more than one.
        StoreDamaged: the name's ref is damaged or its snapshot is missing.
    """
    if is_ref_name(name_or_id):
        with suppress(FileNotFoundError):
            snapshot = read_ref(place, name_or_id)
            if not place.exists(manifest_key(snapshot)):
                where = place.where(ref_key(name_or_id))
                raise StoreDamaged(
                    f"{where}: refers to snapshot {snapshot}, which is not in the store; set the name again"
                )
            return snapshot
    if is_digest(name_or_id) and place.exists(manifest_key(name_or_id)):
        return name_or_id
    ids = sorted(snapshot_ids(place))
    is_prefix = re.fullmatch("[0-9a-f]{6,63}", name_or_id) is not None
    found = [snapshot for snapshot in ids if snapshot.startswith(name_or_id)] if is_prefix else []
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(snapshot[:16] for snapshot in found[:4])
        raise SnapshotNotFound(f"{place.where()}: {name_or_id!r} is a prefix of {len(found)} ids: {shown}, …")
    names = ref_names(place)
    if by_prefix and (near := sorted(name for name in names if name_or_id and name.startswith(name_or_id))):
        snapshots = {read_ref(place, name) for name in near}
        if len(snapshots) == 1:
            return resolve(place, near[0])
        shown = ", ".join(near[:4]) + (", …" if len(near) > 4 else "")
        raise SnapshotNotFound(f"{place.where()}: {name_or_id!r} is a prefix of {len(near)} names: {shown}")
    known = [*names, *ids]
    hint = suggest(name_or_id[:200], known) or "; `raysnap store ls` lists the snapshots"
    raise SnapshotNotFound(f"{place.where()}: no snapshot has the name or id {name_or_id[:200]!r}{hint}")


def set_ref(place: Place, name: str, snapshot: str, expected: str | None = None) -> None:
    """Make `name` refer to the snapshot with this id.

    Args:
        place: the store's place.
        name: letters, digits, '.', '_', '-'.
        snapshot: the id.
        expected: the id that it must refer to now; `ABSENT` for a new name; None for any.

    Raises:
        SnapshotNotFound: there is no such snapshot.
        StoreError: the name refers to another snapshot than `expected`; nothing is changed.
    """
    check_ref_name(name)
    with place.hold_names():
        _check_nameable(place, name, snapshot)
        while True:
            seen, _ = _compare_ref(place, name, expected)
            if _refer(place, name, snapshot, seen):
                return


def _check_nameable(place: Place, name: str, snapshot: str) -> None:
    if not place.exists(manifest_key(snapshot)):
        raise SnapshotNotFound(f"{place.where()}: no snapshot {snapshot} to name {name!r}")


def _refer(place: Place, name: str, snapshot: str, seen: Sighting | None) -> bool:
    """Make the ref hold this id if it still is what was seen; return whether it was.

    Where names have no lock, `remove_snapshots` may have looked at the names before this one and removed the manifest
    since: looking after the swap, as that looks at the names after the removal, one of the two takes the name back.

    Raises:
        SnapshotNotFound: the snapshot was removed meanwhile; the name is as it was, or gone.
    """
    content = f"{snapshot}\n".encode()
    if not place.swap(ref_key(name), seen, content):
        return False
    try:
        _check_nameable(place, name, snapshot)
    except SnapshotNotFound:
        now = place.look(ref_key(name), REF_BYTES)
        if now is not None and now.content == content:
            place.swap(ref_key(name), now, seen.content if seen is not None and seen.content != content else b"")
        raise
    return True


def give_name(place: Place, name: str, snapshot: str) -> str:
    """Name the snapshot with this id, and return the name that it got: `name`, or `name-2`, `name-3`, ….

    It is the first that refers to this snapshot already, or to none that is in the store.

    Raises:
        SnapshotNotFound: there is no such snapshot.
    """
    check_ref_name(name)
    with place.hold_names():
        _check_nameable(place, name, snapshot)
        for number in itertools.count(1):
            free = name if number == 1 else f"{name}-{number}"
            while True:
                seen, current = _compare_ref(place, free, None)
                if current not in (None, snapshot) and place.exists(manifest_key(current or "")):
                    break
                if _refer(place, free, snapshot, seen):
                    return free
    raise AssertionError("unreachable: numbers don't end")


def remove_ref(place: Place, name: str, expected: str | None = None) -> None:
    """Remove the name, if it refers to `expected` (None for any); the snapshot stays.

    Raises:
        SnapshotNotFound: there is no such name.
        StoreError: it refers to another snapshot than `expected`; nothing is changed.
    """
    check_ref_name(name)
    with place.hold_names():
        while True:
            seen, _ = _compare_ref(place, name, expected)
            if seen is None or seen.is_removed:
                raise SnapshotNotFound(f"{place.where()}: no snapshot is named {name!r}")
            if place.swap(ref_key(name), seen, b""):
                return


def remove_snapshots(place: Place, snapshots: Collection[str], others: Mapping[str, str]) -> None:
    """Remove the manifests with these ids and all their names.

    Names are looked at once more in the end: where there is no lock, one may have been given meanwhile (`_refer`).

    Args:
        place: the store's place.
        snapshots: the ids.
        others: stamps of names at which they refer to other snapshots, as far as is known: they need not be read.
    """
    keys = [manifest_key(snapshot) for snapshot in sorted(snapshots)]
    with place.hold_names():
        others = {**others, **_take_names(place, snapshots, others)}
        for key in keys:
            place.remove(key)
        _take_names(place, snapshots, others)


def _take_names(place: Place, snapshots: Collection[str], others: Mapping[str, str]) -> dict[str, str]:
    """Remove the names of these snapshots, reading none that has the stamp that `others` knows it by.

    Return the stamps of the other names that were read, where a place says at which stamp it read.
    """
    contents = {f"{snapshot}\n".encode() for snapshot in snapshots}
    names = [one for one in place.entries(REFS) if is_ref_name(one.name) and others.get(one.name) != one.stamp]
    stamps: dict[str, str] = {}
    looks = place.map(lambda one: place.look(ref_key(one.name), REF_BYTES), names)
    for (name, _, _, stamp), seen in zip(names, looks, strict=True):
        if seen is not None and seen.version == stamp and seen.content not in contents:
            stamps[name] = stamp
        while seen is not None and seen.content in contents and not place.swap(ref_key(name), seen, b""):
            seen = place.look(ref_key(name), REF_BYTES)
    return stamps


def _compare_ref(place: Place, name: str, expected: str | None) -> tuple[Sighting | None, str | None]:
    """Return the ref and the id that it holds, None for nothing readable, if that is what is expected."""
    seen, current = place.look(ref_key(name), REF_BYTES), None
    if seen is not None and not seen.is_removed:
        with suppress(StoreDamaged) if expected is None else nullcontext():
            current = _parse_ref(place, name, seen.content)
    if expected is not None and (current or ABSENT) != expected:
        wanted, found = expected or "no snapshot yet", current or "none"
        where = place.where(ref_key(name))
        raise StoreError(f"{where}: expected it to refer to {wanted}, found {found}; nothing is changed")
    return seen, current
