"""How starts stood on other datasets, as a store's records tell, and how that joins what a proxy says of this one.

A standing is a start's place among all that were fine-tuned on the same dataset in the same way, from 0 for the worst
to 1 for the best. What is expected of a start is the mean of its own standings, drawn towards that of its lineage, that
towards its architecture's, and that towards the middle: each with the weight of one dataset. Datasets on which the
proxy's order would have stood well weigh more. Records of the dataset asked about count for nothing.

Proxy and records are two measurements of one standing. Each counts as in the best linear combination of both, which
needs three correlations. That of the records follows from how many datasets they are of: any two datasets have
`DATASET_CORRELATION`. That between both is measured on the snapshots asked about. That of the proxy is what it then
has with what all datasets have in common: a proxy that agrees with records has earned more weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from raysnap.store.records import RecordTable, mean_ranks

MIDDLE = 0.5
LEAST_LIKENESS = 0.1  # of a dataset on which the proxy's order would not have stood at all
DATASET_CORRELATION = (
    1 / 3
)  # correlation of standings on two datasets: 0.32 to 0.36 on TransferGraph, whichever is asked about
PRIOR_SNAPSHOTS = 20  # snapshots whose agreement with a proxy counts as much as what proxies are expected to know
MAX_SHARE = 0.55  # of the joined rank: where proxy and records disagree, nothing says which of them is wrong
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
    asked_D = np.array([digest == asked for digest in table.datasets], dtype=bool)
    is_used_P = ~asked_D[table.datasets_P]
    pairs = _Pairs(table.starts_P[is_used_P], table.datasets_P[is_used_P], table.standing_P[is_used_P])
    num_snapshots, num_starts = len(snapshots), len(table.starts)
    if not len(pairs.standing_P):
        return Expected(np.full(num_snapshots, MIDDLE), np.zeros(num_snapshots, dtype=np.int64), 0.0, 0, 0)
    position_of = dict(zip(table.starts, range(num_starts), strict=True))
    own_S = np.array([position_of.get(snapshot, -1) for snapshot, _, _ in snapshots], dtype=np.int64)
    weight_D = np.ones(len(table.datasets)) if scores_S is None else _likeness(pairs, len(asked_D), own_S, scores_S)
    weight_P = weight_D[pairs.datasets_P]
    weight_T = np.bincount(pairs.starts_P, weight_P, num_starts)
    sum_T = np.bincount(pairs.starts_P, weight_P * pairs.standing_P, num_starts)
    count_T = np.bincount(pairs.starts_P, minlength=num_starts)
    mean_T = np.divide(sum_T, weight_T, out=np.full(num_starts, MIDDLE), where=weight_T > 0)
    group_S = _group_means(table, mean_T, count_T > 0, snapshots)
    is_start_S = own_S >= 0
    num_datasets_S = np.where(is_start_S, count_T[own_S], 0)
    standing_S = (group_S + np.where(is_start_S, sum_T[own_S], 0.0)) / (
        1.0 + np.where(is_start_S, weight_T[own_S], 0.0)
    )
    agreement = 0.0 if scores_S is None else _correlation(normal_scores(scores_S), normal_scores(standing_S))
    num_compared = 0 if scores_S is None else num_snapshots
    return Expected(
        standing_S,
        num_datasets_S,
        share=share_of(float(num_datasets_S.mean()) if num_snapshots else 0.0, agreement, num_compared),
        num_records=table.count_elsewhere(asked),
        num_datasets=len(np.unique(pairs.datasets_P)),
    )


@dataclass(frozen=True)
class _Pairs:
    """The standings of starts on other datasets: parallel arrays with an entry per pair `P`."""

    starts_P: np.ndarray
    datasets_P: np.ndarray
    standing_P: np.ndarray


def share_of(num_datasets: float, agreement: float, num_compared: int) -> float:
    """Return how much of a joined rank comes from the records.

    Args:
        num_datasets: on how many other datasets a snapshot stood, on average.
        agreement: correlation of the proxy's scores with the expected standings.
        num_compared: of how many snapshots.
    """
    reliability = (
        num_datasets * DATASET_CORRELATION / (1.0 + (num_datasets - 1.0) * DATASET_CORRELATION)
    )  # Spearman-Brown
    of_dataset, of_records = (
        math.sqrt(DATASET_CORRELATION),
        math.sqrt(reliability),
    )  # correlations with what datasets share
    of_proxy = (num_compared * of_records * agreement + PRIOR_SNAPSHOTS * of_dataset) / (
        num_compared * reliability + PRIOR_SNAPSHOTS
    )
    of_proxy = max(0.0, of_proxy)
    by_records = of_records * max(0.0, of_dataset - of_proxy**2)
    by_proxy = of_proxy * (1.0 - reliability * of_dataset)
    return min(MAX_SHARE, by_records / (by_records + by_proxy))


def join(scores_S: np.ndarray, expected: Expected) -> np.ndarray:
    """Return what to rank by, larger is better: the normal scores of proxy and records, weighed by the records' share.

    Without records the proxy's order stays.
    """
    by_proxy_S, by_records_S = normal_scores(scores_S), normal_scores(expected.standing_S)
    joined_S: np.ndarray = (1.0 - expected.share) * by_proxy_S + expected.share * by_records_S
    return joined_S


def normal_scores(values_S: np.ndarray) -> np.ndarray:
    """Return the quantiles of a normal distribution at the places of these values, which weigh the ends more."""
    num_values = len(values_S)
    share_S = (places(values_S) * (num_values - 1) + 0.5) / num_values
    return np.array(list(map(NormalDist().inv_cdf, share_S.tolist())))


def places(values_S: np.ndarray) -> np.ndarray:
    """Return the place of each value, 0 for the smallest to 1 for the largest; equal values share a mean place."""
    num_values = len(values_S)
    if num_values < 2:
        return np.full(num_values, MIDDLE)
    return mean_ranks(np.zeros(num_values, dtype=np.int64), np.asarray(values_S, dtype=np.float64)) / (num_values - 1)


def _likeness(pairs: _Pairs, num_datasets: int, own_S: np.ndarray, scores_S: np.ndarray) -> np.ndarray:
    """Return how much each dataset weighs, 1 on average: by how well the proxy's order would have stood on it."""
    weight_D = np.full(num_datasets, LEAST_LIKENESS)
    score_T = np.full(int(own_S.max(initial=-1)) + 1, np.nan)
    known_S = own_S >= 0
    score_T[own_S[known_S]] = scores_S[known_S]
    is_asked_P = pairs.starts_P < len(score_T)
    is_asked_P[is_asked_P] = np.isfinite(score_T[pairs.starts_P[is_asked_P]])
    datasets = np.unique(pairs.datasets_P)
    for dataset in datasets:
        chosen_P = is_asked_P & (pairs.datasets_P == dataset)
        if np.count_nonzero(chosen_P) < MIN_COMPARED:
            continue
        ours, theirs = places(score_T[pairs.starts_P[chosen_P]]), places(pairs.standing_P[chosen_P])
        weight_D[dataset] += max(0.0, _correlation(ours, theirs))
    scaled_D: np.ndarray = weight_D / weight_D[datasets].mean()
    return scaled_D


