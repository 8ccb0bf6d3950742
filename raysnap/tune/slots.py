"""What each trial gets of the cluster, and how many trials with such a share may run at once."""

from __future__ import annotations

import time
from collections.abc import Mapping

import ray

from raysnap.config.parts import ResourcesConfig
from raysnap.training.trial import Trial
from raysnap.tune.resources import gpus_per_worker

LOOK_EVERY_S = 2.0


class Slots:
    """The places for trials on the Ray that is up; nodes that come or go while a job runs count."""

    def __init__(self, resources: ResourcesConfig):
        self._resources = resources
        self._share = {"CPU": resources.cpus, "GPU": gpus_per_worker(resources)}
        self._looked_s = -LOOK_EVERY_S
        self._available: dict[str, float] = {}

    def share(self, trial: Trial) -> dict[str, float]:  # noqa: ARG002
        """Return the resources of each process of a trial, by Ray's names."""
        return self._share

    def num(self, share: Mapping[str, float]) -> int:
        """Return how many trials with this share may run at once."""
        if time.monotonic() - self._looked_s >= LOOK_EVERY_S:
            self._available, self._looked_s = ray.cluster_resources(), time.monotonic()
        wanted = {name: amount * max(1, self._resources.num_workers) for name, amount in share.items() if amount}
        fitting = min(int(self._available.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items())
        return max(1, min(fitting, self._resources.max_concurrent or fitting))
