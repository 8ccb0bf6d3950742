"""Describe the conditions of a measurement: the machine, its load, and what this process read and held."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from raysnap.canonical_json import canonical_json
from raysnap.runs.environment import describe_environment

# This share of the CPUs used by others is noise, unless it is only a few ticks, which /proc/stat can't distinguish
# from none.
NOISY_SHARE = 0.05
NOISY_TICKS_S = 0.04


@dataclass(frozen=True)
class Load:
    """How the CPUs were used between two moments; shares are of the time of all of the machine's CPUs.

    Attributes:
        own_cpu_s: CPU time of this process, in seconds.
        other_cpu_s: seconds of other processes and the kernel; None, like the fields below, where the kernel doesn't
            say.
        steal_s: seconds that the hypervisor gave to other machines.
    """

    own_cpu_s: float
    other_cpu_s: float | None = None
    steal_s: float | None = None
    own_cpu_share: float | None = None
    other_cpu_share: float | None = None
    steal_share: float | None = None

    @property
    def noise(self) -> list[str]:
        """Why a measurement under this load is noisy, a clause each."""
        if self.other_cpu_share is None:
            return ["it is unknown what else used the CPUs: /proc/stat doesn't say"]
        found = [
            ("other processes took", self.other_cpu_share, self.other_cpu_s),
            ("the hypervisor took", self.steal_share, self.steal_s),
        ]
        return [
            f"{what} {share * 100:.0f} % of the CPUs"
            for what, share, taken_s in found
            if share is not None and taken_s is not None and share > NOISY_SHARE and taken_s > NOISY_TICKS_S
        ]


@dataclass(frozen=True)
class Moment:
    """The counters of the machine and of this process at one time, in seconds and bytes since some start."""

    all_cpus_s: float
    busy_cpus_s: float
    steal_s: float
    own_cpu_s: float
    read_bytes: int

    @classmethod
    def now(cls) -> Moment:
        """Return the counters now: of all CPUs from /proc/stat, of this process and its threads from the kernel."""
        fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
        user, nice, system, idle, iowait, irq, softirq, steal = (
            int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in fields
        )
        busy = user + nice + system + irq + softirq
        return cls(busy + idle + iowait + steal, busy, steal, time.process_time(), _io_counter("read_bytes"))

    def load_until(self, later: Moment) -> Load:
        """Return how the CPUs were used from this moment to a later one."""
        all_s, own_s = later.all_cpus_s - self.all_cpus_s, later.own_cpu_s - self.own_cpu_s
        if all_s <= 0:  # a sandbox whose /proc/stat never changes
            return Load(own_s)
        steal_s = later.steal_s - self.steal_s
        other_s = max(0.0, later.busy_cpus_s - self.busy_cpus_s - own_s)
        return Load(own_s, other_s, steal_s, own_s / all_s, other_s / all_s, steal_s / all_s)


@cache
def describe_machine() -> dict[str, Any]:
    """Return the facts of this machine and its software that a measurement depends on."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"hostname": socket.gethostname(), "memory_bytes": memory_bytes} | describe_environment()


def machine_key(facts: dict[str, Any]) -> str:
    """Return a short name of a machine's facts: equal facts have equal names."""
    return f"{facts['hostname']}-{blake3(canonical_json(facts)).hexdigest()[:8]}"


@dataclass(frozen=True)
class MemoryStart:
    """This process's memory at the time from which its peak counts.

    Attributes:
        rss_bytes: resident bytes.
        is_reset: whether the kernel reset the peak of resident bytes.
    """

    rss_bytes: int
    is_reset: bool

    @classmethod
    def now(cls) -> MemoryStart:
        """Return free memory to the system, so that it hides no growth, and reset the peaks."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
            is_reset = True
        except OSError:  # a sandbox without it
            is_reset = False
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return cls(_status_bytes("VmRSS"), is_reset)

    def peak(self) -> dict[str, int | None]:
        """Return the most bytes held since: resident ones, and tensors on the GPU; None is unknown, or no GPU."""
        return {
            "rss_before_bytes": self.rss_bytes,
            "peak_rss_bytes": _status_bytes("VmHWM") if self.is_reset else None,
            "peak_cuda_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        }


def _status_bytes(key: str) -> int:
    return 1024 * _number_in("/proc/self/status", key)


def _io_counter(key: str) -> int:
    return _number_in("/proc/self/io", key)


def _number_in(path: str, key: str) -> int:
    """Return the whole number after `key:` in one of the files that the kernel keeps about this process."""
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1])
