"""What a report says of stores: what sharing saves, the prefix tree of the snapshots, who holds which block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from raysnap.config.choices import Role
from raysnap.humanize import bytes_text, bytes_unit
from raysnap.report import bar_charts, tree_charts
from raysnap.report import headlines as summary
from raysnap.report.tables import Column, DataTable, Row
from raysnap.runs.questions import short_dataset
from raysnap.runs.run import Run
from raysnap.runs.store_contents import HeldSnapshot, Holdings

MAX_MAP_ROWS = 300
MAX_FAMILIES = 8


def store_section(run: Run, holdings: tuple[Holdings, ...]) -> dict[str, Any]:
    """Everything that the page shows of the run's stores."""
    added, copied = summary.recorded_bytes(run)
    return {
        "stores": [_store(one, run) for one in holdings],
        "recorded": (added, copied) if copied and not holdings[0].snapshots else None,
        "savings_table": _savings_table(holdings),
    }


def _store(holdings: Holdings, run: Run) -> dict[str, Any]:
    own, once, copies = holdings.split_bytes()
    return {
        "holdings": holdings,
        "savings": Markup(_savings_chart(own, once, copies)) if holdings.snapshots else None,
        "families": [_family(name, held, run) for name, held in _by_architecture(holdings.snapshots)[:MAX_FAMILIES]],
    }


def _savings_table(holdings: tuple[Holdings, ...]) -> DataTable | None:
    rows = tuple(
        Row(
            {
                "store": str(one.store_dir),
                "num_snapshots": one.num_in_store,
                "bytes_on_disk": one.bytes_on_disk,
                "bytes_if_copied": one.bytes_if_copied,
                "saved_share": one.saved_share,
            }
        )
        for one in holdings
        if one.bytes_if_copied
    )
    columns = (
        Column("store", "store", "name"),
        Column("num_snapshots", "snapshots", "count"),
        Column("bytes_on_disk", "on disk", "bytes"),
        Column("bytes_if_copied", "as copies", "bytes"),
        Column("saved_share", "saved", "share"),
    )
    return DataTable("store_savings", "What sharing blocks saves", columns, rows) if rows else None


def _savings_chart(own: int, once: int, copies: int) -> str:
    segments = (
        bar_charts.Segment("shared", "blocks that several snapshots hold", "bytes-shared"),
        bar_charts.Segment("own", "blocks of one snapshot", "bytes-own"),
    )
    bars = [
        bar_charts.StackedBar("as whole copies", {"shared": copies, "own": own}),
        bar_charts.StackedBar("in the store", {"shared": once, "own": own}),
    ]
    title = "Bytes of the run's snapshots as whole copies and in the store"
    return bar_charts.stacked_bars(bars, segments, title, "bytes of the run's snapshots", bytes_text, bytes_unit)


def _by_architecture(snapshots: Sequence[HeldSnapshot]) -> list[tuple[str, list[HeldSnapshot]]]:
    groups: dict[tuple[str, tuple[str, ...]], list[HeldSnapshot]] = {}
    for snapshot in snapshots:
        names = tuple(name for name, _, _ in snapshot.blocks)
        groups.setdefault((snapshot.architecture, names), []).append(snapshot)
    return [(architecture, held) for (architecture, _), held in groups.items()]


def _family(architecture: str, held: list[HeldSnapshot], run: Run) -> dict[str, Any]:
    shown = held[:MAX_MAP_ROWS]
    rows = [
        tree_charts.MapRow(one.name, tuple(digest for _, digest, _ in one.blocks), _group_of(one, run)) for one in shown
    ]
    sizes = zip(*([num_bytes for _, _, num_bytes in one.blocks] for one in shown), strict=True)
    names = [name for name, _, _ in shown[0].blocks]
    columns = [tree_charts.MapColumn(name, bytes_text(max(size))) for name, size in zip(names, sizes, strict=True)]
    num_unique = len({digest for row in rows for digest in row.digests})
    what = f"{len(rows)} {architecture} snapshots"
    title = f"Which of {what} share which of {len(columns)} blocks"
    tree_title = f"Prefix tree of {what}: up to which block they are the same"
    return {
        "tree": Markup(tree_charts.prefix_tree(rows, columns, tree_title)) if len(rows) > 1 else None,
        "architecture": architecture,
        "picture": Markup(tree_charts.block_map(rows, columns, title)),
        "num_rows": len(rows),
        "num_snapshots": len(held),
        "num_unique": num_unique,
        "num_cells": len(rows) * len(columns),
    }


def _group_of(held: HeldSnapshot, run: Run) -> str:
    """The colour's meaning in the tree: the dataset a snapshot was fine-tuned on, bases apart."""
    trial = run.trial_of.get(held.id)
    if trial and trial.role == Role.BASE:
        return "base"
    dataset = held.dataset or (trial.dataset if trial else None)
    return short_dataset(dataset) if dataset else ""
