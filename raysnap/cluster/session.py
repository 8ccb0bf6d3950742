"""A session of Ray for a job: a private one with the resources asked for, or the cluster that RAY_ADDRESS names."""

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
from raysnap.system import PRETEND_GPUS

if TYPE_CHECKING:
    from raysnap.config.parts import ResourcesConfig


OBJECT_STORE_BYTES = 256 * 2**20  # of a job
WORKER_OBJECT_BYTES = 128 * 2**20  # of each worker of a search, beside it

# Of this process and of all that Ray starts for it.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_task_events_max_num_task_in_gcs": "10000",  # of ended tasks, for a dashboard; 100,000 take 200 MB
    # Ray's workers would run at nice 15 and get next to no time beside other processes; a job runs as its command does.
    "RAY_worker_niceness": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # left in place after a fit, it swallows a Ctrl-C
}


@contextmanager
def ray_session(
    object_store_bytes: int, resources: ResourcesConfig | None = None, *, opens_buckets: bool = False
) -> Iterator[None]:
    """Start a private Ray, or join the cluster that RAY_ADDRESS names; a Ray that is up in this process is used as is.

    `opens_buckets` says whether its processes open a store in a bucket: those of a private Ray then get the variables
    that say how. Nodes of a cluster have their own.

    Whatever Ray and its libraries print on stdout goes to stderr meanwhile.

    Raises:
        ClusterError: Ray can't be started, or the cluster can't be joined.
        ConfigError: this machine has less than each trial needs.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _stdout_to_stderr():
        import ray

        if ray.is_initialized():
            with interrupted_by_sigterm():
                yield
            return
        address = os.environ.get("RAY_ADDRESS") or "local"
        with _open_ray(address, object_store_bytes, opens_buckets):
            if address == "local" and resources is not None:
                check_resources(resources, ray.cluster_resources())  # type: ignore[no-untyped-call]
            with interrupted_by_sigterm():
                yield


@contextmanager
def _open_ray(address: str, object_store_bytes: int, opens_buckets: bool) -> Iterator[None]:
    import ray

    from raysnap.cluster.join import joined_ray
    from raysnap.cluster.start import private_ray

    def init(address: str = "local", **settings: Any) -> None:
        # The processes of a job get none of its driver's variables, but those that it was submitted with.
        if PRETEND_GPUS in os.environ and PRETEND_GPUS not in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""):
            settings["runtime_env"] = {"env_vars": {PRETEND_GPUS: os.environ[PRETEND_GPUS]}}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **settings)

    if address == "local":

        def init_own(own: dict[str, Any]) -> None:
            init(include_dashboard=False, object_store_memory=object_store_bytes, **own)

        with private_ray(init_own, opens_buckets=opens_buckets):
            yield
    else:
        with joined_ray(address, init):
            yield


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


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
