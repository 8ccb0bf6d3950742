"""What is damaged in a store: every manifest, ref and block read whole, and files that belong nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from raysnap.catalog import is_manifest_name, manifest_path, read_manifest, resolve, snapshot_ids
from raysnap.errors import StoreDamaged, WeightsError
from raysnap.files import Files, names_in
from raysnap.manifest import is_digest, is_ref_name

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
        try:
            checked_bytes += _check_block(files, digest)
        except StoreDamaged as error:
            # What was removed and collected while this ran is not damage.
            snapshots = [one for one in holders.get(digest, []) if manifest_path(files, one).exists()]
            if snapshots or files.object_path(digest).exists():
                damaged.append({"block": digest, "snapshots": snapshots, "reason": str(error)})
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


def _check_block(files: Files, digest: str) -> int:
    """The length of the block's file, when its bytes are sound."""
    from raysnap import objects  # torch comes with it, which an empty store does without

    buffer = files.read_object(digest)
    try:
        objects.parse_header(buffer, f"block {digest}")
    except WeightsError as error:
        raise StoreDamaged(str(error)) from None
    return len(buffer)


def _check_refs(files: Files) -> list[Fault]:
    faults = []
    for name in sorted(filter(is_ref_name, names_in(files.refs_dir))):
        try:
            resolve(files, name)
        except StoreDamaged as error:
            # A name that was taken away while this ran is not damage.
            if (files.refs_dir / name).exists():
                faults.append({"file": f"refs/{name}", "reason": str(error)})
    return faults


def _find_strays(files: Files) -> list[Fault]:
    """Files where only blocks, manifests and refs belong, and that are none of them."""

    def strays(folder: Path, belongs: re.Pattern | Any) -> list[Path]:
        return [folder / name for name in names_in(folder) if not belongs(name)]

    found = strays(files.snapshots_dir, is_manifest_name) + strays(files.refs_dir, is_ref_name)
    found += strays(files.objects_dir, re.compile("[0-9a-f]{2}").fullmatch)
    for shard in files.objects_dir.iterdir():
        if shard.is_dir():
            found += strays(shard, lambda name, prefix=shard.name: is_digest(name) and name.startswith(prefix))
    reason = "does not belong here; remove it"
    return [{"file": str(path.relative_to(files.root)), "reason": reason} for path in sorted(found)]
