"""What each trial gets of the cluster, and whether there is room for another one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from raysnap.cluster.capacity import Capacity, read_capacity
from raysnap.cluster.waiting import refuse_impossible
from raysnap.config.choices import Status
from raysnap.config.parts import ResourcesConfig
from raysnap.training.trial import Trial
from raysnap.tune.gpu_shares import GpuShares
from raysnap.tune.options import MeasuredTrial
from raysnap.tune.resources import gpus_per_worker

LOOK_EVERY_S = 2.0
ROUNDING = 1e-6  # of sums of fractions

Share = Mapping[str, float]
"""The resources of each process of a trial, by Ray's names."""


class Slots:
    """The places for trials on the Ray that is up: on nodes that come and go, and on those that may yet come.

    Args:
        measured: trials that ended before, by which GPUs are packed from the start.
    """

    def __init__(self, resources: ResourcesConfig, measured: Iterable[MeasuredTrial] = ()):
        self._resources = resources
        self._gpus = gpus_per_worker(resources)
        self._gpu_shares = GpuShares() if resources.pack_gpus and self._gpus else None
        self._taken: dict[str, Share] = {}
        self._looked_s = -LOOK_EVERY_S
        self._capacity = Capacity(())
        for ended in measured:
            self.learn(ended.trial, ended.peak_bytes, ended.gpu_bytes)

    @property
    def packs_gpus(self) -> bool:
        """Whether trials share GPUs by their measured memory; never where there are none."""
        return self._gpu_shares is not None

    def share(self, trial: Trial) -> Share | None:
        """Return what a trial gets; None while another trial measures how much memory its kind needs."""
        own = self._resources.of(trial.architecture)
        gpus = own.gpus if own.gpus is not None else self._gpus
        if self._gpu_shares is not None:
            measured = self._gpu_shares.share(trial)
            if measured is None:
                return None
            gpus = measured
        share = {"CPU": own.cpus, "GPU": gpus}
        return share if own.memory_bytes is None else share | {"memory": own.memory_bytes}

    def check(self, trials: Iterable[Trial]) -> None:
        """Check that the cluster has room for each of the trials, or may get it.

        Raises:
            ClusterError: a trial would wait for ever.
        """
        shares = {tuple(sorted(share.items())) for trial in trials if (share := self.share(trial)) is not None}
        num_workers = max(1, self._resources.num_workers)
        for amounts in sorted(shares):
            refuse_impossible("each trial" if num_workers == 1 else "each trial's workers", dict(amounts), num_workers)

    @property
    def taken(self) -> list[Share]:
        """What the trials have been given that started and have not ended; Ray may have no room for them yet."""
        return list(self._taken.values())

    def largest_share(self, trials: Iterable[Trial]) -> Share:
        """Return what is enough for any of the trials."""
        shares = [share for trial in trials if (share := self.share(trial)) is not None]
        return {name: max(share.get(name, 0.0) for share in shares) for name in {key for one in shares for key in one}}

    def has_room(self, share: Share) -> bool:
        """Return whether a trial with this share may start beside those that run."""
        if len(self._taken) >= (self._resources.max_concurrent or len(self._taken) + 1):
            return False
        return all(self._room(name) >= amount - ROUNDING for name, amount in self._in_all(share).items())

    @property
    def num(self) -> int:
        """How many trials may run at once, about: those of other architectures than most may be fewer or more."""
        gpus = 0.0 if self._gpu_shares is not None else self._gpus
        wanted = self._in_all({"CPU": self._resources.cpus, "GPU": gpus})
        fitting = min(int(self._all(name) / amount + ROUNDING) for name, amount in wanted.items())
        return max(1, min(fitting, self._resources.max_concurrent or fitting))

    def take(self, trial: Trial, share: Share) -> None:
        """Take note that a trial starts with this share."""
        self._taken[trial.id] = share
        if self._gpu_shares is not None:
            self._gpu_shares.start(trial)

    def learn(self, trial: Trial, peak_bytes: int | None, gpu_bytes: int | None) -> None:
        """Take the most memory of its GPU that a trial took, in bytes, and all that the GPU has; None tells nothing."""
        if self._gpu_shares is not None and peak_bytes and gpu_bytes:
            self._gpu_shares.learn(trial, peak_bytes, gpu_bytes)

    def free(self, trial: Trial, *, ran_out: bool) -> None:
        """Take note that a trial ended, or ran out of memory and starts again with more."""
        self._taken.pop(trial.id, None)
        if self._gpu_shares is not None:
            (self._gpu_shares.run_out if ran_out else self._gpu_shares.end)(trial)

    def gives_more(self, share: Share, result: Mapping[str, Any] | None) -> bool:
        """Return whether a trial that ended like this ran out of memory in a share of a GPU, and starts again."""
        has_part = self.packs_gpus and share["GPU"] < 1
        return has_part and result is not None and result.get("status") == Status.OUT_OF_MEMORY

    def _in_all(self, share: Share) -> dict[str, float]:
        """Return what the processes of a trial take together."""
        return {name: amount * max(1, self._resources.num_workers) for name, amount in share.items() if amount}

    def _room(self, name: str) -> float:
        taken = sum(self._in_all(share).get(name, 0.0) for share in self._taken.values())
        return self._all(name) - taken

    def _all(self, name: str) -> float:
        if time.monotonic() - self._looked_s >= LOOK_EVERY_S:
            self._capacity, self._looked_s = read_capacity(), time.monotonic()
        return self._capacity.total(name)
