"""A run directory: what was asked (`config.yaml`, `trials.jsonl`), where it ran (`env.json`), and `results.jsonl`.

Whole files appear by rename; rows are appended in one write each, and a row truncated by a crash is dropped when read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raysnap.atomic import write_atomically
from raysnap.config.folders import BucketAddress
from raysnap.config.load import dump_yaml
from raysnap.config.strict import Config
from raysnap.config.yaml_files import read_yaml
from raysnap.errors import ConfigError
from raysnap.runs.environment import describe_environment
from raysnap.runs.json_fields import read_rows
from raysnap.runs.run_copy import RunCopy
from raysnap.runs.run_lock import RunLock, hold_run
from raysnap.runs.trial_rows import TrialRow, latest_trial_rows
from raysnap.system import utc_timestamp

CONFIG_NAME = "config.yaml"


class RunDirectory:
    """The records of one run.

    Attributes:
        lock: makes this process the only one that writes here; None where records are only read.
        copy: keeps the run in a bucket, too; None where it is only here.
    """

    def __init__(self, path: Path, lock: RunLock | None = None, copy: RunCopy | None = None):
        self.path = path
        self.lock = lock
        self.copy = copy

    @classmethod
    def open(cls, config: Config, lock: RunLock, *, resume: bool) -> RunDirectory:
        """Make a new run of the locked folder, or with `resume` open the one in which the same job was started.

        Raises:
            ConfigError: the folder holds another run, or something other than a run.
        """
        path = lock.run_dir
        check_run_dir(config, path, resume=resume)
        try:
            if not (path / CONFIG_NAME).exists():
                write_atomically(path / CONFIG_NAME, dump_yaml(config))
        except OSError as error:
            raise ConfigError(
                f"run_dir {path}: can't be written: {error.strerror or error}; choose another run_dir="
            ) from None
        storage = storage_of(config)
        run = cls(path, lock, RunCopy(storage) if storage is not None else None)
        if run.copy is not None and not run.copy.is_begun():
            run.copy.put_document(path, CONFIG_NAME)
        return run

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of `results.jsonl` that were written whole, in order."""
        return read_rows(self.path / "results.jsonl")

    def trial_rows(self) -> list[TrialRow]:
        """Return the last row of each trial."""
        return latest_trial_rows(self.rows())

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is in the bucket, if the run has one, and on the disk when this returns."""
        self._check_lock()
        line = json.dumps(row, allow_nan=False, default=_plain)
        if self.copy is not None:
            if row.get("predictions"):
                self.copy.put_document(self.path, row["predictions"])
            self.copy.add_row(line)
        _append_line(self.path / "results.jsonl", line)

    def add_trial(self, trial: Config) -> None:
        """Append a trial to the trial list; it is on the disk when this returns."""
        self._check_lock()
        _append_line(self.path / "trials.jsonl", json.dumps(trial.model_dump(mode="json")))
        self._keep("trials.jsonl")

    def write_trials(self, trials: Iterable[Config]) -> None:
        """Write the trial list, one JSON line each."""
        self._check_lock()
        text = "".join(json.dumps(trial.model_dump(mode="json")) + "\n" for trial in trials)
        write_atomically(self.path / "trials.jsonl", text)
        self._keep("trials.jsonl")

    def write_env(
        self, seed: int, started: str, wall_s: float | None, stages_s: dict[str, float], **facts: Any
    ) -> None:
        """Write what the run ran on, how long its stages took, and further facts that many rows share."""
        self._check_lock()
        document = describe_environment() | {
            "seed": seed,
            "started": started,
            "finished": None if wall_s is None else utc_timestamp(),
            "wall_s": wall_s,
            "stages_s": stages_s,
            **facts,
        }
        write_atomically(self.path / "env.json", json.dumps(document, indent=2) + "\n")
        self._keep("env.json")

    def keep_checkpoint(self, stage: str, trial: str, path: Path | None) -> None:
        """Keep a trial's latest checkpoint in the bucket, if the run has one; None says that it needs none."""
        if self.copy is not None:
            self.copy.keep_checkpoint(stage, trial, path)

    def close(self) -> None:
        """Wait until all that is kept in the bucket is there."""
        if self.copy is not None:
            self.copy.close()

    def _keep(self, name: str) -> None:
        if self.copy is not None:
            self.copy.put_document(self.path, name)

    def _check_lock(self) -> None:
        if self.lock is not None:
            self.lock.check()


