"""The one executor of every search plan: walks the tree for each batch of items and collects features.

Blocks stay in memory while a later batch or rung needs them, so that each is read once per search; activations of a
batch live only as long as the walk says. What was done is counted, and the counts are results.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from raysnap.anatomy import block_shapes
from raysnap.batches import normalise
from raysnap.blocks import build_block
from raysnap.errors import BlockDamaged, RaysnapError, WeightsError
from raysnap.manifest import Preprocessing
from raysnap.search.plan import Walk
from raysnap.search.tree import Node, PrefixTree


class ItemSource(Protocol):
    """Where a search's pixels come from."""

    def read(self, positions: range, preprocessing: Preprocessing) -> Tensor:
        """The items at these positions, uint8 `[n, 3, S, S]`."""


@dataclass
class Work:
    """What an executor has done so far.

    Attributes:
        block_item_passes: how often a block ran on an item, summed.
        flops: FLOPs of those passes, as `block_shapes` counts them.
        block_bytes_read: bytes of the blocks read from the store.
        peak_activation_bytes: the most bytes of activations held at once.
        timings_s: seconds by stage: `load_blocks`, `decode`, `inference`.
    """

    block_item_passes: int = 0
    flops: int = 0
    block_bytes_read: int = 0
    peak_activation_bytes: int = 0
    timings_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds spent inside to `stage`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s[stage] += time.perf_counter() - started


class Executor:
    """Runs walks over one tree and holds what they share: the blocks in memory and the counters."""

    def __init__(
        self,
        tree: PrefixTree,
        read_block: Callable[[str], Mapping[str, Tensor]],
        device: torch.device,
    ):
        """`read_block` takes a digest and gives the block's verified tensors."""
        self.tree = tree
        self.work = Work()
        self._read_block = read_block
        self._device = device
        self._blocks: dict[tuple, nn.Module] = {}

    def load_blocks(self, nodes: list[Node]) -> dict[int, RaysnapError]:
        """Brings the nodes' blocks into memory; returns the nodes whose block is damaged or does not fit, and why."""
        damaged: dict[int, RaysnapError] = {}
        with self.work.timed("load_blocks"):
            for node in nodes:
                if _block_key(node) in self._blocks:
                    continue
                try:
                    tensors = self._read_block(node.block.digest)
                    self.work.block_bytes_read += node.block.num_bytes
                    block = build_block(node.architecture, node.block_index, tensors).requires_grad_(False)
                except (BlockDamaged, WeightsError) as error:
                    damaged[node.index] = error
                    continue
                self._blocks[_block_key(node)] = block.to(self._device, torch.float32)
        return damaged

    def keep_blocks(self, nodes: Iterable[int]) -> None:
        """Lets go of every block but these nodes'."""
        kept = {_block_key(self.tree.nodes[index]) for index in nodes}
        self._blocks = {key: block for key, block in self._blocks.items() if key in kept}

    @torch.inference_mode()
    def run(self, walk: Walk, source: ItemSource, positions: range) -> dict[int, Tensor]:
        """Features of the items at `positions`, float32 `[N, D]`, by index of the candidate."""
        features: dict[int, list[Tensor]] = defaultdict(list)
        for start in range(positions.start, positions.stop, walk.batch_items):
            batch = range(start, min(positions.stop, start + walk.batch_items))
            preprocessing = self.tree.nodes[walk.root].preprocessing
            with self.work.timed("decode"):
                pixels = source.read(batch, preprocessing)
            with self.work.timed("inference"):
                inputs = normalise(pixels.to(self._device), preprocessing.mean, preprocessing.std)
                for candidate, values in self._run_batch(walk, inputs).items():
                    features[candidate].append(values)
        return {candidate: torch.cat(parts) for candidate, parts in features.items()}

    def _run_batch(self, walk: Walk, inputs: Tensor) -> dict[int, Tensor]:
        """One batch down the whole walk."""
        held: dict[int | None, Tensor] = {None: inputs}
        del inputs
        features: dict[int, Tensor] = {}
        for step in walk.steps:
            node = self.tree.nodes[step.node]
            num_items = len(held[node.parent])
            output = self._blocks[_block_key(node)](held[node.parent])
            self.work.block_item_passes += num_items
            self.work.flops += (
                num_items * block_shapes(node.architecture, node.preprocessing.image_size)[node.block_index].flops
            )
            held_bytes = sum(tensor.nbytes for tensor in held.values()) + output.nbytes
            self.work.peak_activation_bytes = max(self.work.peak_activation_bytes, held_bytes)
            if step.frees_input:
                del held[node.parent]
            if step.keeps_output:
                held[node.index] = output
            for candidate in node.candidates:
                features[candidate] = output.float().cpu()
        return features


def _block_key(node: Node) -> tuple:
    """What a block in memory goes by: nodes under different parents may hold the same one."""
    return node.architecture, node.block_index, node.block.digest
