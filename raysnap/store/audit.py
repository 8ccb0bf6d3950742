"""What is damaged in a store: every manifest, ref and block read whole, and files that belong nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from raysnap.errors import SnapshotNotFound, StoreDamaged, WeightsError
from raysnap.store.catalog import is_manifest_name, manifest_path, read_manifest, resolve, snapshot_ids
from raysnap.store.files import Files, entries_in, names_in
from raysnap.store.manifest import is_digest, is_ref_name

Fault = dict[str, str]


def verify(files: Files) -> dict[str, Any]:
    """What is damaged, with the store left as it is.

    Returns:
        `ok`; `damaged`, a list of {block, snapshots, reason}; `damaged_files`, a list of {file, reason} of manifests,
        refs and strays; `num_snapshots`, `num_blocks`, `checked_bytes`.
    """
    holders, damaged_files, num_snapshots = _check_manifests(files)
    on_disk = {entry.name for entry in files.objects()}
    damaged, checked_bytes = [], 0
    for digest in sorted(on_disk | holders.keys()):
        num_bytes, fault = _examine_block(files, digest, holders.get(digest, []))
        checked_bytes += num_bytes
        damaged += [fault] if fault else []
    damaged_files += _check_refs(files) + _find_strays(files)
    return {
        "ok": not damaged and not damaged_files,
        "damaged": damaged,
        "damaged_files": damaged_files,
        "num_snapshots": num_snapshots,
        "num_blocks": len(on_disk),
        "checked_bytes": checked_bytes,
    }


def _check_manifests(files: Files) -> tuple[dict[str, list[str]], list[Fault], int]:
    """The snapshots that hold each block, the manifests that can't be read, the number of all."""
    holders: dict[str, list[str]] = {}
    faults: list[Fault] = []
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
        for digest in {entry.digest for entry in manifest.blocks}:
            holders.setdefault(digest, []).append(snapshot)
    return holders, faults, len(snapshots)


def _examine_block(files: Files, digest: str, holders: list[str]) -> tuple[int, dict[str, Any] | None]:
    """The bytes that were read of the block, and what is wrong with it.

    Looked at twice: what others removed, collected or put again while this ran is not damage.
    """
    fault = None
    for _ in range(2):
        try:
            return _check_block(files, digest), None
        except StoreDamaged as error:
            snapshots = [one for one in holders if manifest_path(files, one).exists()]
            if not snapshots and not files.object_path(digest).exists():
                return 0, None
            fault = {"block": digest, "snapshots": snapshots, "reason": str(error)}
    return 0, fault


def _check_block(files: Files, digest: str) -> int:
    """The length of the block's file, when its bytes are sound."""
    from raysnap.models import tensor_bytes as objects  # torch comes with it, which an empty store does without

    buffer = files.read_object(digest)
    try:
        objects.parse_header(buffer, f"block {digest}")
    except WeightsError as error:
        raise StoreDamaged(str(error)) from None
    return len(buffer)


def _check_refs(files: Files) -> list[Fault]:
    faults = []
    for name in sorted(filter(is_ref_name, names_in(files.refs_dir))):
        reason = _examine_ref(files, name)
        faults += [{"file": f"refs/{name}", "reason": reason}] if reason else []
    return faults


def _examine_ref(files: Files, name: str) -> str | None:
    """What is wrong with the name; looked at twice, because others may move it or take it away while this runs."""
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


def _find_strays(files: Files) -> list[Fault]:
    """Files where only blocks, manifests and refs belong, and that are none of them."""

    def strays(folder: Path, belongs: re.Pattern | Any) -> list[Path]:
        return [folder / name for name in names_in(folder) if not belongs(name)]

    found = strays(files.snapshots_dir, is_manifest_name) + strays(files.refs_dir, is_ref_name)
    found += strays(files.objects_dir, re.compile("[0-9a-f]{2}").fullmatch)
    for shard in (Path(entry.path) for entry in entries_in(files.objects_dir)):
        if shard.is_dir():
            found += strays(shard, lambda name, prefix=shard.name: is_digest(name) and name.startswith(prefix))
    reason = "does not belong here; remove it"
    return [{"file": str(path.relative_to(files.root)), "reason": reason} for path in sorted(found)]
