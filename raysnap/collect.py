"""From a trial's checkpoint to a snapshot in the store; the driver alone does it, and twice changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raysnap.blocks import block_names
from raysnap.errors import WeightsError
from raysnap.manifest import DatasetRecord, Preprocessing
from raysnap.objects import decode
from raysnap.runs import utc_timestamp
from raysnap.store import Store
from raysnap.trainer import RECORD_NAME, TrialOutcome
from raysnap.trials import Trial, slug


def collect(store: Store, outcome: TrialOutcome, preprocessing: Preprocessing, num_body_blocks: int) -> dict[str, Any]:
    """Stores what a trial trained on top of the blocks it left frozen, and returns the trial's row.

    Raises:
        WeightsError: the checkpoint is not one of this trial.
        StoreError: the store can't be written.
    """
    trial = outcome.trial
    row = trial_row(trial, num_body_blocks) | {"status": outcome.status, "error": outcome.error}
    if outcome.status != "done" or outcome.checkpoint_dir is None:
        return row
    record = json.loads((outcome.checkpoint_dir / RECORD_NAME).read_text())
    frozen = store.manifest(record["base"]).blocks[: trial.num_frozen] if trial.num_frozen else ()
    blocks: list[tuple[str, Any]] = [(block.name, block.digest) for block in frozen]
    for name in block_names(trial.architecture)[trial.num_frozen :]:
        blocks.append((name, _read_block(outcome.checkpoint_dir, name)))
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
        train=trial.train.model_dump(mode="json"),
        trial=trial.id,
        name=trial.id,
    )
    return row | {
        "snapshot": written.manifest.id,
        "base": record["base"],
        "metrics": record["metrics"],
        "history": record["history"],
        "timings_s": record["timings_s"],
        "num_parameters": record["num_parameters"],
        "num_trained_parameters": record["num_trained_parameters"],
        "device": record["device"],
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
        "seed": trial.seed,
        "snapshot": None,
        "base": None,
        "metrics": {},
        "history": [],
        "timings_s": {},
        "finished": utc_timestamp(),
    }


def _read_block(checkpoint_dir: Path, name: str) -> dict[str, Any]:
    path = checkpoint_dir / f"{name}.safetensors"
    if not path.is_file():
        raise WeightsError(f"{path}: expected the trained block {name}, found no such file")
    return decode(memoryview(bytearray(path.read_bytes())), str(path))
