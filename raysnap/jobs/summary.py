"""What a job returns: trials done, trials failed, snapshots written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raysnap.runs.trial_rows import TrialRow


@dataclass(frozen=True)
class JobSummary:
    """What a job that makes snapshots left behind; `snapshots` are the ids of all it made, bases included."""

    run_dir: str
    num_trials: int
    num_done: int
    num_failed: int
    snapshots: list[str]
    failures: list[dict[str, str]]


def failures_of(rows: Iterable[TrialRow]) -> list[dict[str, str]]:
    """Return the trial and the error of each row that failed."""
    return [{"trial": row.trial, "error": str(row.error)} for row in rows if row.has_failed]
