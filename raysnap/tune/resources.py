"""The GPUs and CPUs that a trial requests from Ray: by its configuration and by what the cluster has or may get."""

from __future__ import annotations

from raysnap.cluster.capacity import Capacity, most_cpus, read_capacity
from raysnap.config.parts import ResourcesConfig

# A trial's actor that only drives a worker group must reserve something, but not the CPUs that its workers need.
DRIVER_RESOURCES: dict[str, float] = {"memory": 1}


def gpus_per_worker(resources: ResourcesConfig) -> float:
    """Return the GPUs of each process that trains: as configured, else one where the cluster has or may get any."""
    return _gpus(resources, read_capacity()) if resources.gpus is None else resources.gpus


def _gpus(resources: ResourcesConfig, capacity: Capacity) -> float:
    return min(1.0, capacity.largest("GPU")) if resources.gpus is None else resources.gpus


def spread_cpus(resources: ResourcesConfig, num_trials: int) -> ResourcesConfig:
    """Return the resources with as many CPUs per trial as let `num_trials` trials fill the nodes of a CPU-only cluster.

    All CPUs of a trial are on one node.
    """
    capacity = read_capacity()
    if resources.num_workers or _gpus(resources, capacity):
        return resources
    return resources.model_copy(update={"cpus": most_cpus(capacity, {"CPU": resources.cpus}, num_trials)})
