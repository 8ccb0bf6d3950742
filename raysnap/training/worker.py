"""One of the processes that share a fine-tune's batches, through torch.distributed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Worker:
    """One of `world_size` processes; with more than one torch.distributed is initialised."""

    rank: int = 0
    world_size: int = 1

    def part(self, positions: Tensor) -> tuple[Tensor, float]:
        """Return this worker's part of a batch and its weight; parts have at least two items, as BatchNorm needs.

        A worker for which nothing is left gets two items with weight 0, as all have to take each step.
        """
        num_busy = max(1, min(self.world_size, len(positions) // 2))
        if self.rank >= num_busy:
            return positions[:2], 0.0
        return positions.tensor_split(num_busy)[self.rank], 1.0

    def parallel(self, blocks: nn.Sequential) -> nn.Module:
        """Return a module that runs the blocks and averages their gradients over the workers."""
        return nn.parallel.DistributedDataParallel(blocks) if self.world_size > 1 else blocks

    def synchronise_batchnorm(self, blocks: nn.Sequential, device: torch.device) -> nn.Sequential:
        """Return the blocks with BatchNorm over whole batches where GPUs share them."""
        if self.world_size > 1 and device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(blocks)
        return blocks

    def synchronise_buffers(self, blocks: nn.Sequential) -> None:
        """Give every worker the first one's buffers, such as BatchNorm's statistics."""
        if self.world_size > 1:
            for buffer in blocks.buffers():
                distributed.broadcast(buffer, 0)

    def total(self, values: Tensor) -> Tensor:
        """Sum all workers' values, in place."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's value, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values


ALONE = Worker()