def _correlation(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the correlation of two arrays, 0 where either is constant."""
    spread = ours.std() * theirs.std()
    return float(((ours - ours.mean()) * (theirs - theirs.mean())).mean() / spread) if spread > 0 else 0.0


def _group_means(
    table: RecordTable, mean_T: np.ndarray, is_known_T: np.ndarray, snapshots: Sequence[tuple[str, str, str]]
) -> np.ndarray:
    """Return for each snapshot the mean standing of its lineage, drawn towards its architecture's and the middle."""

    def drawn(groups_T: np.ndarray, names: list[str], wanted: list[str], towards_S: np.ndarray) -> np.ndarray:
        sum_G = np.bincount(groups_T[is_known_T], mean_T[is_known_T], len(names) + 1)
        count_G = np.bincount(groups_T[is_known_T], minlength=len(names) + 1)
        position_of = dict(zip(names, range(len(names)), strict=True))
        group_S = np.array([position_of.get(name, len(names)) for name in wanted], dtype=np.int64)
        mean_S: np.ndarray = (towards_S + sum_G[group_S]) / (1.0 + count_G[group_S])
        return mean_S

    middle_S = np.full(len(snapshots), MIDDLE)
    _, architectures, roots = zip(*snapshots, strict=True) if snapshots else ((), (), ())
    by_architecture_S = drawn(table.architectures_T, table.architectures, list(architectures), middle_S)
    return drawn(table.roots_T, table.roots, list(roots), by_architecture_S)
