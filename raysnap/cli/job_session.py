"""What commands that run a job on Ray start first: its run directory held, then Ray, then a progress display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raysnap.cluster.session import OBJECT_STORE_BYTES, interrupted_by_sigterm, ray_session
from raysnap.progress import show_progress

if TYPE_CHECKING:
    from raysnap.config.jobs import JobConfig
    from raysnap.progress import OnProgress
    from raysnap.runs.run_lock import RunLock


@contextmanager
def job_session(config: JobConfig, *, resume: bool) -> Iterator[tuple[RunLock, OnProgress]]:
    """Hold a job's run directory, then start Ray and a progress display."""
    from raysnap.runs.run_directory import lock_run

    with (
        interrupted_by_sigterm(),
        lock_run(config, config.run_dir, resume=resume) as lock,
        ray_session(OBJECT_STORE_BYTES, config.resources),
        show_progress() as on_progress,
    ):
        yield lock, on_progress
