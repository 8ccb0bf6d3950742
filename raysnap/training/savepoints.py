"""The checkpoints of a trial on disk: what a killed trial goes on from, and what the driver collects of a finished one.

Ray copies a checkpoint file by file into its folder, so a kill leaves parts of one. Each therefore carries a record of
its files with their digests, and one that does not hold them all, byte for byte, does not exist.
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


@dataclass(frozen=True)
class Savepoint:
    """One whole checkpoint; `record` is what its trial wrote with it."""

    path: Path
    record: dict[str, Any]

    @property
    def is_final(self) -> bool:
        """Whether its trial was finished, so that nothing is left but to collect it."""
        return self.record["status"] == "done"


def write_record(directory: Path, *, status: str, epoch: int, **facts: Any) -> None:
    """Makes a savepoint of the checkpoint in `directory`: a record of the facts and of all its files."""
    files = {str(path.relative_to(directory)): _digest(path) for path in sorted(directory.rglob("*")) if path.is_file()}
    record = facts | {"status": status, "epoch": epoch, "files": files}
    (directory / RECORD_NAME).write_text(json.dumps(record, allow_nan=False), encoding="utf-8")


def read_savepoint(directory: Path) -> Savepoint | None:
    """The savepoint in `directory`; None when it is not there, or not whole."""
    try:
        record = json.loads((directory / RECORD_NAME).read_text(encoding="utf-8"))
        is_whole = all(_digest(directory / name) == digest for name, digest in record["files"].items())
    except (OSError, ValueError):
        return None
    return Savepoint(directory, record) if is_whole else None


def latest_savepoint(trial_dir: Path) -> Savepoint | None:
    """The savepoint of the latest epoch anywhere in a trial's folder; None when it has none that is whole.

    Epochs tell which is newer: Ray counts a trial's checkpoints from 0 again in each run of the driver.
    """
    found = filter(None, (read_savepoint(path.parent) for path in trial_dir.rglob(RECORD_NAME)))
    return max(found, key=lambda one: (one.is_final, one.record["epoch"]), default=None)


def keep_latest(trial_dir: Path) -> Savepoint | None:
    """The newest savepoint, which is all that is left of the trial's checkpoints.

    It moves to a name that Ray gives to none, so that the next run's first checkpoint does not overwrite it.
    """
    newest = latest_savepoint(trial_dir)
    kept_dir = trial_dir / KEPT_NAME
    if newest is not None and newest.path != kept_dir:
        shutil.rmtree(kept_dir, ignore_errors=True)
        newest = Savepoint(newest.path.rename(kept_dir), newest.record)
    _sweep(trial_dir, keep=newest is not None)
    return newest


def delete_checkpoints(trial_dir: Path) -> None:
    """Deletes the trial's checkpoints, whole or not; Ray's result files stay."""
    _sweep(trial_dir, keep=False)


def _sweep(trial_dir: Path, *, keep: bool) -> None:
    """Deletes the folders in a trial's folder, which hold checkpoints and nothing else."""
    if not trial_dir.is_dir():
        return
    for path in trial_dir.iterdir():
        if path.is_dir() and not (keep and path.name == KEPT_NAME):
            shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
