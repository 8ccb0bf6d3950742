"""Execute every search plan: walk the tree for each batch of items and collect features.

Blocks stay in memory while a later batch or rung needs them, so that each is read once per search; activations of a
batch are kept only as long as the walk says. Each core of a CPU takes its own batch. The work is counted, and the
counts are results.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from raysnap.datasets.augmentation import normalise
from raysnap.errors import BlockDamaged, WeightsError
from raysnap.models.numerics import Numerics
from raysnap.search.engine.block_shelf import Shelf
from raysnap.search.engine.border import Border
from raysnap.search.engine.pace import Pace
from raysnap.search.engine.source import Gathered, ItemSource
from raysnap.search.engine.work import Work
from raysnap.search.plan.costs import kind_of, model_share, shape_of_kind
from raysnap.search.plan.tree import Node, PrefixTree, candidates_below, needed_nodes
from raysnap.search.plan.walk import Room, Walk, plan_walk


@dataclass
class _Outcome:
    """The outcome of one batch: features and wanted outputs by node, faults of nodes' blocks, and its work."""

    features: dict[int, Tensor] = field(default_factory=dict)
    wanted: dict[int, Tensor] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    work: Work = field(default_factory=Work)


class Executor:
    """Runs walks over one tree in this process; a `FeatureSource` and a context manager."""

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
        """Without sharing, blocks are dropped as soon as their candidate has run."""
        self.tree = tree
        self.work = work
        self._items = items
        self._shelf = shelf
        self._numerics = numerics
        self._is_sharing = is_sharing
        # Each core of a CPU takes a batch: on two cores ResNet-18 at 224 px runs a fifth faster than with both cores on
        # one batch, and on a busy machine the threads of one operation wait for each other much longer.
        num_streams = numerics.num_streams
        self._streams = ThreadPoolExecutor(
            num_streams,
            "raysnap-stream",
            initializer=torch.set_num_threads,
            initargs=(torch.get_num_threads() // num_streams,),
        )
        self._room = Room(budget_bytes, numerics.dtype.itemsize, numerics.device.type, num_streams)
        self._pace = Pace(numerics.device, num_streams)
        self._lock = threading.Lock()
        self._held_bytes: dict[int, int] = {}

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *exc: object) -> None:
        self._streams.shutdown(cancel_futures=True)

    @property
    def dtype(self) -> torch.dtype:
        """What blocks compute in."""
        return self._numerics.dtype

    @property
    def fingerprint(self) -> str:
        """What the last bits of features depend on, apart from blocks and items."""
        return self._numerics.fingerprint

    def gather(
        self, candidates: Collection[int], positions: Sequence[int], *, is_last: bool, border: Border | None = None
    ) -> Gathered:
        """Return features of the items at `positions`, computed root by root."""
        candidates = set(candidates)
        given = border.given if border else ()
        nodes = needed_nodes(self.tree, candidates, given)
        outputs, faults = self.run(nodes, positions, border, is_last=is_last)
        failed: dict[int, str] = {}
        for index, reason in faults.items():
            failed |= dict.fromkeys(candidates_below(self.tree, self.tree.nodes[index]) & candidates, reason)
        features: dict[int, np.ndarray] = {}
        for number in candidates - failed.keys():
            features[number] = outputs[self.tree.end_of(number)]
        return Gathered(features, failed)

    def run(
        self, nodes: Collection[int], positions: Sequence[int], border: Border | None = None, *, is_last: bool = False
    ) -> tuple[dict[int, np.ndarray], dict[int, str]]:
        """Run these nodes on the items at `positions`.

        Returns:
            The features of each node that is a candidate's last, and what is wrong with nodes' blocks.
        """
        below: dict[int, set[int]] = {}
        top_of: dict[int, int] = {}
        for index in sorted(nodes):
            parent = self.tree.nodes[index].parent
            top_of[index] = top = index if parent is None else top_of.get(parent, index)
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
        self.work.laps = self._pace.laps()
        self.work.bound_s = self._pace.compute_bound_s() + self._shelf.read_bound_s()
        return features, faults

    def keep(self, candidates: Collection[int]) -> None:
        """Drop blocks that only other candidates need."""
        self._shelf.keep(self.tree.nodes[index] for index in needed_nodes(self.tree, candidates))

    def _run_below(
        self, top: Node, nodes: set[int], positions: Sequence[int], border: Border | None
    ) -> tuple[dict[int, np.ndarray], dict[int, str]]:
        """Walk once over all items; nodes below a block that can't be used are left out."""
        parts: dict[int, list[Tensor]] = defaultdict(list)
        faults: dict[int, str] = {}
        walk = self._plan(top, nodes)
        self._shelf.fetch(self.tree.nodes[step.node] for step in walk.steps)
        batches = walk.split(positions)
        # The first batches find out which blocks can't be used; the others skip what only those need.
        for some in (batches[: walk.num_streams], batches[walk.num_streams :]):
            for batch, outcome in zip(some, self._run_batches(walk, some, border), strict=True):
                faults |= outcome.faults
                for index, output in outcome.features.items():
                    parts[index].append(output)
                if border is not None:
                    for index, output in outcome.wanted.items():
                        border.write(index, batch, output)
            if faults:
                nodes = self._leave_out(nodes, faults, border.wanted if border else ())
                if not nodes:
                    break
                walk = replace(self._plan(top, nodes), num_streams=walk.num_streams)
        ends = [index for index in nodes if self.tree.nodes[index].candidates]
        return {index: torch.cat(parts[index]).float().cpu().numpy() for index in ends}, faults

    def _run_batches(self, walk: Walk, batches: Sequence[Sequence[int]], border: Border | None) -> Iterator[_Outcome]:
        """Yield the outcome of each batch, in order; as many run at once as the walk has streams."""
        started_s = time.perf_counter()
        spent_s: dict[str, float] = defaultdict(float)
        waiting = deque(batches)
        running: deque[Future[_Outcome]] = deque()
        try:
            while waiting or running:
                while waiting and len(running) < walk.num_streams:
                    running.append(self._streams.submit(self._run_batch, walk, waiting.popleft(), border))
                outcome = running.popleft().result()
                self.work.block_item_passes += outcome.work.block_item_passes
                self.work.flops += outcome.work.flops
                self.work.image_forwards += outcome.work.image_forwards
                for stage, seconds in outcome.work.timings_s.items():
                    spent_s[stage] += seconds
                yield outcome
        finally:
            # Streams overlap: each stage gets its share of the seconds that all of them took together.
            total_s = sum(spent_s.values()) or 1.0
            for stage, seconds in spent_s.items():
                self.work.timings_s[stage] += (time.perf_counter() - started_s) * seconds / total_s

    def _leave_out(self, nodes: set[int], faulty: Collection[int], wanted: Collection[int]) -> set[int]:
        """Return the nodes that are still needed when faulty ones, and those below them, can't run."""
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

    @torch.inference_mode()
    def _run_batch(self, walk: Walk, batch: Sequence[int], border: Border | None) -> _Outcome:
        """Run one batch down the whole walk, in the thread of a stream."""
        outcome = _Outcome()
        top = self.tree.nodes[walk.root]
        held: dict[int | None, Tensor] = {top.parent: self._inputs(top, batch, border, outcome.work)}
        wanted = border.wanted if border else ()
        for step in walk.steps:
            node = self.tree.nodes[step.node]
            if node.parent in held:
                try:
                    output = self._run_block(node, held, outcome.work)
                except (BlockDamaged, WeightsError) as error:
                    outcome.faults[node.index] = str(error)
                else:
                    if step.keeps_output:
                        held[node.index] = output
                    if node.candidates:
                        outcome.features[node.index] = output
                    if node.index in wanted:
                        outcome.wanted[node.index] = output
                    del output
            if step.frees_input:
                held.pop(node.parent, None)
        self._note_held(0)
        return outcome

    def _inputs(self, top: Node, batch: Sequence[int], border: Border | None, work: Work) -> Tensor:
        """Return the input of a walk's first block: normalised pixels, or given outputs."""
        device = self._numerics.device
        if top.parent is not None:
            assert border is not None, "a walk from an inner node has given outputs"
            with work.timed("inference"):
                return border.read(top.parent, batch).to(device, non_blocking=True)
        with work.timed("decode"):
            pixels = self._items.read(batch, top.preprocessing)
        with work.timed("inference"):
            pixels = pixels.to(device, non_blocking=True)
            inputs = normalise(pixels, top.preprocessing.mean, top.preprocessing.std, self._numerics.dtype)
            return self._numerics.lay_out_images(inputs)

    def _run_block(self, node: Node, held: dict[int | None, Tensor], work: Work) -> Tensor:
        """Run the node's block on its input, which is among what is `held`, and count it."""
        block, inputs = self._shelf.block(node, work), held[node.parent]
        kind = kind_of(node)
        with work.timed("inference"), self._pace.lap(kind, len(inputs)):
            output: Tensor = block(inputs)
        work.block_item_passes += len(inputs)
        work.flops += len(inputs) * shape_of_kind(kind).flops
        work.image_forwards += len(inputs) * model_share(kind)
        self._note_held(sum(tensor.nbytes for tensor in held.values()) + output.nbytes)
        return output

    def _note_held(self, num_bytes: int) -> None:
        """Record what this stream holds now, for the most that all of them held at once."""
        with self._lock:
            self._held_bytes[threading.get_ident()] = num_bytes
            held_bytes = sum(self._held_bytes.values())
            self.work.peak_activation_bytes = max(self.work.peak_activation_bytes, held_bytes)
