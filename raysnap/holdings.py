"""What the model store holds of a run: which snapshots share which blocks, and the bytes that saves."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from raysnap.errors import RaysnapError
from raysnap.manifest import Manifest
from raysnap.records import Run
from raysnap.store import Store

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

    `problem` says in a sentence why nothing is known of the store, and is empty where it could be read.
    """

    store_dir: Path | None
    snapshots: tuple[HeldSnapshot, ...] = ()
    num_in_store: int = 0
    bytes_on_disk: int = 0
    bytes_if_copied: int = 0
    problem: str = ""

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


def read_holdings(run: Run) -> Holdings:
    """What the store named in the run's configuration holds of the snapshots the run made or searched."""
    store_dir = _find_store(run)
    if store_dir is None:
        named = run.config.get("store")
        where = f"No store stands at {named}" if named else "The run's configuration names no store"
        return Holdings(None, problem=f"{where}, so which snapshots share which blocks can't be shown.")
    try:
        store = Store.open(store_dir)
        manifests, stats = _manifests(store, _snapshots_of(run)), store.stats()
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
    )


def _manifests(store: Store, wanted: set[str]) -> list[Manifest]:
    """The manifests of the wanted snapshots that the store has; damaged ones are logged and left out."""
    found = []
    for summary in store.summaries():
        if summary.id in wanted:
            try:
                found.append(store.manifest(summary.id))
            except RaysnapError as error:
                logger.warning("snapshot %s is left out of the report: %s", summary.id, error)
    return found


def _find_store(run: Run) -> Path | None:
    """The run's store: as configured, or beside the run directory where both were moved together."""
    named = run.config.get("store")
    if not isinstance(named, str) or not named:
        return None
    beside = (run.run_dir.resolve().parent / Path(named).name, run.run_dir.resolve().parent.parent / Path(named).name)
    return next((path for path in (Path(named), *beside) if (path / "store.json").is_file()), None)


def _snapshots_of(run: Run) -> set[str]:
    searched = {one.snapshot for search in run.searches for one in search.ranking}
    return set(run.trial_of) | searched
