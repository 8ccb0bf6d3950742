"""How much of its GPU's memory a trial needs, and the limit that keeps it from taking its neighbours'."""

from __future__ import annotations

from dataclasses import dataclass

import torch

CONTEXT_BYTES = 600 * 2**20  # what a process takes of a GPU in addition to torch's tensors: CUDA's context and kernels


@dataclass(frozen=True)
class GpuMemory:
    """The memory of one CUDA device, as this process uses it."""

    device: torch.device

    @property
    def total_bytes(self) -> int:
        """The device's memory, in bytes."""
        return torch.cuda.mem_get_info(self.device)[1]

    def begin(self, share: float) -> None:
        """Measure the peak from here on, and refuse this process more than its share; 1 sets no limit."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        of_tensors = share if share == 1 else max(0.0, share - CONTEXT_BYTES / self.total_bytes)
        torch.cuda.set_per_process_memory_fraction(of_tensors, self.device)

    def peak_bytes(self) -> int:
        """Return the most that this process has taken since `begin`, in bytes."""
        return torch.cuda.max_memory_reserved(self.device) + CONTEXT_BYTES
