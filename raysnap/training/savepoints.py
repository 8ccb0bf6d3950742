"""The checkpoints of a trial on disk: what a killed trial continues from, and what the driver collects in the end.

Ray copies a checkpoint file by file into its folder, so a kill leaves parts of one. Each therefore has a record of its
files with their digests, and one that lacks any of them, byte for byte, is ignored.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

RECORD_NAME = "trial.json"
KEPT_NAME = "resume"
CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Savepoint:
    """One whole checkpoint; `record` is what its trial recorded with it."""

    path: Path
    record: dict[str, Any]

    @property
    def is_final(self) -> bool:
        """Whether its trial was finished, so that it only has to be collected."""
        return self.record["status"] == "done"


def write_record(directory: Path, *, status: str, epoch: int, **facts: Any) -> None:
    """Make the checkpoint in `directory` a savepoint by a record of the facts and of the digests of all its files."""
    files = {str(path.relative_to(directory)): _digest(path) for path in sorted(directory.rglob("*")) if path.is_file()}
    record = facts | {"status": status, "epoch": epoch, "files": files}
    (directory / RECORD_NAME).write_text(json.dumps(record, allow_nan=False), encoding="utf-8")


def read_savepoint(directory: Path) -> Savepoint | None:
    """Return the savepoint in `directory`; None when it is missing or not whole."""
    try:
        record = json.loads((directory / RECORD_NAME).read_text(encoding="utf-8"))
        is_whole = all(_digest(directory / name) == digest for name, digest in record["files"].items())
    except (OSError, ValueError):
        return None
    return Savepoint(directory, record) if is_whole else None


def latest_savepoint(trial_dir: Path) -> Savepoint | None:
    """Return the savepoint of the latest epoch anywhere in a trial's folder; None when none is whole.

    Only epochs show which is later: Ray counts a trial's checkpoints from 0 in each run of the driver.
    """
    found = filter(None, (read_savepoint(path.parent) for path in trial_dir.rglob(RECORD_NAME)))
    return max(found, key=lambda savepoint: (savepoint.is_final, savepoint.record["epoch"]), default=None)


def keep_latest(trial_dir: Path) -> Savepoint | None:
    """Delete the trial's checkpoints except the latest savepoint, and return it.

    It moves to a name that Ray never uses, so that the next run's first checkpoint does not overwrite it.
    """
    latest = latest_savepoint(trial_dir)
    kept_dir = trial_dir / KEPT_NAME
    if latest is not None and latest.path != kept_dir:
        shutil.rmtree(kept_dir, ignore_errors=True)
        latest = Savepoint(latest.path.rename(kept_dir), latest.record)
    keep_only(trial_dir, None if latest is None else KEPT_NAME)
    return latest


def delete_checkpoints(trial_dir: Path) -> None:
    """Delete the trial's checkpoints, whole or not; Ray's result files stay."""
    keep_only(trial_dir, None)


def keep_only(trial_dir: Path, name: str | None) -> None:
    """Delete the folders in a trial's folder, which hold only checkpoints, except one; None keeps none."""
    if not trial_dir.is_dir():
        return
    for path in trial_dir.iterdir():
        if path.is_dir() and path.name != name:
            shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    """Hash a file by reading it: a map would kill this process if another one began to write the file again."""
    hasher = blake3(max_threads=blake3.AUTO)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()
