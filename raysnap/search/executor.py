"""The one executor of every search plan: walks the tree for each batch of items and collects features.

Blocks stay in memory while a later batch or rung needs them, so that each is read once per search; activations of a
batch live only as long as the walk says. What was done is counted, and the counts are results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from raysnap.anatomy import block_shapes
from raysnap.batches import normalise
from raysnap.errors import BlockDamaged, WeightsError
from raysnap.numerics import Numerics
from raysnap.search.pace import Pace
from raysnap.search.plan import Room, Walk, plan_walk
from raysnap.search.shelf import Shelf
from raysnap.search.source import Gathered, ItemSource, Work
from raysnap.search.tree import Node, PrefixTree, candidates_below, keep_candidates


class Executor:
    """Runs walks over one tree in this process; a `FeatureSource`."""

    def __init__(
        self,
        tree: PrefixTree,
        items: ItemSource,
        shelf: Shelf,
        work: Work,
        numerics: Numerics,
        *,
        is_sharing: bool = True,
        budget_bytes: int | None = None,
    ):
        """Without sharing, blocks are let go as soon as the candidate they belong to has run."""
        self.tree = tree
        self.work = work
        self._items = items
        self._shelf = shelf
        self._numerics = numerics
        self._is_sharing = is_sharing
        self._room = Room(budget_bytes, numerics.dtype.itemsize, numerics.device.type)
        self._pace = Pace(numerics.device)

    def gather(self, candidates: Collection[int], positions: Sequence[int], *, is_last: bool) -> Gathered:
        """Features of the items at `positions`, root by root."""
        waiting = set(candidates)
        features: dict[int, np.ndarray] = {}
        failed: dict[int, str] = {}
        for root in self.tree.roots:
            mine = candidates_below(self.tree, root) & waiting
            if not mine:
                continue
            waiting -= mine
            found = self._run_root(root, mine, positions)
            features |= found.features
            failed |= found.failed
            if not self._is_sharing:
                self._shelf.keep(())
            elif is_last:
                self.keep(waiting)
        self.work.bound_s = self._pace.compute_bound_s() + self._shelf.read_bound_s()
        return Gathered(features, failed)

    def keep(self, candidates: Collection[int]) -> None:
        """Lets go of blocks that only other candidates need."""
        self._shelf.keep(self.tree.nodes[index] for index in keep_candidates(self.tree, candidates))

    @torch.inference_mode()
    def _run_root(self, root: Node, mine: set[int], positions: Sequence[int]) -> Gathered:
        """The part of a gathering below one root; a block that can't be used takes out the candidates below it."""
        parts: dict[int, list[Tensor]] = defaultdict(list)
        failed: dict[int, str] = {}
        walk = self._plan(root, mine)
        self._shelf.fetch(self.tree.nodes[step.node] for step in walk.steps)
        batch_items = walk.batch_items
        for start in range(0, len(positions), batch_items):
            batch = positions[start : start + batch_items]
            with self.work.timed("decode"):
                pixels = self._items.read(batch, root.preprocessing)
            faults = self._run_batch(walk, self._to_inputs(pixels, root), parts)
            for index, reason in faults.items():
                failed |= dict.fromkeys(candidates_below(self.tree, self.tree.nodes[index]) & mine, reason)
            if faults:
                if mine <= failed.keys():
                    break
                walk = self._plan(root, mine - failed.keys())
        done = {number: torch.cat(parts[number]).float().cpu().numpy() for number in mine - failed.keys()}
        return Gathered(done, failed)

    def _plan(self, root: Node, mine: Collection[int]) -> Walk:
        with self.work.timed("plan"):
            needed = keep_candidates(self.tree, mine)
            return plan_walk(self.tree, root, needed, self._room)

    def _to_inputs(self, pixels: Tensor, root: Node) -> Tensor:
        with self.work.timed("inference"):
            pixels = pixels.to(self._numerics.device, non_blocking=True)
            inputs = normalise(pixels, root.preprocessing.mean, root.preprocessing.std, self._numerics.dtype)
            return self._numerics.lay_out_images(inputs)

    def _run_batch(self, walk: Walk, inputs: Tensor, parts: dict[int, list[Tensor]]) -> dict[int, str]:
        """One batch down the whole walk; features go to `parts`, what is wrong with a node's block comes back."""
        held: dict[int | None, Tensor] = {None: inputs}
        del inputs
        faults: dict[int, str] = {}
        for step in walk.steps:
            node = self.tree.nodes[step.node]
            if node.parent in held:
                try:
                    output = self._run_block(node, held)
                except (BlockDamaged, WeightsError) as error:
                    faults[node.index] = str(error)
                else:
                    if step.keeps_output:
                        held[node.index] = output
                    for candidate in node.candidates:
                        parts[candidate].append(output)
                    del output
            if step.frees_input:
                held.pop(node.parent, None)
        return faults

    def _run_block(self, node: Node, held: dict[int | None, Tensor]) -> Tensor:
        """The node's block on its input among what is `held`, counted."""
        block, inputs = self._shelf.block(node), held[node.parent]
        kind = (node.architecture, node.preprocessing.image_size, node.block_index)
        with self.work.timed("inference"), self._pace.lap(kind, len(inputs)):
            output = block(inputs)
        self.work.block_item_passes += len(inputs)
        shapes = block_shapes(node.architecture, node.preprocessing.image_size)
        self.work.flops += len(inputs) * shapes[node.block_index].flops
        held_bytes = sum(tensor.nbytes for tensor in held.values()) + output.nbytes
        self.work.peak_activation_bytes = max(self.work.peak_activation_bytes, held_bytes)
        return output