@contextmanager
def lock_run(config: Config, path: Path, *, resume: bool, lock: RunLock | None = None) -> Iterator[RunLock]:
    """Make this process the only one that writes to a job's run directory until the block ends.

    A run that is in a bucket is fetched into the directory first.

    Args:
        lock: what holds it already, and holds it for longer.

    Raises:
        RunLocked: another process writes there.
        ConfigError: the folder holds another run or something other than a run, or can't be created.
    """
    if lock is not None:
        yield lock
        return
    check_run_dir(config, path, resume=resume)
    storage = storage_of(config)
    copy = RunCopy(storage) if storage is not None else None
    is_begun = copy is not None and copy.is_begun()
    if is_begun and not resume:
        raise ConfigError(
            f"storage_path {storage}: already holds a run; add --resume to finish it, or choose another storage_path="
        )
    with hold_run(path) as held:
        if copy is not None and is_begun:
            copy.fetch(path)
            check_run_dir(config, path, resume=resume)
        yield held


def storage_of(config: Config) -> BucketAddress | None:
    """Return where a job's run is kept beside its run directory, if anywhere."""
    return getattr(config, "storage_path", None)


def check_run_dir(config: Config, path: Path, *, resume: bool) -> None:
    """Check that a job may keep its records in `path`, as `RunDirectory.open` says; write nothing.

    Raises:
        ConfigError: the folder holds another run or something other than a run, or can't be created.
    """
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"run_dir {path}: expected a folder, found the file {existing}; choose another run_dir=")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"run_dir {path}: the folder {existing} can't be written; choose another run_dir=")
    config_path = path / CONFIG_NAME
    if not config_path.exists():
        if path.is_dir() and any(path.glob("*.jsonl")):
            raise ConfigError(f"run_dir {path}: holds rows but no {CONFIG_NAME}; choose another run_dir=")
        return
    if not resume:
        raise ConfigError(f"run_dir {path}: already holds a run; add --resume to finish it, or choose another run_dir=")
    before, now = _as_started(config, config_path), config.model_dump(mode="json")
    free = {"resources"} | ({"run_dir", "data_dir"} if storage_of(config) else set())  # another machine's folders
    changed = [key for key in now if key not in free and before.get(key) != now[key]]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"run_dir {path}: {key}: the run was started with {before.get(key)!r}, found {now[key]!r}; resume with the "
            "same configuration, or choose another run_dir="
        )


def _as_started(config: Config, path: Path) -> dict[str, Any]:
    """Return the configuration that a run was started with; keys that raysnap has since added have their defaults."""
    document: dict[str, Any] = read_yaml(path)
    with suppress(ValidationError):
        document = type(config).model_validate(document).model_dump(mode="json")
    return document


def _append_line(path: Path, text: str) -> None:
    """Append a line in one write, on a line of its own even where a crash truncated the line before."""
    line = text.encode() + b"\n"
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        end = os.lseek(file, 0, os.SEEK_END)
        if end and os.pread(file, 1, end - 1) != b"\n":
            line = b"\n" + line
        while line:  # a disk that fills up takes a part, and the next call raises
            line = line[os.write(file, line) :]
        os.fsync(file)
    finally:
        os.close(file)


def _plain(value: Any) -> Any:
    """Return a scalar of numpy or torch as Python's."""
    return value.item()
