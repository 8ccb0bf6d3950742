"""Snapshots as a data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from raysnap.store.index import SnapshotSummary


def to_pandas(summaries: Sequence[SnapshotSummary], metrics: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Return a row per snapshot; `metrics` are those of each snapshot's id, a column `metrics.NAME` each."""
    columns = ["id", "name", *(field for field in SnapshotSummary._fields if field not in ("id", "names"))]
    rows = [{"name": next(iter(summary.names), None)} | summary._asdict() for summary in summaries]
    table = pd.DataFrame(rows, columns=columns).astype({"retrain_index": "Int64", "accuracy": "float64"})
    found = [metrics.get(summary.id, {}) for summary in summaries]
    for name in sorted({name for of_one in found for name in of_one}):
        table[f"metrics.{name}"] = pd.Series([of_one.get(name) for of_one in found], dtype="float64")
    return table
