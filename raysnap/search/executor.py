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
from raysnap.search.source import Border, Gathered, ItemSource, Work
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

    @property
    def dtype(self) -> torch.dtype:
        """What blocks give."""
        return self._numerics.dtype

    @property
    def fingerprint(self) -> str:
        """What the last bits of features depend on, blocks and items aside."""
        return self._numerics.fingerprint

    def gather(
        self, candidates: Collection[int], positions: Sequence[int], *, is_last: bool, border: Border | None = None
    ) -> Gathered:
        """Features of the items at `positions`, root by root."""
        candidates = set(candidates)
        given = border.given if border else ()
        nodes = keep_candidates(self.tree, candidates, given)
        outputs, faults = self.run(nodes, positions, border, is_last=is_last)
        failed: dict[int, str] = {}
        for index, reason in faults.items():
            failed |= dict.fromkeys(candidates_below(self.tree, self.tree.nodes[index]) & candidates, reason)
        features: dict[int, np.ndarray] = {}
        for number in candidates - failed.keys():
            features[number] = outputs[self.tree.ends[number]]
        return Gathered(features, failed)

    def run(
        self, nodes: Collection[int], positions: Sequence[int], border: Border | None = None, *, is_last: bool = False
    ) -> tuple[dict[int, np.ndarray], dict[int, str]]:
        """Runs these nodes on the items at `positions`.

        Returns:
            The features of each node that is a candidate's last, and what is wrong with a node's block.
        """
        below: dict[int, set[int]] = {}
        top_of: dict[int, int] = {}
        for index in sorted(nodes):
            top_of[index] = top = top_of.get(self.tree.nodes[index].parent, index)
            below.setdefault(top, set()).add(index)
        features: dict[int, np.ndarray] = {}
        faults: dict[int, str] = {}
        while below:
            top = next(iter(below))
            found, wrong = self._run_below(self.tree.nodes[top], below.pop(top), positions, border)
            features |= found
            faults |= wrong
            if not self._is_sharing:
                self._shelf.keep(())
            elif is_last:
                self._shelf.keep(self.tree.nodes[index] for rest in below.values() for index in rest)
        self.work.bound_s = self._pace.compute_bound_s() + self._shelf.read_bound_s()
        return features, faults

    def keep(self, candidates: Collection[int]) -> None:
        """Lets go of blocks that only other candidates need."""
        self._shelf.keep(self.tree.nodes[index] for index in keep_candidates(self.tree, candidates))

    @torch.inference_mode()
    def _run_below(
        self, top: Node, nodes: set[int], positions: Sequence[int], border: Border | None
    ) -> tuple[dict[int, np.ndarray], dict[int, str]]:
        """One walk over all items; a block that can't be used takes out the nodes below it."""
        parts: dict[int, list[Tensor]] = defaultdict(list)
        faults: dict[int, str] = {}
        walk = self._plan(top, nodes)
        self._shelf.fetch(self.tree.nodes[step.node] for step in walk.steps)
        batch_items = walk.batch_items
        for start in range(0, len(positions), batch_items):
            batch = positions[start : start + batch_items]
            wrong = self._run_batch(walk, self._inputs(top, batch, border), batch, parts, border)
            faults |= wrong
            if wrong:
                nodes = self._without(nodes, wrong, border.wanted if border else ())
                if not nodes:
                    break
                walk = self._plan(top, nodes)
        ends = [index for index in nodes if self.tree.nodes[index].candidates]
        return {index: torch.cat(parts[index]).float().cpu().numpy() for index in ends}, faults

    def _without(self, nodes: set[int], faulty: Collection[int], wanted: Collection[int]) -> set[int]:
        """The nodes that are needed still when those below faulty ones can't run."""
        lost: set[int] = set()
        for index in sorted(nodes):
            if index in faulty or self.tree.nodes[index].parent in lost:
                lost.add(index)
        kept: set[int] = set()
        for index in sorted(nodes - lost, reverse=True):
            node = self.tree.nodes[index]
            if node.candidates or index in wanted or kept.intersection(node.children):
                kept.add(index)
        return kept

    def _plan(self, top: Node, nodes: Collection[int]) -> Walk:
        with self.work.timed("plan"):
            return plan_walk(self.tree, top, nodes, self._room)

    def _inputs(self, top: Node, batch: Sequence[int], border: Border | None) -> Tensor:
        """What the first block of a walk takes: pixels made ready, or outputs that are given."""
        if top.parent is not None:
            with self.work.timed("inference"):
                return border.read(top.parent, batch).to(self._numerics.device, non_blocking=True)
        with self.work.timed("decode"):
            pixels = self._items.read(batch, top.preprocessing)
        return self._to_inputs(pixels, top)

    def _to_inputs(self, pixels: Tensor, root: Node) -> Tensor:
        with self.work.timed("inference"):
            pixels = pixels.to(self._numerics.device, non_blocking=True)
            inputs = normalise(pixels, root.preprocessing.mean, root.preprocessing.std, self._numerics.dtype)
            return self._numerics.lay_out_images(inputs)

    def _run_batch(
        self,
        walk: Walk,
        inputs: Tensor,
        batch: Sequence[int],
        parts: dict[int, list[Tensor]],
        border: Border | None,
    ) -> dict[int, str]:
        """One batch down the whole walk; features go to `parts`, what is wrong with a node's block comes back."""
        held: dict[int | None, Tensor] = {self.tree.nodes[walk.root].parent: inputs}
        del inputs
        wanted = border.wanted if border else ()
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
                    if node.candidates:
                        parts[node.index].append(output)
                    if node.index in wanted:
                        border.write(node.index, batch, output)
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
