"""From a trial's savepoint to a snapshot in the store; the driver alone does it, and twice changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysnap.errors import FrozenBlockChanged, WeightsError
from raysnap.models.blocks import block_names
from raysnap.models.tensor_bytes import decode
from raysnap.store.manifest import BlockEntry, DatasetRecord, Preprocessing
from raysnap.store.store import Store
from raysnap.system import utc_timestamp
from raysnap.training.state import best_scores
from raysnap.training.trial import Trial, slug
from raysnap.tune.options import TrialOutcome

TRAINING = ("prefix", "train", "evaluate")
"""The timings of a row that are time in training, not around it."""

RECORDED = (
    "base",
    "metrics",
    "history",
    "timings_s",
    "batch_size",
    "num_parameters",
    "num_trained_parameters",
    "device",
    "precision",
    "stopped",
    "inherited",
)


def collect(
    store: Store | None, outcome: TrialOutcome, preprocessing: Preprocessing, num_body_blocks: int
) -> dict[str, Any]:
    """Stores what a trial trained on top of the blocks it left frozen, and returns the trial's row.

    Without a store the row is all that is left of it.

    Raises:
        WeightsError: the savepoint is not one of this trial.
        FrozenBlockChanged: the blocks that stayed frozen in training are not those of the base in the store.
        StoreError: the store can't be written.
    """
    trial = outcome.trial
    row = trial_row(trial, num_body_blocks) | {"status": outcome.status, "error": outcome.error}
    if outcome.savepoint is None:
        metrics = best_scores(outcome.history, trial.train)
        return row | {"stopped": outcome.stopped, "history": list(outcome.history), "metrics": metrics}
    record = outcome.savepoint.record
    if record["trial"] != trial.id:
        raise WeightsError(f"{outcome.savepoint.path}: expected a checkpoint of {trial.id}, found {record['trial']}'s")
    used = trial.train.model_copy(update={"batch_size": record["batch_size"]})
    row |= {name: record[name] for name in RECORDED} | {
        "train": used.model_dump(mode="json"),
        "note": _note(trial, record["batch_size"]),
    }
    kept = _put(store, outcome, preprocessing) if store else {}
    return row | _overhead(outcome, record["timings_s"]) | kept


def _put(store: Store, outcome: TrialOutcome, preprocessing: Preprocessing) -> dict[str, Any]:
    """What a trial's row says of its snapshot, which is in the store then."""
    trial, record = outcome.trial, outcome.savepoint.record
    blocks: list[tuple[str, Any]] = [(block.name, block.digest) for block in _frozen_blocks(store, trial, record)]
    for name in block_names(trial.architecture)[trial.num_frozen :]:
        blocks.append((name, _read_block(outcome.savepoint.path / "best", name)))
    used = trial.train.model_copy(update={"batch_size": record["batch_size"]})
    written = store.put_snapshot(
        architecture=trial.architecture,
        blocks=blocks,
        num_classes=len(record["classes"]),
        base=record["base"],
        retrain_index=trial.retrain_index,
        dataset=DatasetRecord(
            name=slug(trial.dataset), digest=record["dataset_digest"], classes=tuple(record["classes"])
        ),
        preprocessing=preprocessing,
        metrics=record["metrics"],
        train=used.model_dump(mode="json"),
        trial=trial.id,
        name=trial.id,
    )
    return {
        "snapshot": written.manifest.id,
        "new_blocks": written.new_blocks,
        "new_bytes": written.new_bytes,
        "snapshot_bytes": written.manifest.num_bytes,
    }


def trial_row(trial: Trial, num_body_blocks: int) -> dict[str, Any]:
    """A trial's row as far as its plan tells."""
    return {
        "trial": trial.id,
        "role": trial.role,
        "architecture": trial.architecture,
        "dataset": slug(trial.dataset) if trial.dataset else None,
        "retrain_index": trial.retrain_index,
        "num_blocks": num_body_blocks,
        "image_size": trial.image_size,
        "point": trial.point,
        "sample": trial.sample,
        "seed": trial.seed,
        "train": trial.train.model_dump(mode="json"),
        "batch_size": trial.train.batch_size,
        "snapshot": None,
        "base": None,
        "metrics": {},
        "history": [],
        "timings_s": {},
        "wall_s": None,
        "overhead_s": None,
        "device": None,
        "precision": None,
        "note": None,
        "stopped": None,
        "inherited": [],
        "finished": utc_timestamp(),
    }


def _overhead(outcome: TrialOutcome, timings_s: Mapping[str, float]) -> dict[str, float | None]:
    """A trial's wall time from its start in Tune till it was stored, and how much of it was not training."""
    if outcome.started_s is None:
        return {"wall_s": None, "overhead_s": None}
    wall_s = (outcome.ended_s or time.monotonic()) - outcome.started_s
    return {"wall_s": wall_s, "overhead_s": wall_s - sum(timings_s[name] for name in TRAINING)}


def _note(trial: Trial, batch_size: int) -> str | None:
    if batch_size == trial.train.batch_size:
        return None
    return f"out of memory at batch size {trial.train.batch_size}; trained with {batch_size}"


def _frozen_blocks(store: Store, trial: Trial, record: Mapping[str, Any]) -> tuple[BlockEntry, ...]:
    """The blocks of the base that the trial left as they are; they must be those that it was trained on."""
    if not trial.num_frozen:
        return ()
    frozen = store.manifest(record["base"]).blocks[: trial.num_frozen]
    for block, digest in zip(frozen, record["frozen"], strict=True):
        if block.digest != digest:
            raise FrozenBlockChanged(
                f"block {block.name} of the base {record['base'][:12]}: expected digest {block.digest[:12]}, found "
                f"that {trial.id} was trained on {digest[:12]}; nothing of this trial is stored"
            )
    return frozen


def _read_block(best_dir: Path, name: str) -> dict[str, Any]:
    path = best_dir / f"{name}.safetensors"
    if not path.is_file():
        raise WeightsError(f"{path}: expected the trained block {name}, found no such file")
    return decode(memoryview(bytearray(path.read_bytes())), str(path))
