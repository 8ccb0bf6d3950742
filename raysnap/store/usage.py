"""Who holds which bytes of a store: what removing snapshots would free, and what groups of them hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from raysnap.config.choices import UsageAxis
from raysnap.store.backends.place import Place
from raysnap.store.catalog import needed_by, snapshot_ids
from raysnap.store.index import SnapshotSummary

AGES = ((1, "less than a day"), (7, "a day to a week"), (30, "a week to a month"), (365, "a month to a year"))
OLDEST = "more than a year"


@dataclass(frozen=True)
class Freed:
    """Blocks that only the snapshots which are to go need: `gc` deletes them once these are removed."""

    num_blocks: int
    num_bytes: int


@dataclass(frozen=True)
class GroupUsage:
    """What the snapshots of one group hold.

    Attributes:
        group: the name of the snapshot that a lineage begins with, of a dataset or an architecture, or an age.
        held_bytes: of all blocks that the group's snapshots need; blocks that groups share count in each.
        own_bytes: of those that no other group needs, which removing the group would free.
    """

    group: str
    num_snapshots: int
    held_bytes: int
    own_bytes: int


@dataclass(frozen=True)
class Usage:
    """What a store's blocks take, by group.

    Attributes:
        block_bytes: of all blocks.
        unreached_bytes: of those that no snapshot needs, which `gc` deletes.
    """

    by: UsageAxis
    groups: tuple[GroupUsage, ...]
    block_bytes: int
    unreached_bytes: int


def count_freed(place: Place, snapshots: Collection[str]) -> Freed:
    """Return what `gc` would delete if these snapshots were removed and no others."""
    going: set[bytes] = set()
    staying: set[bytes] = set()
    for snapshot, digests in _blocks_of(place):
        (going if snapshot in snapshots else staying).update(digests)
    sizes = _block_sizes(place)
    freed = [sizes[digest] for digest in going - staying if digest in sizes]
    return Freed(len(freed), sum(freed))


def measure_usage(place: Place, summaries: Iterable[SnapshotSummary], by: UsageAxis) -> Usage:
    """Return what groups of a store's snapshots hold, those that hold the most alone first.

    Args:
        summaries: of all the store's snapshots.
    """
    group_of = _groups(list(summaries), by)
    holders: dict[bytes, set[str]] = defaultdict(set)
    counts = Counter(group_of.values())
    for snapshot, digests in _blocks_of(place):
        group = group_of.get(snapshot)
        for digest in digests:
            holders[digest].add(group or "damaged")
    sizes = _block_sizes(place)
    held: Counter[str] = Counter()
    own: Counter[str] = Counter()
    for digest, groups in holders.items():
        for group in groups:
            held[group] += sizes.get(digest, 0)
            own[group] += sizes.get(digest, 0) if len(groups) == 1 else 0
    rows = (GroupUsage(group, counts[group], held[group], own[group]) for group in held)
    return Usage(
        by,
        tuple(sorted(rows, key=lambda row: (-row.own_bytes, -row.held_bytes, row.group))),
        sum(sizes.values()),
        sum(num_bytes for digest, num_bytes in sizes.items() if digest not in holders),
    )


def _blocks_of(place: Place) -> Iterable[tuple[str, list[bytes]]]:
    """Yield each snapshot and the digests of its blocks, as ASCII; manifests are not checked."""
    snapshots = snapshot_ids(place)
    yield from zip(snapshots, place.map(lambda one: needed_by(place, one), snapshots), strict=True)


def _block_sizes(place: Place) -> dict[bytes, int]:
    return {entry.name.encode(): entry.num_bytes for entry in place.objects()}


def _groups(summaries: list[SnapshotSummary], by: UsageAxis) -> dict[str, str]:
    """Return the group of each snapshot by its id."""
    if by == "dataset":
        return {one.id: one.dataset or "unknown" for one in summaries}
    if by == "architecture":
        return {one.id: one.architecture for one in summaries}
    if by == "age":
        now = datetime.now(UTC)
        return {one.id: _age(one.created, now) for one in summaries}
    by_id = {one.id: one for one in summaries}
    roots = {one.id: _root(one, by_id) for one in summaries}
    return {snapshot: root.names[0] if root.names else root.id[:12] for snapshot, root in roots.items()}


def _root(summary: SnapshotSummary, by_id: Mapping[str, SnapshotSummary]) -> SnapshotSummary:
    """Return the snapshot that the line of fine-tunes begins with, as far as it is in the store."""
    seen = {summary.id}
    while summary.base is not None and summary.base in by_id and summary.base not in seen:
        seen.add(summary.base)
        summary = by_id[summary.base]
    return summary


def _age(created: str, now: datetime) -> str:
    days = (now - datetime.fromisoformat(created)).total_seconds() / 86400
    return next((name for limit, name in AGES if days < limit), OLDEST)
