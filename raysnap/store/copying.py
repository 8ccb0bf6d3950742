"""Copy a store to another place: only what is missing there, every byte verified, manifests as they are.

A copy that broke off goes on where it was: what it copied is there, and what it did not is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial

from raysnap.errors import SnapshotNotFound, StoreDamaged, StoreUnreadable
from raysnap.store.backends.place import FEW_AT_ONCE, Needed, Place
from raysnap.store.catalog import (
    ABSENT,
    manifest_key,
    read_manifest,
    read_manifest_bytes,
    set_ref,
    snapshot_ids,
)
from raysnap.store.index import list_refs
from raysnap.store.manifest import Manifest, parse_manifest
from raysnap.store.publishing import publish_manifest
from raysnap.store.records import copy_record, record_digests


@dataclass(frozen=True)
class Copied:
    """What a copy sent; what was there already counts for nothing.

    Attributes:
        kept_names: names that another snapshot has in the place that was copied to; they were left there.
    """

    num_snapshots: int
    num_blocks: int
    num_bytes: int
    num_names: int
    num_records: int
    kept_names: tuple[str, ...]


def copy_store(source: Place, target: Place, snapshots: Iterable[str], names: dict[str, str]) -> Copied:
    """Copy these snapshots, their names and all records.

    Args:
        source: the place of a store.
        target: the place of another one.
        snapshots: ids.
        names: the snapshot of each name.

    Raises:
        StoreDamaged: a manifest or block of the source is damaged; what came before it is copied.
        StoreError: the source can't be read, or the target not written.
    """
    wanted = list(snapshots)
    there = set(snapshot_ids(target))
    manifests = list(source.map(partial(_read, source), [one for one in wanted if one not in there]))
    stored = {entry.name: entry.num_bytes for entry in target.objects()} if manifests else {}
    needed = {one.digest: one for manifest, _ in manifests for one in manifest.objects}
    missing = [one for one in needed.values() if stored.get(one.digest) != one.num_bytes]
    mapped = source.map if source.is_far else target.map
    for _ in mapped(lambda one: _send(source, target, one), missing, FEW_AT_ONCE):
        pass
    for manifest, content in manifests:
        publish_manifest(target, manifest, content, lambda one: _send(source, target, one))
    num_names, kept = _copy_names(target, {name: one for name, one in names.items() if one in set(wanted)})
    absent = set(record_digests(source)) - set(record_digests(target))
    for digest in sorted(absent):
        copy_record(source, target, digest)
    return Copied(
        len(manifests), len(missing), sum(one.num_bytes for one in missing), num_names, len(absent), tuple(kept)
    )


def check_all_copied(source: Place, listed: Collection[str]) -> None:
    """Refuse to call a copy whole where listings leave out a snapshot that can't be read.

    Raises:
        StoreDamaged: a manifest that is not listed is damaged; the others are copied.
        StoreUnreadable: it can't be read.
    """
    for snapshot in sorted(set(snapshot_ids(source)) - set(listed)):
        try:
            read_manifest(source, snapshot)
        except FileNotFoundError:
            continue  # removed since it was listed
        except (StoreDamaged, StoreUnreadable) as error:
            raise type(error)(f"{error}; it was not copied, the others were") from None


def _read(source: Place, snapshot: str) -> tuple[Manifest, bytes]:
    key = manifest_key(snapshot)
    try:
        content = read_manifest_bytes(source, key)
    except FileNotFoundError:
        raise SnapshotNotFound(f"{source.where()}: snapshot {snapshot} was removed while it was copied") from None
    return parse_manifest(content, source.where(key), expected_id=snapshot), content


def _send(source: Place, target: Place, needed: Needed) -> None:
    try:
        content = source.read_object(needed.digest)
    except StoreDamaged as error:
        raise StoreDamaged(f"{source.where()}: block {needed.digest}: {error}; it was not copied") from None
    target.put_object(needed.digest, [content])


def _copy_names(target: Place, names: dict[str, str]) -> tuple[int, list[str]]:
    """Give names that are free; return how many, and those that another snapshot has."""
    taken = list_refs(target)
    kept = [name for name, snapshot in names.items() if taken.get(name, snapshot) != snapshot]
    free = [name for name in names if name not in taken]
    for name in free:
        set_ref(target, name, names[name], expected=ABSENT)
    return len(free), kept
