"""What commands show people: rich tables made from results; nothing here prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from raysnap.quantities import bytes_text, count_text, flops_text, score_text, seconds_text

MAX_ROWS = 20


def simple_table(columns: Sequence[str], rows: Iterable[Sequence[object]], numeric: Sequence[str] = ()) -> Table:
    """A borderless table with a bold header; the `numeric` columns are aligned to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*("–" if value is None else escape(str(value)) for value in row))
    return table


def ranking_table(result: Mapping[str, Any], max_rows: int = MAX_ROWS) -> Table:
    """The first lines of a ranking; who can't be told from the best is marked."""
    rows = [
        (
            entry["rank"],
            entry["name"],
            score_text(entry["score"]),
            "best" if entry["rank"] == 1 else "tied with the best" if entry["tied_with_best"] else "",
            entry["num_train"],
            entry["snapshot"][:12],
        )
        for entry in result["ranking"][:max_rows]
    ]
    return simple_table(["", "snapshot", "score", "", "items", "id"], rows, numeric=["", "score", "items"])


def methods_table(searches: Sequence[Mapping[str, Any]]) -> Table:
    """Searches side by side: who won, what it took."""
    rows = []
    slowest_s = max((search["timings_s"]["total"] for search in searches), default=0.0)
    for search in searches:
        timings_s, work = search["timings_s"], search["work"]
        best = search["ranking"][0] if search["ranking"] else {"name": None, "score": None}
        rows.append(
            (
                search["dataset"],
                search["method"],
                seconds_text(timings_s["total"]),
                f"{slowest_s / timings_s['total']:.1f}×",
                flops_text(work["flops"]),
                count_text(work["block_item_passes"]),
                bytes_text(work["block_bytes_read"]),
                best["name"],
                score_text(best["score"]),
            )
        )
    columns = ["dataset", "method", "time", "speed-up", "compute", "block passes", "read", "first", "score"]
    return simple_table(columns, rows, numeric=["time", "speed-up", "compute", "block passes", "read", "score"])


def timings_line(timings_s: Mapping[str, float]) -> str:
    """Where a search's time went, largest part first."""
    parts = sorted(((value, name) for name, value in timings_s.items() if name != "total"), reverse=True)
    shown = ", ".join(f"{name.replace('_', ' ')} {seconds_text(value)}" for value, name in parts if value > 0)
    return f"{seconds_text(timings_s['total'])} in all: {shown}"


def trials_table(trials: Iterable[Any]) -> Table:
    """A plan's trials."""
    rows = [(trial.id, trial.architecture, trial.dataset, trial.retrain_index, trial.train.epochs) for trial in trials]
    return simple_table(
        ["trial", "architecture", "dataset", "retrain index", "epochs"], rows, numeric=["retrain index", "epochs"]
    )


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
            summary.created,
        )
        for summary in summaries
    ]
    columns = ["name", "id", "architecture", "dataset", "r", "val acc.", "bytes", "created"]
    return simple_table(columns, rows, numeric=["r", "val acc.", "bytes"])
