"""From a trial's savepoint to its row and snapshot in the store; only the driver does it; a repeat changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysnap.config.choices import Status
from raysnap.errors import FrozenBlockChanged, WeightsError
from raysnap.models.block_facts import num_body_blocks
from raysnap.models.blocks import block_names
from raysnap.models.tensor_bytes import decode
from raysnap.runs.trial_rows import TrialRow
from raysnap.store.manifest import BlockEntry, DatasetRecord
from raysnap.store.preprocessing import AnyPreprocessing
from raysnap.store.store import Block, Store
from raysnap.system import utc_timestamp
from raysnap.training.savepoints import Savepoint
from raysnap.training.state import best_scores
from raysnap.training.trial import Trial, slug
from raysnap.tune.options import TrialOutcome

TRAINING = ("prefix", "train", "evaluate")
"""The timings of a row that are time in training, not around it."""

OF_ITS_GPU = ("gpu_share", "gpu_peak_bytes", "gpu_bytes", "gpu_forecast_bytes")
"""What an outcome and a row both say."""

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
"""What a savepoint's record and a row both say."""


def collect(store: Store | None, outcome: TrialOutcome, preprocessing: AnyPreprocessing) -> TrialRow:
    """Store what a trial trained on top of its frozen blocks, and return the trial's row.

    Without a store only the row is made.

    Raises:
        WeightsError: the savepoint belongs to another trial, or lacks a block.
        FrozenBlockChanged: the blocks that stayed frozen in training are not those of the base in the store.
        StoreError: the store can't be written.
    """
    trial, savepoint = outcome.trial, outcome.savepoint
    row = planned_row(trial, outcome.status, outcome.error)
    row = replace(row, **{name: getattr(outcome, name) for name in OF_ITS_GPU})
    if savepoint is None:
        metrics = best_scores(outcome.history, trial.train)
        return replace(row, stopped=outcome.stopped, history=outcome.history, metrics=metrics)
    record = savepoint.record
    if record["trial"] != trial.id:
        raise WeightsError(f"{savepoint.path}: expected a checkpoint of {trial.id}, found {record['trial']}'s")
    stored = _put_snapshot(store, trial, savepoint, preprocessing) if store else {}
    wall_s = _wall_s(outcome)
    return replace(
        row,
        **{name: record[name] for name in RECORDED},
        node=record.get("node"),
        **stored,
        train=_used_config(trial, record),
        note=_note(trial, record["batch_size"]),
        wall_s=wall_s,
        overhead_s=None if wall_s is None else wall_s - sum(record["timings_s"][phase] for phase in TRAINING),
    )


def planned_row(trial: Trial, status: Status, error: str | None = None) -> TrialRow:
    """Return a trial's row with all that is known without its training."""
    return TrialRow(
        trial=trial.id,
        role=trial.role,
        architecture=trial.architecture,
        dataset=slug(trial.dataset) if trial.dataset else None,
        retrain_index=trial.retrain_index,
        num_blocks=num_body_blocks(trial.architecture),
        image_size=trial.image_size,
        point=trial.point or {},
        sample=trial.sample,
        seed=trial.seed,
        train=trial.train.model_dump(mode="json"),
        batch_size=trial.train.batch_size,
        finished=utc_timestamp(),
        status=status,
        error=error,
    )


def _put_snapshot(store: Store, trial: Trial, savepoint: Savepoint, preprocessing: AnyPreprocessing) -> dict[str, Any]:
    """Store a trial's snapshot, and return what its row says of it."""
    record = savepoint.record
    blocks: list[tuple[str, Block]] = [(block.name, block.digest) for block in _frozen_blocks(store, trial, record)]
    for name in block_names(trial.architecture)[trial.num_frozen :]:
        blocks.append((name, _read_block(savepoint.path / "best", name)))
    written = store.put_snapshot(
        architecture=trial.architecture,
        blocks=blocks,
        num_classes=len(record["classes"]),
        base=record["base"],
        retrain_index=trial.retrain_index,
        dataset=DatasetRecord(
            name=slug(trial.trained_on), digest=record["dataset_digest"], classes=tuple(record["classes"])
        ),
        preprocessing=preprocessing,
        metrics=record["metrics"],
        train=_used_config(trial, record),
        trial=trial.id,
    )
    name = store.give_name(trial.id, written.manifest.id)
    return {
        "snapshot_name": None if name == trial.id else name,
        "snapshot": written.manifest.id,
        "new_blocks": written.new_blocks,
        "new_bytes": written.new_bytes,
        "snapshot_bytes": written.manifest.num_bytes,
    }


def _used_config(trial: Trial, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the trial trained with, as JSON: its batch size may have been halved."""
    return trial.train.model_copy(update={"batch_size": record["batch_size"]}).model_dump(mode="json")


def _wall_s(outcome: TrialOutcome) -> float | None:
    """Return a trial's wall time from its start in Tune until it was stored; None where the start is unknown."""
    if outcome.started_s is None:
        return None
    return (outcome.ended_s or time.monotonic()) - outcome.started_s


def _note(trial: Trial, batch_size: int) -> str | None:
    if batch_size == trial.train.batch_size:
        return None
    return f"out of memory at batch size {trial.train.batch_size}; trained with {batch_size}"


def _frozen_blocks(store: Store, trial: Trial, record: Mapping[str, Any]) -> tuple[BlockEntry, ...]:
    """Return the blocks of the base that the trial left frozen.

    Raises:
        FrozenBlockChanged: they are not those that it was trained on.
    """
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
