"""The GPUs and CPUs that a trial requests from Ray."""

from __future__ import annotations

import ray

from raysnap.config.parts import ResourcesConfig

# A trial's actor that only drives a worker group must reserve something, but not the CPUs that its workers need.
DRIVER_RESOURCES: dict[str, float] = {"memory": 1}


def gpus_per_worker(resources: ResourcesConfig) -> float:
    """Return the GPUs of each process that trains: as configured, else one where the cluster has any."""
    if resources.gpus is not None:
        return resources.gpus
    return min(1.0, ray.cluster_resources().get("GPU", 0.0))


def spread_cpus(resources: ResourcesConfig, num_trials: int) -> ResourcesConfig:
    """Return the resources with as many CPUs per trial as let `num_trials` trials fill a cluster without GPUs."""
    available = ray.cluster_resources()
    if resources.gpus or resources.num_workers or available.get("GPU"):
        return resources
    share = available.get("CPU", 1.0) // num_trials
    return resources.model_copy(update={"cpus": max(resources.cpus, share)})
