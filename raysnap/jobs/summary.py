"""What a job returns: trials done, trials failed, snapshots written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JobSummary:
    """What a job that makes snapshots left behind; `snapshots` are the ids of all it made, bases included."""

    run_dir: str
    num_trials: int
    num_done: int
    num_failed: int
    snapshots: list[str]
    failures: list[dict[str, str]]
