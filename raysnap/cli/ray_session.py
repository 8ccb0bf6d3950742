"""The one place that starts Ray: a session for a job, and what it needs of the machine."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from raysnap.errors import ConfigError
from raysnap.progress import show_progress

if TYPE_CHECKING:
    from raysnap.config.jobs import JobConfig
    from raysnap.config.parts import ResourcesConfig
    from raysnap.progress import OnProgress
    from raysnap.runs.run_lock import RunLock


OBJECT_STORE_BYTES = 256 * 2**20  # of a job
WORKER_OBJECT_BYTES = 128 * 2**20  # of each worker of a search, beside it


def check_resources(resources: ResourcesConfig, available: dict[str, float]) -> None:
    """Check a job's resources against this machine's; a cluster may still grow, so it is not checked.

    Raises:
        ConfigError: the job would wait for ever.
    """
    num_workers = max(1, resources.num_workers)
    for key, kind, wanted in (("cpus", "CPU", resources.cpus), ("gpus", "GPU", resources.gpus or 0)):
        found = available.get(kind, 0)
        if num_workers * wanted > found:
            raise ConfigError(
                f"resources.{key}: expected at most the {found:g} {kind}s of this machine, found {num_workers} x "
                f"{wanted:g} for each trial; ask for less, or set RAY_ADDRESS to a cluster that has them"
            )


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM; Ray's own handler would end the driver without a message."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


@contextmanager
def ray_session(object_store_bytes: int, resources: ResourcesConfig | None = None) -> Iterator[None]:
    """Start Ray with the resources asked for, or connect to the cluster that RAY_ADDRESS names.

    Whatever Ray and its libraries print on stdout goes to stderr meanwhile.
    """
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AIR_NEW_OUTPUT", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"):
        os.environ.setdefault(name, "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # left in place after a fit, it swallows a Ctrl-C
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        import ray

        is_ours = not ray.is_initialized()
        if is_ours:
            address = os.environ.get("RAY_ADDRESS")
            own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": object_store_bytes}
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            ray.init(address=address or "local", **quiet, **({} if address else own))
        try:
            if is_ours and not address and resources:
                check_resources(resources, ray.cluster_resources())
            with interrupted_by_sigterm():
                yield
        finally:
            if is_ours:
                ray.shutdown()
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
