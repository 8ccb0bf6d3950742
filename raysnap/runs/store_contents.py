"""Read what model stores hold of a run: which snapshots share which blocks, and the bytes that saves."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from raysnap.config.folders import StorePath, store_path
from raysnap.errors import RaysnapError
from raysnap.runs.json_fields import mapping
from raysnap.runs.run import Run
from raysnap.store.manifest import Manifest
from raysnap.store.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredSnapshot:
    """One snapshot of the store: its blocks as (name, digest, bytes)."""

    id: str
    name: str
    architecture: str
    dataset: str | None
    retrain_index: int | None
    num_classes: int
    blocks: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class StoreContents:
    """The snapshots of a run that a store holds, and the size of the whole store.

    Attributes:
        problem: why nothing is known of the store, in a sentence; empty if it could be read.
        finetunes: (base, dataset, metrics) of the store's snapshots that started from one of the run's.
    """

    store_dir: StorePath | None
    snapshots: tuple[StoredSnapshot, ...] = ()
    num_in_store: int = 0
    bytes_on_disk: int = 0
    bytes_if_copied: int = 0
    problem: str = ""
    finetunes: tuple[tuple[str, str, dict[str, float]], ...] = ()

    @property
    def saved_share(self) -> float | None:
        """The share of bytes that the store saves over whole copies; None if it holds nothing."""
        return 1 - self.bytes_on_disk / self.bytes_if_copied if self.bytes_if_copied else None

    def split_bytes(self) -> tuple[int, int, int]:
        """Return the bytes of blocks of one snapshot, of shared blocks counted once, of shared blocks as copies."""
        holders: Counter[str] = Counter()
        sizes: dict[str, int] = {}
        for snapshot in self.snapshots:
            for _, digest, num_bytes in snapshot.blocks:
                holders[digest] += 1
                sizes[digest] = num_bytes
        own = sum(sizes[digest] for digest, count in holders.items() if count == 1)
        once = sum(sizes[digest] for digest, count in holders.items() if count > 1)
        return own, once, sum(sizes[digest] * count for digest, count in holders.items() if count > 1)


def read_store_contents(run: Run) -> tuple[StoreContents, ...]:
    """Return what each store that the run names holds of the snapshots it made or searched; at least one item."""
    names = list(dict.fromkeys([*_texts(run.config.get("store")), *_searched_stores(run)]))
    if not names:
        unknown = "The run's configuration names no store, so which snapshots share which blocks can't be shown."
        return (StoreContents(None, problem=unknown),)
    found = [_read_store(name, run) for name in names]
    return tuple([contents for contents in found if contents.snapshots] or found[:1])


def _read_store(name: str, run: Run) -> StoreContents:
    store_dir = _find_store(name, run)
    if store_dir is None:
        problem = f"There is no store at {name}, so which snapshots share which blocks can't be shown."
        return StoreContents(None, problem=problem)
    try:
        store = Store.open(store_dir)
        wanted = _snapshots_of(run)
        summaries, stats = store.summaries(), store.stats()
        manifests = _manifests(store, [summary.id for summary in summaries if summary.id in wanted])
        started = _manifests(store, [summary.id for summary in summaries if summary.base in wanted and summary.dataset])
        names = {snapshot: name for name, snapshot in sorted(store.refs().items(), reverse=True)}
    except RaysnapError as error:
        return StoreContents(store_dir, problem=f"The store at {store_dir} can't be read: {error}")
    run_names = {snapshot: trial.name for snapshot, trial in run.trial_of.items()}
    held = tuple(
        StoredSnapshot(
            id=manifest.id,
            name=run_names.get(manifest.id) or names.get(manifest.id, manifest.id[:12]),
            architecture=manifest.architecture,
            dataset=manifest.dataset.name if manifest.dataset else None,
            retrain_index=manifest.retrain_index,
            num_classes=manifest.num_classes,
            blocks=tuple((block.name, block.digest, block.num_bytes) for block in manifest.blocks),
        )
        for manifest in manifests
    )
    return StoreContents(
        store_dir=store_dir,
        snapshots=held,
        num_in_store=stats["num_snapshots"],
        bytes_on_disk=stats["bytes_on_disk"],
        bytes_if_copied=stats["bytes_if_copied"],
        finetunes=tuple(
            (manifest.base, manifest.dataset.name, manifest.metrics)
            for manifest in started
            if manifest.base and manifest.dataset
        ),
    )


def _manifests(store: Store, ids: list[str]) -> list[Manifest]:
    """Return the manifests of these snapshots; damaged ones are logged and left out."""
    found = []
    for snapshot in ids:
        try:
            found.append(store.manifest(snapshot))
        except RaysnapError as error:
            logger.warning("snapshot %s is left out of the report: %s", snapshot, error)
    return found


def _find_store(name: str, run: Run) -> StorePath | None:
    """Find a store: at its path, among the run's synthetic sets, or beside a run directory that was moved with it."""
    here = run.run_dir.resolve()
    if name.startswith("s3://"):
        return store_path(name)
    if name in mapping(run.config.get("synthetic_sets")):
        return _synthetic_store(name, run)
    places = (Path(name), here.parent / Path(name).name, here.parent.parent / Path(name).name)
    return next((path for path in places if (path / "store.json").is_file()), None)


def _synthetic_store(name: str, run: Run) -> Path | None:
    """Find the synthetic store of the run that holds a snapshot which was searched under this name."""
    searches = (search for search in run.searches if dict(search.setting).get("store") == name)
    manifests = {f"{ranked.snapshot}.json" for search in searches for ranked in search.ranking}
    for folder in _texts(run.config.get("synthetic_dir")):
        for place in (Path(folder), *(parent / Path(folder).name for parent in run.run_dir.resolve().parents[:2])):
            for path in sorted(place.glob("*/store")):
                if not manifests.isdisjoint(file.name for file in (path / "snapshots").glob("*.json")):
                    return path
    return None


def _texts(value: object) -> list[str]:
    return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str) and name]


def _searched_stores(run: Run) -> list[str]:
    return [store for search in run.searches for store in _texts(dict(search.setting).get("store"))]


def _snapshots_of(run: Run) -> set[str]:
    searched = {ranked.snapshot for search in run.searches for ranked in search.ranking}
    return set(run.trial_of) | searched
