"""How starts stood on other datasets, as a store's records tell, and how that joins what a proxy says of this one.

A standing is a start's place among all that were fine-tuned on the same dataset in the same way, from 0 for the worst
to 1 for the best. What is expected of a start is the mean of its own standings, drawn towards that of its lineage, that
towards its architecture's, and that towards the middle: each with the weight of one dataset. Datasets on which the
proxy's order would have stood well weigh more. Records of the dataset asked about count for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysnap.store.records import RecordTable

MIDDLE = 0.5
LEAST_LIKENESS = 0.1  # of a dataset on which the proxy's order would not have stood at all
MAX_SHARE = 0.55  # of the joined rank, with many datasets; the proxy has the rest
MIN_COMPARED = 3  # starts that a proxy's order is compared on


@dataclass(frozen=True)
class Expected:
    """What records say of some snapshots, an entry per snapshot `S`.

    Attributes:
        standing_S: the expected standing on a dataset that is not among the records.
        num_datasets_S: on how many other datasets the snapshot itself stood.
        share: of a joined rank that comes from the records; 0 where there are none.
        num_records: how many fine-tunes that rests on.
        num_datasets: of how many datasets.
    """

    standing_S: np.ndarray
    num_datasets_S: np.ndarray
    share: float
    num_records: int
    num_datasets: int


@dataclass(frozen=True)
class _Standings:
    """The standings of starts on datasets: parallel arrays with an entry per pair `P` of a start and a dataset."""

    starts_P: np.ndarray
    datasets_P: np.ndarray
    standing_P: np.ndarray
    num_datasets: int
    num_records: int


def expect(
    table: RecordTable,
    asked: str,
    snapshots: Sequence[tuple[str, str, str]],
    scores_S: np.ndarray | None = None,
) -> Expected:
    """Return what records of other datasets say of these snapshots.

    Args:
        asked: the fingerprint of the dataset asked about.
        snapshots: the id, the architecture and the root of the lineage of each.
        scores_S: a proxy's scores of them on that dataset, to tell which other datasets are like it; None weighs all
            datasets equally.
    """
    standings = _standings(table, asked)
    num_snapshots = len(snapshots)
    if not len(standings.standing_P):
        return Expected(np.full(num_snapshots, MIDDLE), np.zeros(num_snapshots, dtype=np.int64), 0.0, 0, 0)
    position_of = {start: number for number, (start, _, _) in enumerate(table.starts)}
    own_S = np.array([position_of.get(snapshot, -1) for snapshot, _, _ in snapshots], dtype=np.int64)
    weight_D = np.ones(standings.num_datasets)
    if scores_S is not None:
        weight_D = _likeness(standings, own_S, scores_S)
    num_starts = len(table.starts)
    weight_P = weight_D[standings.datasets_P]
    weight_T = np.bincount(standings.starts_P, weight_P, num_starts)
    sum_T = np.bincount(standings.starts_P, weight_P * standings.standing_P, num_starts)
    count_T = np.bincount(standings.starts_P, minlength=num_starts)
    mean_T = np.divide(sum_T, weight_T, out=np.full(num_starts, MIDDLE), where=weight_T > 0)
    is_known_T = count_T > 0
    group_S = _group_means(table, mean_T, is_known_T, snapshots)
    own_weight_S = np.where(own_S >= 0, weight_T[own_S], 0.0)
    own_sum_S = np.where(own_S >= 0, sum_T[own_S], 0.0)
    num_datasets_S = np.where(own_S >= 0, count_T[own_S], 0)
    standing_S = (group_S + own_sum_S) / (1.0 + own_weight_S)
    num_behind = float(num_datasets_S.mean()) if num_snapshots else 0.0
    share = MAX_SHARE * num_behind / (1.0 + num_behind)
    return Expected(standing_S, num_datasets_S, share, standings.num_records, standings.num_datasets)


def join(scores_S: np.ndarray, expected: Expected) -> np.ndarray:
    """Return what to rank by, larger is better: places by the proxy and by the records, weighed by the records' share.

    Places go from 0 to 1; equal ones share the middle of theirs. Without records the proxy's order stays.
    """
    by_proxy_S, by_records_S = places(scores_S), places(expected.standing_S)
    joined_S: np.ndarray = (1.0 - expected.share) * by_proxy_S + expected.share * by_records_S
    return joined_S


def places(values_S: np.ndarray) -> np.ndarray:
    """Return the place of each value, 0 for the smallest to 1 for the largest; equal values share a mean place."""
    num_values = len(values_S)
    if num_values < 2:
        return np.full(num_values, MIDDLE)
    return _mean_ranks(np.zeros(num_values, dtype=np.int64), np.asarray(values_S, dtype=np.float64)) / (num_values - 1)


def _standings(table: RecordTable, asked: str) -> _Standings:
    """Return the standing of each start on each dataset but the one asked about.

    Of several fine-tunes of a start that are compared, the best one counts. A dataset that starts were compared on in
    several ways counts once: the mean.
    """
    datasets: dict[str, int] = {}
    dataset_F = np.array([datasets.setdefault(digest, len(datasets)) for digest, _, _ in table.fields], dtype=np.int64)
    is_other_F = np.array([digest != asked for digest, _, _ in table.fields], dtype=bool)
    is_used_R = np.isfinite(table.values_R)
    if len(table):
        is_used_R &= is_other_F[table.fields_R]
    num_starts = max(1, len(table.starts))
    key_R = table.fields_R[is_used_R].astype(np.int64) * num_starts + table.starts_R[is_used_R]
    key_P, which_R = np.unique(key_R, return_inverse=True)
    best_P = np.full(len(key_P), -np.inf)
    np.maximum.at(best_P, which_R, table.values_R[is_used_R])
    field_P, start_P = np.divmod(key_P, num_starts)
    count_F = np.bincount(field_P, minlength=len(table.fields))
    is_compared_P = count_F[field_P] > 1 if len(field_P) else np.zeros(0, dtype=bool)
    field_P, start_P, best_P = field_P[is_compared_P], start_P[is_compared_P], best_P[is_compared_P]
    standing_P = _mean_ranks(field_P, best_P) / (count_F[field_P] - 1) if len(field_P) else best_P
    pair_Q, which_P = np.unique(dataset_F[field_P] * num_starts + start_P, return_inverse=True)
    mean_Q = np.bincount(which_P, standing_P, len(pair_Q)) / np.maximum(1, np.bincount(which_P, minlength=len(pair_Q)))
    dataset_Q, start_Q = np.divmod(pair_Q, num_starts)
    seen, dataset_Q = np.unique(dataset_Q, return_inverse=True)
    return _Standings(start_Q, dataset_Q, mean_Q, len(seen), int(is_used_R.sum()))


def _mean_ranks(groups_P: np.ndarray, values_P: np.ndarray) -> np.ndarray:
    """Return each value's rank within its group, from 0; equal values share their mean rank."""
    order = np.lexsort((values_P, groups_P))
    group_O, value_O = groups_P[order], values_P[order]
    is_new_group_O = np.append(True, group_O[1:] != group_O[:-1])
    is_new_value_O = is_new_group_O | np.append(True, value_O[1:] != value_O[:-1])
    position_O = np.arange(len(order))
    first_of_group_O = np.maximum.accumulate(np.where(is_new_group_O, position_O, 0))
    run_O = np.cumsum(is_new_value_O) - 1
    starts = position_O[is_new_value_O]
    ends = np.append(starts[1:], len(order)) - 1
    middle_O = (starts + ends)[run_O] / 2
    ranks_P = np.empty(len(order))
    ranks_P[order] = middle_O - first_of_group_O
    return ranks_P


