"""Find what is damaged in a store: every manifest, ref and block is read whole, and stray files are listed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from raysnap.errors import SnapshotNotFound, StoreDamaged, StoreUnreadable, WeightsError
from raysnap.store.catalog import is_manifest_name, manifest_path, read_manifest, resolve, snapshot_ids
from raysnap.store.files import Files, entries_in, names_in
from raysnap.store.manifest import is_digest, is_ref_name
from raysnap.store.records import read_record, record_digests


class DamagedBlock(TypedDict):
    """A damaged block: its digest, the ids of the snapshots that need it, and what is wrong."""

    block: str
    snapshots: list[str]
    reason: str


class DamagedFile(TypedDict):
    """A damaged, stray or unreadable file: its path inside the store, and what is wrong."""

    file: str
    reason: str


class Verification(TypedDict):
    """What `verify` found; the keys are those of `raysnap store verify --json`.

    `unreadable` are files of any kind that the system refuses to read, such as without permission: they may be intact.
    """

    ok: bool
    damaged: list[DamagedBlock]
    damaged_files: list[DamagedFile]
    unreadable: list[DamagedFile]
    num_snapshots: int
    num_blocks: int
    checked_bytes: int


def verify(files: Files) -> Verification:
    """Read every byte of the store and return what is damaged, changing nothing."""
    unreadable: list[DamagedFile] = []
    holders, damaged_files, num_snapshots = _check_manifests(files, unreadable)
    on_disk = {entry.name for entry in files.objects()}
    damaged: list[DamagedBlock] = []
    checked_bytes = 0
    for digest in sorted(on_disk | holders.keys()):
        try:
            num_bytes, fault = _examine_block(files, digest, holders.get(digest, []))
        except StoreUnreadable as error:
            unreadable.append({"file": f"objects/{digest[:2]}/{digest}", "reason": str(error)})
            continue
        checked_bytes += num_bytes
        damaged += [fault] if fault else []
    damaged_files += _check_refs(files, unreadable) + _check_records(files, unreadable) + _find_strays(files)
    return {
        "ok": not damaged and not damaged_files and not unreadable,
        "damaged": damaged,
        "damaged_files": damaged_files,
        "unreadable": unreadable,
        "num_snapshots": num_snapshots,
        "num_blocks": len(on_disk),
        "checked_bytes": checked_bytes,
    }


def _check_manifests(
    files: Files, unreadable: list[DamagedFile]
) -> tuple[dict[str, list[str]], list[DamagedFile], int]:
    """Return the snapshots that contain each block, the damaged manifests, and the number of all."""
    holders: dict[str, list[str]] = {}
    faults: list[DamagedFile] = []
    snapshots = sorted(snapshot_ids(files))
    for snapshot in snapshots:
        path = manifest_path(files, snapshot)
        try:
            manifest = read_manifest(path)
        except FileNotFoundError:
            continue
        except StoreDamaged as error:
            faults.append({"file": f"snapshots/{path.name}", "reason": str(error)})
            continue
        except StoreUnreadable as error:
            unreadable.append({"file": f"snapshots/{path.name}", "reason": str(error)})
            continue
        for digest in {entry.digest for entry in manifest.objects}:
            holders.setdefault(digest, []).append(snapshot)
    return holders, faults, len(snapshots)


def _examine_block(files: Files, digest: str, holders: list[str]) -> tuple[int, DamagedBlock | None]:
    """Return how many bytes of the block were read, and what is wrong with it.

    A fault counts if it is found twice: what others removed, collected or rewrote while this ran is not damage.
    """
    fault: DamagedBlock | None = None
    for _ in range(2):
        try:
            return _check_block(files, digest), None
        except StoreDamaged as error:
            snapshots = [snapshot for snapshot in holders if manifest_path(files, snapshot).exists()]
            if not snapshots and not files.object_path(digest).exists():
                return 0, None
            fault = {"block": digest, "snapshots": snapshots, "reason": str(error)}
    return 0, fault


def _check_block(files: Files, digest: str) -> int:
    """Read the block's file, verify it and return its length."""
    from raysnap.models.tensor_bytes import parse_header  # imports torch, which checking an empty store can spare

    buffer = files.read_object(digest)
    try:
        parse_header(buffer, f"block {digest}")
    except WeightsError as error:
        raise StoreDamaged(str(error)) from None
    return len(buffer)


def _check_refs(files: Files, unreadable: list[DamagedFile]) -> list[DamagedFile]:
    faults: list[DamagedFile] = []
    for name in sorted(filter(is_ref_name, names_in(files.refs_dir))):
        try:
            reason = _examine_ref(files, name)
        except StoreUnreadable as error:
            unreadable.append({"file": f"refs/{name}", "reason": str(error)})
            continue
        if reason:
            faults.append({"file": f"refs/{name}", "reason": reason})
    return faults


def _examine_ref(files: Files, name: str) -> str | None:
    """Return what is wrong with the name; checked twice, as others may move or remove it while this runs."""
    reason = None
    for _ in range(2):
        try:
            resolve(files, name)
        except SnapshotNotFound:
            return None
        except StoreDamaged as error:
            reason = str(error)
        else:
            return None
    return reason


def _check_records(files: Files, unreadable: list[DamagedFile]) -> list[DamagedFile]:
    faults: list[DamagedFile] = []
    for digest in sorted(record_digests(files)):
        try:
            read_record(files, digest)
        except FileNotFoundError:
            continue
        except StoreDamaged as error:
            faults.append({"file": f"records/{digest}.json", "reason": str(error)})
        except StoreUnreadable as error:
            unreadable.append({"file": f"records/{digest}.json", "reason": str(error)})
    return faults


def _find_strays(files: Files) -> list[DamagedFile]:
    """Return the files in the folders of blocks, manifests and refs that are none of these."""

    def strays(folder: Path, belongs: Callable[[str], object]) -> list[Path]:
        return [folder / name for name in names_in(folder) if not belongs(name)]

    found = strays(files.snapshots_dir, is_manifest_name) + strays(files.refs_dir, is_ref_name)
    found += strays(files.objects_dir, re.compile("[0-9a-f]{2}").fullmatch)
    for shard in (Path(entry.path) for entry in entries_in(files.objects_dir)):
        if shard.is_dir():
            found += [shard / name for name in names_in(shard) if not (is_digest(name) and name.startswith(shard.name))]
    reason = "does not belong here; remove it"
    return [{"file": str(path.relative_to(files.root)), "reason": reason} for path in sorted(found)]
