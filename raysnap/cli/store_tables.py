"""What the store commands show on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from raysnap.cli.console import MAX_NAMES, MAX_ROWS, simple_table
from raysnap.humanize import bytes_text, plural, score_text, share_text


def snapshots_table(summaries: Iterable[Any]) -> Table:
    """A store's snapshots, a line each."""
    rows = [
        (
            ", ".join(summary.names) or None,
            summary.id[:12],
            summary.architecture,
            summary.dataset,
            summary.retrain_index,
            score_text(summary.accuracy),
            bytes_text(summary.num_bytes),
            summary.created[:16].replace("T", " "),
        )
        for summary in summaries
    ]
    columns = ["name", "id", "architecture", "dataset", "r", "val acc.", "bytes", "created"]
    return simple_table(columns, rows, numeric=["r", "val acc.", "bytes"])


def manifest_table(manifest: Any, names: Sequence[str]) -> Table:
    """What a snapshot's manifest says of it, a line each."""
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(manifest.metrics.items()))
    return simple_table(
        ["", ""],
        [
            ("id", manifest.id),
            ("names", ", ".join(names) or None),
            ("architecture", f"{manifest.architecture}, {plural(manifest.num_classes, 'class', 'classes')}"),
            ("base", manifest.base),
            ("dataset", manifest.dataset.name if manifest.dataset else None),
            ("retrain index", manifest.retrain_index),
            ("input", f"{manifest.preprocessing.image_size} px"),
            ("metrics", metrics or None),
            ("created", manifest.created),
        ],
    )


def lineage_tree(bases: Sequence[Any], manifest: Any, derived: Sequence[Any], names: Mapping[str, str]) -> Tree:
    """The snapshot below its base, that one's base and so on, and the snapshots fine-tuned from it below it."""

    def label(snapshot: Any, mark: str = "", style: str = "") -> Text:
        dataset = getattr(snapshot.dataset, "name", snapshot.dataset)
        index = snapshot.retrain_index
        parts = [dataset, None if index is None else f"r {index}", f"val {score_text(snapshot.accuracy)}"]
        return Text(
            "  ".join([names.get(snapshot.id, snapshot.id[:12]), *(part for part in parts if part)]) + mark, style=style
        )

    root = branch = None
    for snapshot in [*reversed(bases), manifest]:
        text = label(snapshot, "  ← this one", "bold") if snapshot is manifest else label(snapshot)
        branch = branch.add(text) if branch else Tree(text, guide_style="dim")
        root = root or branch
    for snapshot in derived[:MAX_ROWS]:
        branch.add(label(snapshot))
    if len(derived) > MAX_ROWS:
        branch.add(f"and {len(derived) - MAX_ROWS} more")
    return root


def blocks_table(manifest: Any, holders: Mapping[str, Sequence[str]], names: Mapping[str, str]) -> Table:
    """A snapshot's blocks, and which other snapshots hold each."""
    rows = []
    for block in manifest.blocks:
        others = sorted(names.get(one, one[:12]) for one in holders[block.digest] if one != manifest.id)
        shown = ", ".join(others[:MAX_NAMES]) + (
            f" and {len(others) - MAX_NAMES} more" if len(others) > MAX_NAMES else ""
        )
        rows.append((block.name, block.digest[:12], bytes_text(block.num_bytes), len(others), shown))
    columns = ["block", "digest", "bytes", "in others", "which"]
    return simple_table(columns, rows, numeric=["bytes", "in others"])


def differences_table(first: str, second: str, rows: Iterable[tuple[str, str | None, str | None]]) -> Table:
    """Two snapshots side by side, a line per block; a block that one of them lacks is an en dash."""
    shown = [(name, a and a[:12], b and b[:12], "same" if a == b else "differs") for name, a, b in rows]
    return simple_table(["block", first[:40], second[:40], ""], shown)


def savings_line(stats: Mapping[str, int]) -> str:
    """What a store holds, and what copies of its snapshots would take."""
    copied, kept = stats["bytes_if_copied"], stats["bytes_on_disk"]
    held = f"{plural(stats['num_snapshots'], 'snapshot')} in {plural(stats['num_blocks'], 'block')}"
    saved = f"; copies would take {bytes_text(copied)} ({share_text(1 - kept / copied)} saved)" if copied else ""
    return f"Store: {held}, {bytes_text(kept)} on disk{saved}."


def verify_line(result: Mapping[str, Any]) -> str:
    """What was read, and how much of it is damaged."""
    read = f"{plural(result['num_snapshots'], 'snapshot')}, {plural(result['num_blocks'], 'block')}"
    damaged = f"{plural(len(result['damaged']), 'block')} and {plural(len(result['damaged_files']), 'other file')}"
    return f"{'ok' if result['ok'] else f'damaged: {damaged}'}; read {read}, {bytes_text(result['checked_bytes'])}"


def damage_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """What is damaged, a row each, with the snapshots that it hits."""
    rows = []
    for one in result["damaged"]:
        hit = ", ".join(snapshot[:12] for snapshot in one["snapshots"]) or "none"
        rows.append({"block": f"block {one['block']}", "error": f"{one['reason']}; snapshots hit: {hit}"})
    return [*rows, *result["damaged_files"]]


def gc_line(result: Mapping[str, int]) -> str:
    """What a clean-up of a store deleted and kept."""
    deleted = f"{plural(result['num_blocks_deleted'], 'block')} deleted ({bytes_text(result['deleted_bytes'])})"
    swept = plural(result["num_files_swept"], "stale file")
    return f"{deleted}, {result['num_blocks_kept']} kept, {swept} swept"
