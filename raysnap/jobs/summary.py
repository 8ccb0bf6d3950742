"""What a job returns: trials done, trials failed, snapshots written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from raysnap.datasets.layout.account import Account
from raysnap.runs.trial_rows import TrialRow


@dataclass(frozen=True)
class JobSummary:
    """What a job that makes snapshots left behind.

    Attributes:
        snapshots: the ids of all it made, bases included.
        data: what was read of each dataset and what was not.
        renamed: the names, by trial, of snapshots whose trial's id was the name of another snapshot of the store.
    """

    run_dir: str
    num_trials: int
    num_done: int
    num_failed: int
    snapshots: list[str]
    failures: list[dict[str, str]]
    renamed: dict[str, str] = field(default_factory=dict)
    data: tuple[Account, ...] = ()


def failures_of(rows: Iterable[TrialRow]) -> list[dict[str, str]]:
    """Return the trial and the error of each row that failed."""
    return [{"trial": row.trial, "error": str(row.error)} for row in rows if row.has_failed]


def renamed_in(rows: Iterable[TrialRow]) -> dict[str, str]:
    """Return the names, by trial, of snapshots whose trial's id was taken."""
    return {row.trial: row.snapshot_name for row in rows if row.snapshot_name is not None}
