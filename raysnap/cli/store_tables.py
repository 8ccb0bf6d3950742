"""What the store commands print: tables and lines made from results."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from raysnap.cli.console import MAX_NAMES, MAX_ROWS, simple_table
from raysnap.humanize import bytes_text, given_first, plural, score_text, share_text

if TYPE_CHECKING:
    from raysnap.store.copying import Copied
    from raysnap.store.exchange.weights_in import Added
    from raysnap.store.index import SnapshotSummary
    from raysnap.store.manifest import Manifest
    from raysnap.store.records import SearchedFrom
    from raysnap.store.usage import Freed, Usage


def copied_lines(copied: Copied) -> str:
    """Return what a copy sent, and which names it left."""
    sent = [
        f"{plural(copied.num_snapshots, 'snapshot')}, {plural(copied.num_names, 'name')} and "
        f"{plural(copied.num_records, 'record')} copied, {plural(copied.num_blocks, 'block')} "
        f"({bytes_text(copied.num_bytes)}) sent"
    ]
    if copied.kept_names:
        sent.append(f"Names that other snapshots have there, and keep: {', '.join(copied.kept_names)}")
    return "\n".join(sent)


def snapshots_table(summaries: Iterable[SnapshotSummary]) -> Table:
    """Return a store's snapshots, one per line."""
    rows = [
        (
            ", ".join(given_first(summary.names, summary.trial)) or None,
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
    columns = ["name", "id", "architecture", "dataset", "retrained", "val acc.", "size", "created"]
    return simple_table(columns, rows, numeric=["retrained", "val acc.", "size"])


def snapshots_text(summaries: Sequence[SnapshotSummary], form: str) -> str:
    """Return a store's snapshots with every field, as CSV or, for `md`, as a table in Markdown."""
    from raysnap.store.index import SnapshotSummary

    rows = [["" if value is None else _plain(value) for value in summary] for summary in summaries]
    if form == "csv":
        written = io.StringIO()
        csv.writer(written, lineterminator="\n").writerows([SnapshotSummary._fields, *rows])
        return written.getvalue()
    lines = [SnapshotSummary._fields, ["---"] * len(SnapshotSummary._fields), *rows]
    escaped = ([" ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def _plain(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


def removal_lines(num_snapshots: int, num_derived: int, freed: Freed, *, is_dry: bool) -> str:
    """Say what goes, or would go, and what that frees."""
    verb, then = ("would be removed", "would then free") if is_dry else ("removed", "will free")
    line = (
        f"{plural(num_snapshots, 'snapshot')} {verb}; `store gc` {then} {bytes_text(freed.num_bytes)} in "
        f"{plural(freed.num_blocks, 'block')}."
    )
    if num_derived:
        line += f" {plural(num_derived, 'snapshot')} fine-tuned from these stay, without their base."
    return line


def usage_table(usage: Usage) -> Table:
    """Return what groups of snapshots hold, those that hold the most alone first."""
    rows = [
        (group.group, group.num_snapshots, bytes_text(group.own_bytes), bytes_text(group.held_bytes))
        for group in usage.groups
    ]
    columns = [usage.by, "snapshots", "alone", "with others"]
    return simple_table(columns, rows, numeric=columns[1:])


def usage_line(usage: Usage) -> str:
    """Sum up what a store's blocks take."""
    shared_bytes = usage.block_bytes - usage.unreached_bytes - sum(group.own_bytes for group in usage.groups)
    line = f"{bytes_text(usage.block_bytes)} in blocks, {bytes_text(shared_bytes)} of them needed by several groups"
    return f"{line}, {bytes_text(usage.unreached_bytes)} by no snapshot: `store gc` frees these"


def added_lines(added: Added, *, has_path: bool) -> list[str]:
    """Say what adding weights did, beginning with their path where there are several."""
    manifest, new = added.written.manifest, plural(added.written.new_blocks, "new block")
    name = f" {added.name}" if added.name and has_path else ""
    lines = [
        (f"{added.path}:{name} " if has_path else "")
        + f"{manifest.id}: {new}, {bytes_text(added.written.new_bytes)} written"
    ]
    if added.weights.others:
        others = ", ".join(added.weights.others)
        lines.append(
            f"These are the file's weights {added.weights.entry!r}; --entry takes others that would fit: {others}"
        )
    return lines


def manifest_table(manifest: Manifest, names: Sequence[str]) -> Table:
    """Return a snapshot's metadata, one property per line."""
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
            ("input", manifest.preprocessing.text),
            ("metrics", metrics or None),
            ("created", manifest.created),
        ],
    )


def searched_line(searched: SearchedFrom) -> str:
    """Say what a search had said of the start that a snapshot was fine-tuned from."""
    expected = "" if searched.expected_loss is None else f", expected loss {searched.expected_loss:.3f}"
    return (
        f"Its base was rank {searched.rank} of {plural(searched.num_candidates, 'candidate')} in a search by "
        f"{searched.method}: {searched.proxy} score {score_text(searched.score)}{expected}"
    )


def lineage_tree(
    bases: Sequence[Manifest], manifest: Manifest, derived: Sequence[SnapshotSummary], names: Mapping[str, str]
) -> Tree:
    """Return a tree of the snapshot's base, that one's base and so on, and of the snapshots fine-tuned from it.

    Args:
        bases: the nearest first.
        manifest: of the snapshot itself.
        derived: the snapshots that were fine-tuned from it.
        names: of snapshots, by id.
    """

    def label(snapshot: Manifest | SnapshotSummary, mark: str = "", style: str = "") -> Text:
        recorded = snapshot.dataset
        dataset = recorded if recorded is None or isinstance(recorded, str) else recorded.name
        index = snapshot.retrain_index
        retrained = None if index is None else f"{plural(index, 'block')} retrained"
        parts = [dataset, retrained, f"val {score_text(snapshot.accuracy)}"]
        shown = [names.get(snapshot.id, snapshot.id[:12]), *(part for part in parts if part)]
        return Text("  ".join(shown) + mark, style=style)

    texts = [*(label(base) for base in reversed(bases)), label(manifest, "  ← this one", "bold")]
    root = branch = Tree(texts[0], guide_style="dim")
    for text in texts[1:]:
        branch = branch.add(text)
    for snapshot in derived[:MAX_ROWS]:
        branch.add(label(snapshot))
    if len(derived) > MAX_ROWS:
        branch.add(f"and {len(derived) - MAX_ROWS} more")
    return root


def blocks_table(manifest: Manifest, holders: Mapping[str, Sequence[str]], names: Mapping[str, str]) -> Table:
    """Return a snapshot's blocks, and which other snapshots share each."""
    rows = []
    for block in manifest.blocks:
        others = sorted(names.get(other, other[:12]) for other in holders[block.digest] if other != manifest.id)
        shown = ", ".join(others[:MAX_NAMES]) + (
            f" and {len(others) - MAX_NAMES} more" if len(others) > MAX_NAMES else ""
        )
        rows.append((block.name, block.digest[:12], bytes_text(block.num_bytes), len(others), shown))
    columns = ["block", "digest", "size", "shared with", ""]
    return simple_table(columns, rows, numeric=["size", "shared with"])


def differences_table(first: str, second: str, rows: Iterable[tuple[str, str | None, str | None]]) -> Table:
    """Compare two snapshots, one block per line; an en dash marks a block that one of them lacks."""
    shown = [(name, a and a[:12], b and b[:12], "same" if a == b else "differs") for name, a, b in rows]
    return simple_table(["block", first[:40], second[:40], ""], shown)


def savings_line(stats: Mapping[str, int]) -> str:
    """Say how much a store holds, and how much whole copies of its snapshots would take."""
    copied, kept = stats["bytes_if_copied"], stats["bytes_on_disk"]
    held = f"{plural(stats['num_snapshots'], 'snapshot')} in {plural(stats['num_blocks'], 'block')}"
    saved = f"; copies would take {bytes_text(copied)} ({share_text(1 - kept / copied)} saved)" if copied else ""
    return f"Store: {held}, {bytes_text(kept)} on disk{saved}."


def verify_line(result: Mapping[str, Any]) -> str:
    """Say how much was read, and how much of it is damaged."""
    read = f"{plural(result['num_snapshots'], 'snapshot')}, {plural(result['num_blocks'], 'block')}"
    damaged = f"{plural(len(result['damaged']), 'block')} and {plural(len(result['damaged_files']), 'other file')}"
    faults = [f"damaged: {damaged}"] if result["damaged"] or result["damaged_files"] else []
    faults += [f"unreadable: {plural(len(result['unreadable']), 'file')}"] if result["unreadable"] else []
    return f"{'; '.join(faults) or 'ok'}; read {read}, {bytes_text(result['checked_bytes'])}"


def damage_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what is damaged or unreadable, one row each, with the snapshots that are affected."""
    rows = []
    for block in result["damaged"]:
        affected = ", ".join(snapshot[:12] for snapshot in block["snapshots"]) or "none"
        rows.append({"block": f"block {block['block']}", "error": f"{block['reason']}; snapshots affected: {affected}"})
    return [*rows, *result["damaged_files"], *result["unreadable"]]


def gc_line(result: Mapping[str, int]) -> str:
    """Say what a clean-up of a store deleted and kept."""
    deleted = f"{plural(result['num_blocks_deleted'], 'block')} deleted ({bytes_text(result['deleted_bytes'])})"
    stale = plural(result["num_files_swept"], "stale temporary file")
    return f"{deleted}, {result['num_blocks_kept']} kept, {stale} deleted"
