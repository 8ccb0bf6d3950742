"""A fine-tune's place among the processes that share its batches, through torch.distributed."""

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
        """This worker's part of a batch and its weight: parts of two items at least, as BatchNorm can't train on one.

        A worker for which nothing is left gets a stand-in of weight 0, as all have to take each step.
        """
        num_busy = max(1, min(self.world_size, len(positions) // 2))
        if self.rank >= num_busy:
            return positions[:2], 0.0
        return positions.tensor_split(num_busy)[self.rank], 1.0

    def parallel(self, blocks: nn.Sequential) -> nn.Module:
        """What runs the blocks so that their gradients are averaged over the workers."""
        return nn.parallel.DistributedDataParallel(blocks) if self.world_size > 1 else blocks

    def synchronise_batchnorm(self, blocks: nn.Sequential, device: torch.device) -> nn.Sequential:
        """The blocks, whose BatchNorm sees whole batches where GPUs share them."""
        if self.world_size > 1 and device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(blocks)
        return blocks

    def synchronise_buffers(self, blocks: nn.Sequential) -> None:
        """Gives every worker the first one's buffers, such as BatchNorm's statistics."""
        if self.world_size > 1:
            for buffer in blocks.buffers():
                distributed.broadcast(buffer, 0)

    def total(self, values: Tensor) -> Tensor:
        """The sum of all workers' values, in place."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values


ALONE = Worker()
