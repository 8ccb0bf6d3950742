"""Execute every search plan: walk the tree for each batch of items and collect features.

Which blocks are in memory, and which steps of a walk run on which batches meanwhile, is planned beforehand: see
`plan.memory`. Activations of a batch are kept only as long as the walk says. Each core of a CPU takes its own batch.
The work is counted, and the counts are results.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from raysnap.errors import BlockDamaged, RaysnapError, StoreUnreadable, WeightsError, describe_failure
from raysnap.models.blocks import as_features
from raysnap.models.numerics import Numerics
from raysnap.search.engine.block_shelf import Shelf
from raysnap.search.engine.border import Border
from raysnap.search.engine.folding import prepared_bytes
from raysnap.search.engine.pace import Pace
from raysnap.search.engine.source import Gathered, ItemSource, OnShare, ignore_share
from raysnap.search.engine.work import Work
from raysnap.search.plan.costs import BlockKey, block_key, kind_of, model_share, shape_of, shape_of_kind
from raysnap.search.plan.memory import Bound, plan_schedule
from raysnap.search.plan.tree import Node, PrefixTree, candidates_below, needed_nodes
from raysnap.search.plan.walk import Room, Walk
from raysnap.training.feeds import model_inputs

Activations: TypeAlias = dict[int | None, Tensor]

# Features, and their copies while probes are fitted: in float64, with room for gradients.
PROBE_COPIES = 4


@dataclass(frozen=True)
class _Task:
    """What to run on batches: some steps of a walk, over the nodes given, on batches of the positions."""

    walk: Walk
    steps: range
    nodes: Collection[int]
    positions: Sequence[int]
    border: Border | None


@dataclass
class _Outcome:
    """The outcome of one batch: outputs that later steps take, features and wanted outputs by node, faults, work."""

    held: Activations
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
        memory_bytes: int | None = None,
        on_share: OnShare = ignore_share,
    ):
        """Without sharing, blocks are dropped as soon as their candidate has run.

        Args:
            budget_bytes: bound on activations; None is no limit.
            memory_bytes: bound on blocks, activations, features and pixels; None is no limit.
        """
        self.tree = tree
        self.work = work
        self._items = items
        self._shelf = shelf
        self._numerics = numerics
        self._is_sharing = is_sharing
        self._on_share = on_share
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
        self._held_bytes: dict[range, int] = {}
        self.memory_bytes = memory_bytes
        self._feature_bytes: dict[int, int] = defaultdict(int)
        self._block_bytes: dict[BlockKey, int] = {}

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
        runs = [below] if self._is_sharing else [{top: nodes} for top, nodes in below.items()]
        for number, tops in enumerate(runs):

            def on_share(share: float, number: int = number) -> None:
                self._on_share((number + share) / len(runs))

            is_last = is_last or not self._is_sharing
            found, wrong = self._run_schedule(tops, positions, border, on_share, is_last=is_last)
            features |= found
            faults |= wrong
        self.work.laps = self._pace.laps()
        self.work.bound_s = self._pace.compute_bound_s() + self._shelf.read_bound_s()
        return features, faults

    def keep(self, candidates: Collection[int]) -> None:
        """Drop blocks that only other candidates need."""
        nodes = needed_nodes(self.tree, candidates)
        self._shelf.drop(self._shelf.held - {block_key(self.tree.nodes[index]) for index in nodes})
        for index in self._feature_bytes.keys() - nodes:
            del self._feature_bytes[index]

    def _run_schedule(
        self,
        tops: Mapping[int, set[int]],
        positions: Sequence[int],
        border: Border | None,
        on_share: OnShare,
        *,
        is_last: bool,
    ) -> tuple[dict[int, np.ndarray], dict[int, str]]:
        """Run one walk after the other; nodes below a block that can't be used are left out."""
        left = nodes = set().union(*tops.values())
        with self.work.timed("plan"):
            bound = self._bound(nodes, len(positions))
            held = self._shelf.held
            schedule = plan_schedule(self.tree, tops, len(positions), self._room, bound, held, is_last=is_last)
        self.work.peak_memory_bytes = max(self.work.peak_memory_bytes, schedule.peak_bytes)
        ends = {index: shape_of(self.tree.nodes[index]) for index in nodes if self.tree.nodes[index].candidates}
        features = {index: np.empty((len(positions), end.feature_dim), np.float32) for index, end in ends.items()}
        faults: dict[int, str] = {}
        activations: dict[range, Activations] = {}
        num_done, num_all = 0, sum(len(stage.batches) * len(stage.steps) for stage in schedule.stages)
        for stage in schedule.stages:
            self._shelf.drop(stage.dropped)
            self._shelf.fetch(self.tree.nodes[index] for index in stage.fetched if index in left)
            walk = schedule.walks[stage.walk]
            if left.isdisjoint(step.node for step in walk.steps):
                activations.clear()
                self._held_bytes.clear()
                continue
            task = _Task(walk, stage.steps, left, positions, border)
            batches = [schedule.batches[stage.walk][number] for number in stage.batches]
            outputs: list[tuple[int, range, Tensor]] = []
            for batch, outcome in self._run_stage(task, batches, activations):
                num_done += len(stage.steps)
                on_share(num_done / num_all)
                faults |= outcome.faults
                outputs += ((index, batch, output) for index, output in outcome.features.items())
                if border is not None:
                    for index, output in outcome.wanted.items():
                        border.write(index, positions[batch.start : batch.stop], output)
            while outputs:
                index, batch, output = outputs.pop()
                features[index][batch.start : batch.stop] = output.float().cpu().numpy()
            if faults:
                left = self._leave_out(nodes, faults, border.wanted if border else ())
        self._shelf.drop(schedule.dropped)
        self._items.release()
        for index, rows in features.items():
            self._feature_bytes[index] += rows.nbytes
        return {index: rows for index, rows in features.items() if index in left}, faults

    def _bound(self, nodes: Collection[int], num_items: int) -> Bound:
        """Return the bound on memory, with what the features and pixels of so many items take."""
        needed = [self.tree.nodes[index] for index in nodes]
        self._block_bytes |= {block_key(node): prepared_bytes(*kind_of(node), self._numerics) for node in needed}
        new_bytes = num_items * sum(4 * shape_of(node).feature_dim for node in needed if node.candidates)
        old_bytes = sum(self._feature_bytes.values())
        resizings = {node.preprocessing.resizing for node in needed if node.parent is None}
        return Bound(
            self.memory_bytes,
            self._block_bytes,
            reading_bytes=self._shelf.num_readers * max(map(self._reading_bytes, needed)),
            walking_bytes=old_bytes + 2 * new_bytes + num_items * sum(resizing.slot_bytes for resizing in resizings),
            resting_bytes=PROBE_COPIES * (old_bytes + new_bytes),
        )

    def _reading_bytes(self, node: Node) -> int:
        """Return what a reader holds of a block besides what it becomes: the file, folded weights, unpacked ones."""
        return 2 * node.block.num_bytes + self._block_bytes[block_key(node)]

    def _run_stage(
        self, task: _Task, batches: Sequence[range], activations: dict[range, Activations]
    ) -> Iterator[tuple[range, _Outcome]]:
        """Yield each batch and its outcome as it ends; as many run at once as the walk has streams.

        `activations` are those between two stages, by batch.
        """
        started_s = time.perf_counter()
        spent_s: dict[str, float] = defaultdict(float)
        waiting = deque(batches)
        running: dict[Future[_Outcome], range] = {}

        def fill_streams() -> None:
            while waiting and len(running) < task.walk.num_streams:
                batch = waiting.popleft()
                held = activations.pop(batch, {})
                running[self._streams.submit(self._run_batch, task, batch, held)] = batch

        try:
            fill_streams()
            while running:
                future = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
                batch, outcome = running.pop(future), future.result()
                fill_streams()  # they run on while this outcome is taken and written
                if outcome.held:
                    activations[batch] = outcome.held
                self.work.block_item_passes += outcome.work.block_item_passes
                self.work.flops += outcome.work.flops
                self.work.image_forwards += outcome.work.image_forwards
                for stage, seconds in outcome.work.timings_s.items():
                    spent_s[stage] += seconds
                yield batch, outcome
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

    @torch.inference_mode()
    def _run_batch(self, task: _Task, batch: range, held: Activations) -> _Outcome:
        """Run some steps on one batch, in the thread of a stream; `held` are the outputs of earlier steps."""
        outcome = _Outcome(held=held)
        if task.steps.start == 0:
            top = self.tree.nodes[task.walk.root]
            positions = task.positions[batch.start : batch.stop]
            held[top.parent] = self._inputs(top, positions, task.border, outcome.work)
        wanted = task.border.wanted if task.border else ()
        for step in task.walk.steps[task.steps.start : task.steps.stop]:
            node = self.tree.nodes[step.node]
            if node.parent in held and node.index in task.nodes:
                try:
                    output = self._run_block(node, batch, held, outcome.work)
                except (BlockDamaged, StoreUnreadable, WeightsError) as error:
                    outcome.faults[node.index] = str(error)
                except (RaysnapError, OSError, MemoryError, torch.OutOfMemoryError):
                    raise  # the store's or the machine's fault: no other candidate would do better
                except Exception as error:  # noqa: BLE001 - one bad candidate must not end the search of all others
                    fault = f"block {node.block.name} can't run: {describe_failure(error)}"
                    outcome.faults[node.index] = fault
                else:
                    if step.keeps_output:
                        held[node.index] = output
                    if node.candidates:
                        outcome.features[node.index] = as_features(output)
                    if node.index in wanted:
                        outcome.wanted[node.index] = output
                    del output
            if step.frees_input:
                held.pop(node.parent, None)
        self._note_held(batch, sum(tensor.nbytes for tensor in held.values()))
        return outcome

    def _inputs(self, top: Node, batch: Sequence[int], border: Border | None, work: Work) -> Tensor:
        """Return the input of a walk's first block: normalised pixels, tokens, or given outputs."""
        device = self._numerics.device
        if top.parent is not None:
            assert border is not None, "a walk from an inner node has given outputs"
            with work.timed("inference"):
                return border.read(top.parent, batch).to(device, non_blocking=True)
        with work.timed("decode"):
            items = self._items.read(batch, top.preprocessing)
        with work.timed("inference"):
            return model_inputs(items, top.preprocessing, self._numerics, self._numerics.dtype)

    def _run_block(self, node: Node, batch: range, held: Activations, work: Work) -> Tensor:
        """Run the node's block on its input, which is among what is `held`, and count it."""
        block, inputs = self._shelf.block(node, work), held[node.parent]
        kind = kind_of(node)
        with work.timed("inference"), self._pace.lap(kind, len(inputs)):
            output: Tensor = block(inputs)
        work.block_item_passes += len(inputs)
        work.flops += len(inputs) * shape_of_kind(kind).flops
        work.image_forwards += len(inputs) * model_share(kind)
        self._note_held(batch, sum(tensor.nbytes for tensor in held.values()) + output.nbytes)
        return output

    def _note_held(self, batch: range, num_bytes: int) -> None:
        """Record what a batch holds now, for the most that all of them held at once."""
        with self._lock:
            self._held_bytes[batch] = num_bytes
            held_bytes = sum(self._held_bytes.values())
            self.work.peak_activation_bytes = max(self.work.peak_activation_bytes, held_bytes)
