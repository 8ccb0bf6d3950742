"""Place ranked snapshots finally: join the proxy's order with what records tell, and say where each one comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from raysnap.datasets.dataset import Dataset
from raysnap.errors import RaysnapError
from raysnap.search.result import RankedSnapshot, RecordsUsed
from raysnap.search.standings import Expected, expect, join
from raysnap.store.index import SnapshotSummary
from raysnap.store.records import RecordTable
from raysnap.store.store import Store


def place(
    ranking: Sequence[RankedSnapshot],
    store: Store,
    summaries: Mapping[str, SnapshotSummary],
    dataset: Dataset,
    table: RecordTable | None,
) -> tuple[tuple[RankedSnapshot, ...], RecordsUsed | None]:
    """Return the ranking in its final order, and what records had to do with it; without records the order stays.

    Args:
        summaries: what the index knows of the ranked snapshots and of their bases, by id.
        dataset: the one asked about.
        table: all records; None where they are not to count.
    """
    described = [_described(line, store, summaries, dataset) for line in ranking]
    if not described or table is None or not len(table):
        return tuple(described), None
    bases = {one.id: one.base for one in store.lineages()}
    snapshots = [(line.snapshot, line.architecture, root_of(line.snapshot, bases)) for line in described]
    by_proxy_S = _order_of(described)
    expected = expect(table, dataset.fingerprint, snapshots, by_proxy_S)
    if not expected.num_records:
        return tuple(described), None
    return _joined(described, by_proxy_S, expected), RecordsUsed(
        expected.share, expected.num_records, expected.num_datasets
    )


def root_of(snapshot: str, bases: Mapping[str, str | None]) -> str:
    """Return the first snapshot of a lineage, as far as it is in the store or named by one that is."""
    seen = {snapshot}
    while (base := bases.get(snapshot)) is not None and base not in seen:
        seen.add(base)
        snapshot = base
    return snapshot


def _described(
    line: RankedSnapshot, store: Store, summaries: Mapping[str, SnapshotSummary], dataset: Dataset
) -> RankedSnapshot:
    summary = summaries[line.snapshot]
    return replace(
        line,
        proxy_rank=line.rank,
        architecture=summary.architecture,
        dataset=summary.dataset,
        retrain_index=summary.retrain_index,
        is_trained_on_it=summary.dataset == dataset.name and _is_same(store, line.snapshot, dataset),
    )


def _is_same(store: Store, snapshot: str, dataset: Dataset) -> bool:
    """Whether a snapshot that was trained on a dataset of this name was trained on this very one."""
    try:
        record = store.manifest(snapshot).dataset
    except RaysnapError:
        return False
    return record is not None and (record.digest is None or dataset.digest is None or record.digest == dataset.digest)


def _order_of(ranking: Sequence[RankedSnapshot]) -> np.ndarray:
    """Return numbers in the proxy's order, larger is better; equal for those whose scores on equal items are equal."""
    values: list[float] = []
    for number, line in enumerate(ranking):
        before = ranking[number - 1]
        is_equal = number and (line.num_train, line.num_test, line.score) == (
            before.num_train,
            before.num_test,
            before.score,
        )
        values.append(values[-1] if is_equal else -float(number))
    return np.array(values)


def _joined(
    ranking: Sequence[RankedSnapshot], by_proxy_S: np.ndarray, expected: Expected
) -> tuple[RankedSnapshot, ...]:
    joined_S = join(by_proxy_S, expected)
    order = sorted(range(len(ranking)), key=lambda number: (-joined_S[number], number))
    return tuple(
        replace(
            ranking[number],
            rank=rank,
            standing=float(expected.standing_S[number]),
            num_datasets=int(expected.num_datasets_S[number]),
        )
        for rank, number in enumerate(order, start=1)
    )
