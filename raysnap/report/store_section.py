"""What a report shows of stores: what sharing blocks saves, and which snapshots share which blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from raysnap.config.choices import Role
from raysnap.humanize import bytes_text, bytes_unit
from raysnap.report.charts.bars import Segment, StackedBar, stacked_bars
from raysnap.report.charts.trees import MapColumn, MapRow, block_map, prefix_tree
from raysnap.report.tables import Column, DataTable, Row
from raysnap.runs.questions import short_dataset
from raysnap.runs.run import Run
from raysnap.runs.store_contents import StoreContents, StoredSnapshot

MAX_MAP_ROWS = 300
MAX_FAMILIES = 8


def store_section(run: Run, contents: tuple[StoreContents, ...]) -> dict[str, Any]:
    """Return everything that the page shows of the run's stores."""
    added, copied = run.recorded_bytes
    return {
        "stores": [_store(store, run) for store in contents],
        "recorded": (added, copied) if copied and not contents[0].snapshots else None,
        "savings_table": _savings_table(contents),
    }


def _store(contents: StoreContents, run: Run) -> dict[str, Any]:
    families = list(_by_architecture(contents.snapshots).items())[:MAX_FAMILIES]
    return {
        "contents": contents,
        "savings": Markup(_savings_chart(contents)) if contents.snapshots else None,
        "families": [_family(architecture, snapshots, run) for (architecture, _), snapshots in families],
    }


def _savings_table(contents: tuple[StoreContents, ...]) -> DataTable | None:
    rows = tuple(
        Row(
            {
                "store": str(store.store_dir),
                "num_snapshots": store.num_in_store,
                "bytes_on_disk": store.bytes_on_disk,
                "bytes_if_copied": store.bytes_if_copied,
                "saved_share": store.saved_share,
            }
        )
        for store in contents
        if store.bytes_if_copied
    )
    columns = (
        Column("store", "store", "name"),
        Column("num_snapshots", "snapshots", "count"),
        Column("bytes_on_disk", "on disk", "bytes"),
        Column("bytes_if_copied", "as whole copies", "bytes"),
        Column("saved_share", "saved", "share"),
    )
    return DataTable("store_savings", "What sharing blocks saves", columns, rows) if rows else None


def _savings_chart(contents: StoreContents) -> str:
    own, once, copies = contents.split_bytes()
    segments = (
        Segment("shared", "blocks shared by several snapshots", "bytes-shared"),
        Segment("own", "blocks of a single snapshot", "bytes-own"),
    )
    bars = [
        StackedBar("as whole copies", {"shared": copies, "own": own}),
        StackedBar("in the store", {"shared": once, "own": own}),
    ]
    title = "Size of the run's snapshots as whole copies and in the store"
    return stacked_bars(bars, segments, title, "size of the run's snapshots", bytes_text, bytes_unit)


def _by_architecture(
    snapshots: Sequence[StoredSnapshot],
) -> dict[tuple[str, tuple[str, ...]], list[StoredSnapshot]]:
    """Group snapshots by architecture and names of blocks."""
    groups: dict[tuple[str, tuple[str, ...]], list[StoredSnapshot]] = {}
    for snapshot in snapshots:
        names = tuple(name for name, _, _ in snapshot.blocks)
        groups.setdefault((snapshot.architecture, names), []).append(snapshot)
    return groups


def _family(architecture: str, snapshots: list[StoredSnapshot], run: Run) -> dict[str, Any]:
    """Return what the page shows of snapshots that consist of the same blocks by name."""
    drawn = snapshots[:MAX_MAP_ROWS]
    rows = [
        MapRow(snapshot.name, tuple(digest for _, digest, _ in snapshot.blocks), _group_of(snapshot, run))
        for snapshot in drawn
    ]
    sizes = zip(*([num_bytes for _, _, num_bytes in snapshot.blocks] for snapshot in drawn), strict=True)
    names = [name for name, _, _ in drawn[0].blocks]
    columns = [MapColumn(name, bytes_text(max(size))) for name, size in zip(names, sizes, strict=True)]
    what = f"{len(rows)} {architecture} snapshots"
    map_title = f"Which of {what} share which of {len(columns)} blocks"
    tree_title = f"Prefix tree of {what}: up to which block they are the same"
    return {
        "tree": Markup(prefix_tree(rows, columns, tree_title)) if len(rows) > 1 else None,
        "architecture": architecture,
        "picture": Markup(block_map(rows, columns, map_title)),
        "num_rows": len(rows),
        "num_snapshots": len(snapshots),
        "num_unique": len({digest for row in rows for digest in row.digests}),
        "num_cells": len(rows) * len(columns),
    }


def _group_of(snapshot: StoredSnapshot, run: Run) -> str:
    """Return what gives a snapshot its colour in the tree: `base`, or the dataset it was fine-tuned on."""
    trial = run.trial_of.get(snapshot.id)
    if trial and trial.role == Role.BASE:
        return "base"
    dataset = snapshot.dataset or (trial.dataset if trial else None)
    return short_dataset(dataset) if dataset else ""
