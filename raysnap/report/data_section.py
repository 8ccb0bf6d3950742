"""What a report shows of the files that a run did not read: left out of its datasets, or bad."""

from __future__ import annotations

from typing import Any

from raysnap.report.tables import Column, DataTable, Row
from raysnap.runs.json_fields import mapping, sequence, text, whole
from raysnap.runs.run import Run

NUM_SHOWN = 10


def left_out_table(run: Run) -> DataTable | None:
    """Return each file that is not part of a dataset or is bad, with the reason; None where there is none.

    The page shows the first few; the table's files have all.
    """
    accounts = [mapping(one) for one in sequence(run.env.get("data"))]
    accounts += [mapping(search.search.get("data")) for search in run.searches]
    rows = [row for account in accounts for row in _rows(account)]
    unique = list({tuple(row.values.values()): row for row in rows}.values())
    columns = (
        Column("dataset", "dataset", "name"),
        Column("path", "file", "name", "a folder includes all files below it"),
        Column("files", "files", "count"),
        Column("reason", "why it was not read", "name"),
    )
    return DataTable("left_out", "Files that were not read", columns, tuple(unique), NUM_SHOWN) if rows else None


def _rows(account: dict[str, Any]) -> list[Row]:
    """Return the rows of an account: bad images first, then what somebody may miss, then the rest."""
    dataset = text(account.get("dataset")) or "unknown"
    bad = [("", 1, fault) for fault in map(text, sequence(account.get("bad"))) if fault]
    left_out = sorted(map(mapping, sequence(account.get("left_out"))), key=lambda one: one.get("is_expected") is True)
    listed = [(text(one.get("path")), whole(one.get("num_files")), text(one.get("reason"))) for one in left_out]
    return [
        Row({"dataset": dataset, "path": path, "files": num_files, "reason": reason})
        for path, num_files, reason in [*bad, *listed]
    ]
