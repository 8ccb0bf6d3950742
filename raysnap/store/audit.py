"""Find what is damaged in a store: every manifest, ref and block is read whole, and stray files are listed."""

from __future__ import annotations

from typing import TypedDict

from raysnap.errors import SnapshotNotFound, StoreDamaged, StoreUnreadable, WeightsError
from raysnap.store.backends.place import FEW_AT_ONCE, Place, belongs, object_key
from raysnap.store.catalog import manifest_key, read_manifest, ref_names, resolve, snapshot_ids
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


def verify(place: Place) -> Verification:
    """Read every byte of the store and return what is damaged, changing nothing."""
    unreadable: list[DamagedFile] = []
    holders, damaged_files, num_snapshots = _check_manifests(place, unreadable)
    on_disk = {entry.name for entry in place.objects()}
    damaged: list[DamagedBlock] = []
    checked_bytes = 0

    def examine(digest: str) -> tuple[int, DamagedBlock | str | None]:
        try:
            return _examine_block(place, digest, holders.get(digest, []))
        except StoreUnreadable as error:
            return 0, str(error)

    digests = sorted(on_disk | holders.keys())
    for digest, (num_bytes, fault) in zip(digests, place.map(examine, digests, FEW_AT_ONCE), strict=True):
        checked_bytes += num_bytes
        if isinstance(fault, str):
            unreadable.append({"file": object_key(digest), "reason": fault})
        elif fault is not None:
            damaged.append(fault)
    damaged_files += _check_refs(place, unreadable) + _check_records(place, unreadable) + _find_strays(place)
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
    place: Place, unreadable: list[DamagedFile]
) -> tuple[dict[str, list[str]], list[DamagedFile], int]:
    """Return the snapshots that contain each block, the damaged manifests, and the number of all."""
    holders: dict[str, list[str]] = {}
    faults: list[DamagedFile] = []
    snapshots = sorted(snapshot_ids(place))

    def needed(snapshot: str) -> set[str] | StoreDamaged | StoreUnreadable:
        try:
            return {entry.digest for entry in read_manifest(place, snapshot).objects}
        except FileNotFoundError:
            return set()
        except (StoreDamaged, StoreUnreadable) as error:
            return error

    for snapshot, found in zip(snapshots, place.map(needed, snapshots), strict=True):
        if isinstance(found, set):
            for digest in found:
                holders.setdefault(digest, []).append(snapshot)
        else:
            faulty = faults if isinstance(found, StoreDamaged) else unreadable
            faulty.append({"file": manifest_key(snapshot), "reason": str(found)})
    return holders, faults, len(snapshots)


def _examine_block(place: Place, digest: str, holders: list[str]) -> tuple[int, DamagedBlock | None]:
    """Return how many bytes of the block were read, and what is wrong with it.

    A fault counts if it is found twice: what others removed, collected or rewrote while this ran is not damage.
    """
    fault: DamagedBlock | None = None
    for _ in range(2):
        try:
            return _check_block(place, digest), None
        except StoreDamaged as error:
            snapshots = [snapshot for snapshot in holders if place.exists(manifest_key(snapshot))]
            if not snapshots and not place.exists(object_key(digest)):
                return 0, None
            fault = {"block": digest, "snapshots": snapshots, "reason": str(error)}
    return 0, fault


def _check_block(place: Place, digest: str) -> int:
    """Read the block's file, verify it and return its length."""
    from raysnap.models.tensor_bytes import parse_header  # imports torch, which checking an empty store can spare

    buffer = place.read_object(digest, may_be_near=False)
    try:
        parse_header(buffer, f"block {digest}")
    except WeightsError as error:
        raise StoreDamaged(str(error)) from None
    return len(buffer)


def _check_refs(place: Place, unreadable: list[DamagedFile]) -> list[DamagedFile]:
    faults: list[DamagedFile] = []
    for name in sorted(ref_names(place)):
        try:
            reason = _examine_ref(place, name)
        except StoreUnreadable as error:
            unreadable.append({"file": f"refs/{name}", "reason": str(error)})
            continue
        if reason:
            faults.append({"file": f"refs/{name}", "reason": reason})
    return faults


def _examine_ref(place: Place, name: str) -> str | None:
    """Return what is wrong with the name; checked twice, as others may move or remove it while this runs."""
    reason = None
    for _ in range(2):
        try:
            resolve(place, name)
        except SnapshotNotFound:
            return None
        except StoreDamaged as error:
            reason = str(error)
        else:
            return None
    return reason


def _check_records(place: Place, unreadable: list[DamagedFile]) -> list[DamagedFile]:
    faults: list[DamagedFile] = []
    for digest in sorted(record_digests(place)):
        try:
            read_record(place, digest)
        except FileNotFoundError:
            continue
        except StoreDamaged as error:
            faults.append({"file": f"records/{digest}.json", "reason": str(error)})
        except StoreUnreadable as error:
            unreadable.append({"file": f"records/{digest}.json", "reason": str(error)})
    return faults


def _find_strays(place: Place) -> list[DamagedFile]:
    """Return what is in the folders of blocks, manifests and refs and is none of these."""
    reason = "does not belong here; remove it"
    return [{"file": key, "reason": reason} for key in sorted(place.keys()) if not belongs(key)]
