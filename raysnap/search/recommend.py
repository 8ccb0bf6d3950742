"""Rank a store's snapshots for a dataset by records alone: what came of fine-tunes on other datasets, no image read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import open_dataset
from raysnap.errors import UsageError
from raysnap.models.block_facts import sees_texts
from raysnap.search.placing import root_of
from raysnap.search.standings import expect
from raysnap.store.store import Store

if TYPE_CHECKING:
    import pandas as pd

MAX_RECOMMENDED = 20


@dataclass(frozen=True)
class RecommendedSnapshot:
    """One line of a recommendation.

    Attributes:
        standing: the place that records let expect among starts, from 0 for the worst to 1 for the best.
        num_datasets: on how many other datasets the snapshot itself was fine-tuned; 0 where only its lineage or its
            architecture was.
    """

    rank: int
    snapshot: str
    name: str
    architecture: str
    standing: float
    num_datasets: int


@dataclass(frozen=True)
class Recommendation:
    """The snapshots that records recommend for a dataset.

    Attributes:
        ranking: the best ones.
        num_snapshots: how many were ranked.
        num_records, num_datasets: how many fine-tunes on how many other datasets that rests on; 0 where there is
            nothing to rank by: then the order means nothing.
    """

    dataset: str
    ranking: tuple[RecommendedSnapshot, ...]
    num_snapshots: int
    num_records: int
    num_datasets: int

    def to_dict(self) -> dict[str, Any]:
        """Return the recommendation as plain values, in the form that `raysnap recommend --json` prints."""
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return the ranking as a data frame, a row per snapshot, best first."""
        import pandas as pd

        return pd.DataFrame([asdict(line) for line in self.ranking], columns=list(RecommendedSnapshot.__annotations__))


def recommend(
    store: Store | Path | str,
    data: str | Path,
    *,
    where: str | None = None,
    limit: int = MAX_RECOMMENDED,
    data_dir: Path | str = "data",
    shapes: ShapesConfig | None = None,
) -> Recommendation:
    """Rank a store's snapshots by how starts like them stood on other datasets.

    >>> result = raysnap.recommend("store", "shapes-shape-a")
    >>> result.num_records, len(result.ranking)
    (0, 3)

    Args:
        store: an open store or the folder of one.
        data: a dataset's name in `data_dir`, or the path of an ImageFolder; its own records count for nothing.
        where: which snapshots are ranked, as in a search.
        limit: how many of the best are returned.

    Raises:
        UsageError: no snapshot matches, or the limit is below 1.
        DataError: the dataset is missing.
        StoreError: the store can't be opened.
    """
    if limit < 1:
        raise UsageError(f"limit: expected at least 1 snapshot, found {limit}")
    store = store if isinstance(store, Store) else Store.open(Path(store))
    dataset = open_dataset(str(data), data_dir, shapes)
    lineages, is_text = store.lineages(where), dataset.kind == "texts"
    chosen = [one for one in lineages if one.is_match and sees_texts(one.architecture) == is_text]
    if not chosen:
        wanted = f" that match where {where!r}" if where else ""
        raise UsageError(
            f"{store.path}: expected at least one snapshot to rank that sees {dataset.kind}, found none{wanted}"
        )
    bases = {one.id: one.base for one in lineages}
    snapshots = [(one.id, one.architecture, root_of(one.id, bases)) for one in chosen]
    expected = expect(store.record_table(), dataset.fingerprint, snapshots)
    best = np.lexsort((np.arange(len(snapshots)), -expected.num_datasets_S, -expected.standing_S))[:limit].tolist()
    ranking = tuple(
        RecommendedSnapshot(
            rank=rank,
            snapshot=chosen[number].id,
            name=chosen[number].name or chosen[number].id[:12],
            architecture=chosen[number].architecture,
            standing=float(expected.standing_S[number]),
            num_datasets=int(expected.num_datasets_S[number]),
        )
        for rank, number in enumerate(best, start=1)
    )
    return Recommendation(dataset.name, ranking, len(snapshots), expected.num_records, expected.num_datasets)
