"""The store's manifests and refs, read from their files with every byte checked; refs move by compare-and-swap."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from raysnap.errors import SnapshotNotFound, StoreDamaged, StoreError
from raysnap.humanize import suggest
from raysnap.store.files import Files, names_in, read_bounded
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
    """Whether a file in `snapshots` is called as a manifest is: its id and `.json`."""
    return name.endswith(".json") and is_digest(name.removesuffix(".json"))


def manifest_path(files: Files, snapshot: str) -> Path:
    """Where the manifest of this id lies; the id is checked before it becomes a path."""
    return files.snapshots_dir / f"{check_digest(snapshot, 'snapshot id')}.json"


def snapshot_ids(files: Files) -> list[str]:
    """The ids of all snapshots, in no order."""
    return [name.removesuffix(".json") for name in names_in(files.snapshots_dir) if is_manifest_name(name)]


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file named by its id.

    Raises:
        FileNotFoundError: there is no such manifest.
        StoreDamaged: it can't be read, is too large or not the manifest of that id.
    """
    return parse_manifest(read_manifest_bytes(path), str(path), expected_id=path.stem)


def read_manifest_bytes(path: Path) -> bytes:
    """The bytes of a manifest's file, not yet checked.

    Raises:
        FileNotFoundError: there is no such manifest.
        StoreDamaged: it can't be read or is too large.
    """
    raw = _read(path, MAX_MANIFEST_BYTES)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise StoreDamaged(f"{path}: expected at most {MAX_MANIFEST_BYTES} bytes, found more")
    return raw


def read_ref(path: Path) -> str:
    """The snapshot id in a ref's file.

    Raises:
        FileNotFoundError: there is no such ref.
        StoreDamaged: the file holds something else than an id.
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
        raise StoreDamaged(f"{path}: can't be read: {error.strerror}") from None


def snapshots_with(files: Files, digests: Iterable[str]) -> dict[str, list[str]]:
    """For each digest the ids of the snapshots that hold this block, sorted."""
    holders: dict[str, list[str]] = {digest: [] for digest in digests}
    for snapshot in sorted(snapshot_ids(files)):
        with suppress(FileNotFoundError, StoreDamaged):
            raw = read_manifest_bytes(manifest_path(files, snapshot))
            for digest in {found.decode() for found in block_digests(raw)} & holders.keys():
                holders[digest].append(snapshot)
    return holders


def resolve(files: Files, name_or_id: str) -> str:
    """The full id of the snapshot that goes by this name, id or beginning of an id.

    Raises:
        SnapshotNotFound: there is none, or more than one.
        StoreDamaged: the name's ref is damaged or its snapshot is gone.
    """
    if is_ref_name(name_or_id):
        path = files.refs_dir / name_or_id
        with suppress(FileNotFoundError):
            snapshot = read_ref(path)
            if not manifest_path(files, snapshot).exists():
                raise StoreDamaged(f"{path}: names snapshot {snapshot}, which is not in the store; set the name again")
            return snapshot
    if is_digest(name_or_id) and manifest_path(files, name_or_id).exists():
        return name_or_id
    ids = sorted(snapshot_ids(files))
    found = [one for one in ids if one.startswith(name_or_id)] if re.fullmatch("[0-9a-f]{6,63}", name_or_id) else []
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(one[:16] for one in found[:4])
        raise SnapshotNotFound(f"{files.root}: {name_or_id!r} is the beginning of {len(found)} ids: {shown}, …")
    known = [*filter(is_ref_name, names_in(files.refs_dir)), *ids]
    hint = suggest(name_or_id[:200], known) or "; `raysnap store ls` lists what is there"
    raise SnapshotNotFound(f"{files.root}: no snapshot goes by {name_or_id[:200]!r}{hint}")


def set_ref(files: Files, name: str, snapshot: str, expected: str | None = None) -> None:
    """Makes `name` stand for the snapshot with this id.

    Args:
        files: the store's files.
        name: letters, digits, '.', '_', '-'.
        snapshot: the id.
        expected: the id it must stand for until now, `ABSENT` for a new name, None for whatever.

    Raises:
        SnapshotNotFound: there is no such snapshot.
        StoreError: the name stands for another snapshot than `expected`; nothing is changed.
    """
    path = files.refs_dir / check_ref_name(name)
    with files.ref_lock():
        if not manifest_path(files, snapshot).exists():
            raise SnapshotNotFound(f"{files.root}: no snapshot {snapshot} to name {name!r}")
        if _compare_ref(path, expected) == snapshot:
            files.sync(path)
        else:
            files.write(path, f"{snapshot}\n".encode())


def remove_ref(files: Files, name: str, expected: str | None = None) -> None:
    """Takes the name away, whatever or `expected` it stands for; the snapshot stays.

    Raises:
        SnapshotNotFound: there is no such name.
        StoreError: it stands for another snapshot than `expected`.
    """
    path = files.refs_dir / check_ref_name(name)
    with files.ref_lock():
        _compare_ref(path, expected)
        if not files.remove(path):
            raise SnapshotNotFound(f"{files.root}: no snapshot is named {name!r}")


def remove_snapshot(files: Files, snapshot: str) -> None:
    """Takes away the manifest of this id and all its names; the lock keeps anyone from naming it meanwhile."""
    with files.ref_lock():
        for name in filter(is_ref_name, names_in(files.refs_dir)):
            with suppress(FileNotFoundError):
                if _read(files.refs_dir / name, REF_BYTES) == f"{snapshot}\n".encode():
                    files.remove(files.refs_dir / name)
        files.remove(manifest_path(files, snapshot))


def _compare_ref(path: Path, expected: str | None) -> str | None:
    """What the ref holds, None for nothing readable, when that is what is expected."""
    current = None
    try:
        current = read_ref(path)
    except FileNotFoundError:
        pass
    except StoreDamaged:
        if expected is not None:
            raise
    if expected is not None and (current or ABSENT) != expected:
        wanted, found = expected or "nothing yet", current or "nothing"
        raise StoreError(f"{path}: expected it to name {wanted}, found {found}; nothing is changed")
    return current
