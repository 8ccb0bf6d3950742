"""What the model store holds of a run: which snapshots share which blocks, and the bytes that saves."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from raysnap.errors import RaysnapError
from raysnap.runs.json_fields import mapping
from raysnap.runs.run import Run
from raysnap.store.manifest import Manifest
from raysnap.store.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldSnapshot:
    """One snapshot of the store: its blocks as (name, digest, bytes)."""

    id: str
    name: str
    architecture: str
    dataset: str | None
    retrain_index: int | None
    num_classes: int
    blocks: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class Holdings:
    """The snapshots of a run that its store holds, and the size of the whole store.

    Attributes:
        problem: why nothing is known of the store, in a sentence; empty where it could be read.
        finetunes: (base, dataset, metrics) of the store's snapshots that started from one of the run's.
    """

    store_dir: Path | None
    snapshots: tuple[HeldSnapshot, ...] = ()
    num_in_store: int = 0
    bytes_on_disk: int = 0
    bytes_if_copied: int = 0
    problem: str = ""
    finetunes: tuple[tuple[str, str, dict[str, float]], ...] = ()

    @property
    def saved_share(self) -> float | None:
        """The share of the bytes of whole copies that the store does without."""
        return 1 - self.bytes_on_disk / self.bytes_if_copied if self.bytes_if_copied else None

    def split_bytes(self) -> tuple[int, int, int]:
        """(bytes of blocks that one snapshot holds, of shared blocks counted once, of shared blocks as copies)."""
        holders: Counter[str] = Counter()
        sizes: dict[str, int] = {}
        for snapshot in self.snapshots:
            for _, digest, num_bytes in snapshot.blocks:
                holders[digest] += 1
                sizes[digest] = num_bytes
        own = sum(sizes[digest] for digest, count in holders.items() if count == 1)
        once = sum(sizes[digest] for digest, count in holders.items() if count > 1)
        return own, once, sum(sizes[digest] * count for digest, count in holders.items() if count > 1)


def read_holdings(run: Run) -> tuple[Holdings, ...]:
    """What each store that the run names holds of the snapshots it made or searched; one at least."""
    names = list(dict.fromkeys([*_named(run.config.get("store")), *_searched_stores(run)]))
    if not names:
        unknown = "The run's configuration names no store, so which snapshots share which blocks can't be shown."
        return (Holdings(None, problem=unknown),)
    found = [_read_store(name, run) for name in names]
    told = [one for one in found if one.snapshots]
    return tuple(told or found[:1])


def _read_store(name: str, run: Run) -> Holdings:
    store_dir = _find_store(name, run)
    if store_dir is None:
        problem = f"No store stands at {name}, so which snapshots share which blocks can't be shown."
        return Holdings(None, problem=problem)
    try:
        store = Store.open(store_dir)
        wanted = _snapshots_of(run)
        summaries, stats = store.summaries(), store.stats()
        manifests = _manifests(store, [one.id for one in summaries if one.id in wanted])
        started = _manifests(store, [one.id for one in summaries if one.base in wanted and one.dataset])
        names = {snapshot: name for name, snapshot in sorted(store.refs().items(), reverse=True)}
    except RaysnapError as error:
        return Holdings(store_dir, problem=f"The store at {store_dir} can't be read: {error}")
    held = tuple(
        HeldSnapshot(
            id=one.id,
            name=run.trial_of[one.id].name if one.id in run.trial_of else names.get(one.id, one.id[:12]),
            architecture=one.architecture,
            dataset=one.dataset.name if one.dataset else None,
            retrain_index=one.retrain_index,
            num_classes=one.num_classes,
            blocks=tuple((block.name, block.digest, block.num_bytes) for block in one.blocks),
        )
        for one in manifests
    )
    return Holdings(
        store_dir=store_dir,
        snapshots=held,
        num_in_store=stats["num_snapshots"],
        bytes_on_disk=stats["bytes_on_disk"],
        bytes_if_copied=stats["bytes_if_copied"],
        finetunes=tuple((one.base, one.dataset.name, one.metrics) for one in started if one.base and one.dataset),
    )


def _manifests(store: Store, ids: list[str]) -> list[Manifest]:
    """The manifests of these snapshots; damaged ones are logged and left out."""
    found = []
    for snapshot in ids:
        try:
            found.append(store.manifest(snapshot))
        except RaysnapError as error:
            logger.warning("snapshot %s is left out of the report: %s", snapshot, error)
    return found


def _find_store(name: str, run: Run) -> Path | None:
    """The store: as named, of the run's synthetic sets, or beside the run directory where both were moved."""
    here = run.run_dir.resolve()
    if name in mapping(run.config.get("synthetic_sets")):
        return _synthetic_store(name, run)
    places = (Path(name), here.parent / Path(name).name, here.parent.parent / Path(name).name)
    return next((path for path in places if (path / "store.json").is_file()), None)


def _synthetic_store(name: str, run: Run) -> Path | None:
    """The one of the run's synthetic stores that holds a snapshot which was searched under this name."""
    asked = (search for search in run.searches if dict(search.setting).get("store") == name)
    held = {f"{one.snapshot}.json" for search in asked for one in search.ranking}
    for folder in _named(run.config.get("synthetic_dir")):
        for place in (Path(folder), *(parent / Path(folder).name for parent in run.run_dir.resolve().parents[:2])):
            for path in sorted(place.glob("*/store")):
                if not held.isdisjoint(file.name for file in (path / "snapshots").glob("*.json")):
                    return path
    return None


def _named(value: object) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str) and one]


def _searched_stores(run: Run) -> list[str]:
    return [store for search in run.searches for store in _named(dict(search.setting).get("store"))]


def _snapshots_of(run: Run) -> set[str]:
    searched = {one.snapshot for search in run.searches for one in search.ranking}
    return set(run.trial_of) | searched
