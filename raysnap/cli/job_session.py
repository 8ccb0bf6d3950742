"""What commands that run a job on Ray start first: its run directory held, a progress display, then Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raysnap.cluster.session import OBJECT_STORE_BYTES, interrupted_by_sigterm, ray_session
from raysnap.progress import show_progress

if TYPE_CHECKING:
    from raysnap.config.folders import StorePath
    from raysnap.config.jobs import JobConfig
    from raysnap.config.parts import ResourcesConfig
    from raysnap.progress import OnProgress
    from raysnap.runs.run_lock import RunLock


@contextmanager
def job_session(config: JobConfig, *, resume: bool) -> Iterator[tuple[RunLock, OnProgress]]:
    """Hold a job's run directory, then start a progress display and Ray."""
    from raysnap.runs.run_directory import lock_run

    with (
        interrupted_by_sigterm(),
        lock_run(config, config.run_dir, resume=resume) as lock,
        show_progress() as on_progress,
        shown_ray_session(OBJECT_STORE_BYTES, config.resources, on_progress, stores_of(config)),
    ):
        yield lock, on_progress


def stores_of(config: JobConfig) -> list[StorePath]:
    """Return the stores that a job opens."""
    from raysnap.config.bench import BenchConfig

    if isinstance(config, BenchConfig):
        return [store for grid in config.grids.values() for store in grid.store]
    return [config.store]


@contextmanager
def shown_ray_session(
    object_store_bytes: int, resources: ResourcesConfig | None, on_progress: OnProgress, stores: Iterable[object]
) -> Iterator[None]:
    """Start Ray, which takes seconds, or join a cluster, and show that."""
    from raysnap.config.folders import BucketAddress

    on_progress("ray", 0, 1, "starting")
    opens_buckets = any(isinstance(store, BucketAddress) for store in stores)
    with ray_session(object_store_bytes, resources, opens_buckets=opens_buckets):
        on_progress("ray", 1, 1, "is up")
        yield
