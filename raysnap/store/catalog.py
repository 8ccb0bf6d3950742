"""The store's manifests and refs, read from their files with every byte checked; refs move by compare-and-swap."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from raysnap.errors import SnapshotNotFound, StoreDamaged, StoreError, StoreUnreadable
from raysnap.humanize import suggest
from raysnap.store.files import Files, names_in, read_bounded, read_error
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


def is_manifest_name(name: str) -> bool:
    """Return whether a file in `snapshots` has the name of a manifest: an id and `.json`."""
    return name.endswith(".json") and is_digest(name.removesuffix(".json"))


def manifest_path(files: Files, snapshot: str) -> Path:
    """Return the path of the manifest with this id, which is checked before it becomes a path."""
    return files.snapshots_dir / f"{check_digest(snapshot, 'snapshot id')}.json"


def snapshot_ids(files: Files) -> list[str]:
    """Return the ids of all snapshots, in no particular order."""
    return [name.removesuffix(".json") for name in names_in(files.snapshots_dir) if is_manifest_name(name)]


def read_manifest(path: Path) -> Manifest:
    """Read the manifest in a file named by its id.

    Raises:
        FileNotFoundError: there is no such manifest.
        StoreDamaged: it can't be read, is too large or not the manifest with that id.
    """
    return parse_manifest(read_manifest_bytes(path), str(path), expected_id=path.stem)


def read_manifest_bytes(path: Path) -> bytes:
    """Read the bytes of a manifest's file without checking them.

    Raises:
        FileNotFoundError: there is no such manifest.
        StoreDamaged: it can't be read or is too large.
    """
    raw = _read(path, MAX_MANIFEST_BYTES)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise StoreDamaged(f"{path}: expected at most {MAX_MANIFEST_BYTES} bytes, found more")
    return raw


def read_ref(path: Path) -> str:
    """Read the snapshot id in a ref's file.

    Raises:
        FileNotFoundError: there is no such ref.
        StoreDamaged: the file holds something other than an id.
    """
    raw = _read(path, REF_BYTES)
    text = raw.decode("ascii", errors="replace")
    if len(raw) != REF_BYTES or not is_digest(text[:-1]) or text[-1] != "\n":
        raise StoreDamaged(f"{path}: expected a snapshot id and a newline, found {text[:80]!r}; set the name again")
    return text[:-1]


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        return read_bounded(path, max_bytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise read_error(path, error, f"{path}: can't be read") from None


def snapshots_with(files: Files, digests: Iterable[str]) -> dict[str, list[str]]:
    """Return, for each digest, the sorted ids of the snapshots that contain this block."""
    holders: dict[str, list[str]] = {digest: [] for digest in digests}
    for snapshot in sorted(snapshot_ids(files)):
        with suppress(FileNotFoundError, StoreDamaged, StoreUnreadable):
            raw = read_manifest_bytes(manifest_path(files, snapshot))
            for digest in {found.decode() for found in block_digests(raw)} & holders.keys():
                holders[digest].append(snapshot)
    return holders


def resolve(files: Files, name_or_id: str, *, by_prefix: bool = False) -> str:
    """Return the full id of the snapshot with this name, id or prefix of an id (6 characters or more).

    Args:
        by_prefix: whether the beginning of names will do too, if they all are one snapshot's.

    Raises:
        SnapshotNotFound: there is none, or more than one.
        StoreDamaged: the name's ref is damaged or its snapshot is missing.
    """
    if is_ref_name(name_or_id):
        path = files.refs_dir / name_or_id
        with suppress(FileNotFoundError):
            snapshot = read_ref(path)
            if not manifest_path(files, snapshot).exists():
                raise StoreDamaged(
                    f"{path}: refers to snapshot {snapshot}, which is not in the store; set the name again"
                )
            return snapshot
    if is_digest(name_or_id) and manifest_path(files, name_or_id).exists():
        return name_or_id
    ids = sorted(snapshot_ids(files))
    is_prefix = re.fullmatch("[0-9a-f]{6,63}", name_or_id) is not None
    found = [snapshot for snapshot in ids if snapshot.startswith(name_or_id)] if is_prefix else []
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(snapshot[:16] for snapshot in found[:4])
        raise SnapshotNotFound(f"{files.root}: {name_or_id!r} is a prefix of {len(found)} ids: {shown}, …")
    names = [*filter(is_ref_name, names_in(files.refs_dir))]
    if by_prefix and (near := sorted(name for name in names if name_or_id and name.startswith(name_or_id))):
        snapshots = {read_ref(files.refs_dir / name) for name in near}
        if len(snapshots) == 1:
            return resolve(files, near[0])
        shown = ", ".join(near[:4]) + (", …" if len(near) > 4 else "")
        raise SnapshotNotFound(f"{files.root}: {name_or_id!r} is a prefix of {len(near)} names: {shown}")
    known = [*names, *ids]
    hint = suggest(name_or_id[:200], known) or "; `raysnap store ls` lists the snapshots"
    raise SnapshotNotFound(f"{files.root}: no snapshot has the name or id {name_or_id[:200]!r}{hint}")


def set_ref(files: Files, name: str, snapshot: str, expected: str | None = None) -> None:
    """Make `name` refer to the snapshot with this id.

    Args:
        files: the store's files.
        name: letters, digits, '.', '_', '-'.
        snapshot: the id.
        expected: the id that it must refer to now; `ABSENT` for a new name; None for any.

    Raises:
        SnapshotNotFound: there is no such snapshot.
        StoreError: the name refers to another snapshot than `expected`; nothing is changed.
    """
    path = files.refs_dir / check_ref_name(name)
    with files.ref_lock():
        if not manifest_path(files, snapshot).exists():
            raise SnapshotNotFound(f"{files.root}: no snapshot {snapshot} to name {name!r}")
        _refer(files, path, snapshot, _compare_ref(path, expected))


def _refer(files: Files, path: Path, snapshot: str, current: str | None) -> None:
    """Make the ref, which holds `current` now, hold this id."""
    if current == snapshot:
        files.sync(path)
    else:
        files.write(path, f"{snapshot}\n".encode())


def give_name(files: Files, name: str, snapshot: str) -> str:
    """Name the snapshot with this id, and return the name that it got: `name`, or `name-2`, `name-3`, ….

    It is the first that refers to this snapshot already, or to none that is in the store.

    Raises:
        SnapshotNotFound: there is no such snapshot.
    """
    check_ref_name(name)
    with files.ref_lock():
        if not manifest_path(files, snapshot).exists():
            raise SnapshotNotFound(f"{files.root}: no snapshot {snapshot} to name {name!r}")
        for number in itertools.count(1):
            free = name if number == 1 else check_ref_name(f"{name}-{number}")
            path = files.refs_dir / free
            current = _compare_ref(path, None)
            if current is None or current == snapshot or not manifest_path(files, current).exists():
                _refer(files, path, snapshot, current)
                return free
    raise AssertionError("unreachable: numbers don't end")


def remove_ref(files: Files, name: str, expected: str | None = None) -> None:
    """Remove the name, if it refers to `expected` (None for any); the snapshot stays.

    Raises:
        SnapshotNotFound: there is no such name.
        StoreError: it refers to another snapshot than `expected`; nothing is changed.
    """
    path = files.refs_dir / check_ref_name(name)
    with files.ref_lock():
        _compare_ref(path, expected)
        if not files.remove(path):
            raise SnapshotNotFound(f"{files.root}: no snapshot is named {name!r}")


def remove_snapshots(files: Files, snapshots: Collection[str]) -> None:
    """Remove the manifests with these ids and all their names; the lock prevents others from naming them meanwhile."""
    contents = {f"{snapshot}\n".encode() for snapshot in snapshots}
    with files.ref_lock():
        for name in filter(is_ref_name, names_in(files.refs_dir)):
            with suppress(FileNotFoundError):
                if _read(files.refs_dir / name, REF_BYTES) in contents:
                    files.remove(files.refs_dir / name)
        for snapshot in sorted(snapshots):
            files.remove(manifest_path(files, snapshot))


def _compare_ref(path: Path, expected: str | None) -> str | None:
    """Return what the ref holds, None for nothing readable, if that is what is expected."""
    current = None
    try:
        current = read_ref(path)
    except FileNotFoundError:
        pass
    except StoreDamaged:
        if expected is not None:
            raise
    if expected is not None and (current or ABSENT) != expected:
        wanted, found = expected or "no snapshot yet", current or "none"
        raise StoreError(f"{path}: expected it to refer to {wanted}, found {found}; nothing is changed")
    return current