def _likeness(standings: _Standings, own_S: np.ndarray, scores_S: np.ndarray) -> np.ndarray:
    """Return how much each dataset weighs, 1 on average: by how well the proxy's order would have stood on it."""
    weight_D = np.full(standings.num_datasets, LEAST_LIKENESS)
    place_T = np.full(int(own_S.max(initial=-1)) + 1, np.nan)
    known_S = own_S >= 0
    place_T[own_S[known_S]] = scores_S[known_S]
    is_asked_P = standings.starts_P < len(place_T)
    is_asked_P[is_asked_P] = np.isfinite(place_T[standings.starts_P[is_asked_P]])
    for dataset in range(standings.num_datasets):
        chosen_P = is_asked_P & (standings.datasets_P == dataset)
        if np.count_nonzero(chosen_P) < MIN_COMPARED:
            continue
        ours, theirs = places(place_T[standings.starts_P[chosen_P]]), places(standings.standing_P[chosen_P])
        spread = ours.std() * theirs.std()
        if spread > 0:
            agreement = float(((ours - ours.mean()) * (theirs - theirs.mean())).mean() / spread)
            weight_D[dataset] += max(0.0, agreement)
    scaled_D: np.ndarray = weight_D / weight_D.mean()
    return scaled_D


def _group_means(
    table: RecordTable, mean_T: np.ndarray, is_known_T: np.ndarray, snapshots: Sequence[tuple[str, str, str]]
) -> np.ndarray:
    """Return for each snapshot the mean standing of its lineage, drawn towards its architecture's and the middle."""
    sums: dict[tuple[str, str], list[float]] = {}
    for (_, architecture, root), mean, is_known in zip(table.starts, mean_T.tolist(), is_known_T.tolist(), strict=True):
        if is_known:
            for group in (("architecture", architecture), ("lineage", root)):
                entry = sums.setdefault(group, [0.0, 0.0])
                entry[0] += mean
                entry[1] += 1.0
    nothing = (0.0, 0.0)
    found: dict[tuple[str, str], float] = {}
    for architecture, root in {(architecture, root) for _, architecture, root in snapshots}:
        total, count = sums.get(("architecture", architecture), nothing)
        of_architecture = (MIDDLE + total) / (1.0 + count)
        total, count = sums.get(("lineage", root), nothing)
        found[architecture, root] = (of_architecture + total) / (1.0 + count)
    return np.array([found[architecture, root] for _, architecture, root in snapshots])
