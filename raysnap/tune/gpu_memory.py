"""How much of its GPU's memory a trial needs, and the limit that keeps it from taking its neighbours'."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from raysnap.cluster.gpu_room import CONTEXT_BYTES, PRETENDED_BYTES
from raysnap.errors import OutOfMemory


class Memory(Protocol):
    """The memory of one GPU, as this process uses it."""

    @property
    def total_bytes(self) -> int:
        """The GPU's memory, in bytes."""

    def begin(self, share: float) -> None:
        """Measure the peak from here on, and refuse this process more than its share; 1 sets no limit."""

    def peak_bytes(self) -> int:
        """Return the most that this process has taken since `begin`, in bytes."""

    def check(self) -> None:
        """Raise `OutOfMemory` where more was taken than the share and nothing else refused it."""


def memory_of(device: torch.device) -> Memory | None:
    """Return the memory of a CUDA device, or of a pretended GPU whose size is known; None of another device."""
    if device.type == "cuda":
        return CudaMemory(device)
    pretended = os.environ.get(PRETENDED_BYTES)
    return PretendedMemory(int(pretended)) if pretended else None


@dataclass(frozen=True)
class CudaMemory:
    """The memory of a CUDA device; torch's allocator refuses what is beyond the share."""

    device: torch.device

    @property
    def total_bytes(self) -> int:
        """See `Memory`."""
        return torch.cuda.mem_get_info(self.device)[1]

    def begin(self, share: float) -> None:
        """See `Memory`."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        of_tensors = share if share == 1 else max(0.0, share - CONTEXT_BYTES / self.total_bytes)
        torch.cuda.set_per_process_memory_fraction(of_tensors, self.device)

    def peak_bytes(self) -> int:
        """See `Memory`."""
        return torch.cuda.max_memory_reserved(self.device) + CONTEXT_BYTES

    def check(self) -> None:
        """See `Memory`."""


@dataclass
class PretendedMemory:
    """The memory of a GPU that is only pretended: what this process takes of the machine's counts as taken of it."""

    total_bytes: int
    limit_bytes: float = 0.0

    def begin(self, share: float) -> None:
        """See `Memory`."""
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc_pid_clear_refs(5)
        self.limit_bytes = share * self.total_bytes

    def peak_bytes(self) -> int:
        """See `Memory`."""
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))

    def check(self) -> None:
        """See `Memory`."""
        if self.peak_bytes() > self.limit_bytes:
            raise OutOfMemory(
                f"the pretended GPU: expected at most {self.limit_bytes:.0f} bytes, found {self.peak_bytes()}"
            )
