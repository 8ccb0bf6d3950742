"""Compute a rung's features on many workers: Ray actors, each with its own blocks, run the pieces assigned to them.

The driver deals pieces, schedules them and assembles features; activations pass between workers as Ray objects, which
workers on one machine read in place. When workers die, the remaining ones run that part of the rung again.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import numpy as np
import ray
import torch
from ray.util import get_node_ip_address
from torch import Tensor

from raysnap.cluster.capacity import most_cpus, read_capacity
from raysnap.cluster.gpus import granted_device
from raysnap.cluster.places import JobFolder, check_places, naming_node, store_places
from raysnap.cluster.waiting import refuse_impossible, told_waits
from raysnap.datasets.dataset import find_dataset
from raysnap.errors import RaysnapError, UsageError
from raysnap.search.engine.border import Border, from_array, to_array
from raysnap.search.engine.calibration import mean_speed, measure_kinds
from raysnap.search.engine.setup import Setup, open_executor
from raysnap.search.engine.source import Gathered, OnShare, ignore_share
from raysnap.search.engine.work import Work
from raysnap.search.plan.costs import BlockKey, BlockSpeed, Costs, Kind, Rates, block_key, kind_of
from raysnap.search.plan.dispatch import Dispatcher, Task
from raysnap.search.plan.partition import Partition
from raysnap.search.plan.simulation import HANDOVER_BYTES, choose_partition, held_after
from raysnap.search.plan.tree import PrefixTree, candidates_below, find_misfit, needed_nodes
from raysnap.search.plan.walk import usual_batch_items
from raysnap.store.backends.client import add_requests, take_requests
from raysnap.store.store import Store

NUM_QUEUED = 2  # tasks given to a worker: the one it runs and the next
PING_TIMEOUT_S = 120.0

Speeds: TypeAlias = dict[Kind, BlockSpeed]

logger = logging.getLogger(__name__)


class WorkerLost(Exception):
    """A worker died, or its outputs are lost."""


class Fleet:
    """Workers on the running Ray; a `FeatureSource` and a context manager."""

    def __init__(self, tree: PrefixTree, setup: Setup, work: Work, on_share: OnShare = ignore_share):
        """Start the workers.

        Raises:
            UsageError: Ray is not running.
            ClusterError: the cluster has no room for so many workers, and may never get it.
        """
        num_workers = setup.options.workers
        if not ray.is_initialized():
            raise UsageError(f"workers={num_workers}: expected Ray to be running, found none; call ray.init() first")
        check_places(_places(setup))
        self.tree = tree
        self.work = work
        self.on_share = on_share
        bundle = worker_bundle(num_workers, setup.options.device)
        self._device = "cuda" if bundle["GPU"] else "cpu"
        arguments = ray.put(tree), ray.put(setup.absolute()), bundle
        start = _Worker.options(num_cpus=bundle["CPU"], num_gpus=bundle["GPU"]).remote  # type: ignore[attr-defined]
        self._budget_bytes = setup.options.budget_bytes
        self._workers = [start(*arguments) for _ in range(num_workers)]
        self._held: list[set[BlockKey]] = [set() for _ in self._workers]
        self._reported = [Work() for _ in self._workers]
        fit = [number for number, candidate in enumerate(tree.candidates) if find_misfit(candidate) is None]
        kinds = {kind_of(tree.nodes[index]) for index in needed_nodes(tree, fit)}
        with work.timed("start_workers"), told_waits("a search worker", lambda: [bundle]):
            try:
                described = _get([worker.describe.remote() for worker in self._workers])
                self.dtype, self.fingerprint, _ = described[0]
                num_on = Counter(device for _, _, device in described)
                _get(
                    [
                        worker.share_memory.remote(num_on[device])
                        for worker, (_, _, device) in zip(self._workers, described, strict=True)
                    ]
                )
                measured: list[dict[Kind, BlockSpeed]] = _get(
                    [worker.measure.remote(kinds) for worker in self._workers]
                )
            except WorkerLost as loss:
                self.__exit__()
                raise RaysnapError(f"search workers can't be started: {loss}") from None
            except BaseException:
                self.__exit__()  # else whoever keeps the traceback keeps the workers
                raise
        self._measured = {kind: mean_speed([speeds[kind] for speeds in measured]) for kind in kinds}

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            ray.kill(worker)

    def gather(
        self,
        candidates: Collection[int],
        positions: Sequence[int],
        *,
        is_last: bool,  # noqa: ARG002 - workers drop all blocks when they end
        border: Border | None = None,
    ) -> Gathered:
        """Return features of the items at `positions`; where workers die, the remaining ones compute them.

        Raises:
            RaysnapError: no worker remains.
        """
        while True:
            try:
                found = self._gather(set(candidates), positions, border)
                self._add_work()
            except WorkerLost as loss:
                self._drop_dead_workers(str(loss))
            else:
                return found

    def keep(self, candidates: Collection[int]) -> None:
        """Drop blocks that only other candidates need."""
        keys = {block_key(self.tree.nodes[index]) for index in needed_nodes(self.tree, candidates)}
        self._held = [held & keys for held in self._held]
        for worker in self._workers:
            worker.keep.remote(list(candidates))

    def _gather(self, candidates: set[int], positions: Sequence[int], border: Border | None) -> Gathered:
        nodes = needed_nodes(self.tree, candidates, border.given if border else ())
        with self.work.timed("plan"):
            partition = self._deal(nodes, len(positions))
        run = _Run(self, partition, positions, border)
        run.finish()
        self._held = [old | new for old, new in zip(self._held, held_after(self.tree, partition), strict=True)]
        failed: dict[int, str] = {}
        for index, reason in run.faults.items():
            failed |= dict.fromkeys(candidates_below(self.tree, self.tree.nodes[index]) & candidates, reason)
        features = {number: run.features_of(self.tree.end_of(number)) for number in candidates - failed.keys()}
        return Gathered(features, failed)

    def _deal(self, nodes: Collection[int], num_items: int) -> Partition:
        kinds = {
            (self.tree.nodes[index].architecture, self.tree.nodes[index].preprocessing.image_size) for index in nodes
        }
        batch_items = max(usual_batch_items(*kind, self._device) for kind in kinds)
        return choose_partition(
            Costs.of(self.tree, nodes, Rates(), self._measured),
            num_items,
            min(batch_items, num_items),
            len(self._workers),
            Rates(),
            self._held,
            min(HANDOVER_BYTES, self._budget_bytes or HANDOVER_BYTES),
        )

    def _add_work(self) -> None:
        """Add what the workers did since the last report; of seconds, their mean."""
        told: list[tuple[Work, dict[str, dict[str, int]]]] = _get([worker.report.remote() for worker in self._workers])
        reports = [work for work, _ in told]
        for _, asked in told:
            add_requests(asked)
        for report, seen in zip(reports, self._reported, strict=True):
            self.work.block_item_passes += report.block_item_passes - seen.block_item_passes
            self.work.flops += report.flops - seen.flops
            self.work.image_forwards += report.image_forwards - seen.image_forwards
            self.work.block_bytes_read += report.block_bytes_read - seen.block_bytes_read
            self.work.peak_activation_bytes = max(self.work.peak_activation_bytes, report.peak_activation_bytes)
            for stage, seconds in report.timings_s.items():
                self.work.timings_s[stage] += (seconds - seen.timings_s[stage]) / len(reports)
        self._reported = reports
        self.work.bound_s = sum(report.bound_s for report in reports) / len(reports)

    def _drop_dead_workers(self, loss: str) -> None:
        alive = [number for number, worker in enumerate(self._workers) if _responds(worker)]
        if not alive or len(alive) == len(self._workers):
            what = "none remains" if not alive else "all of them respond"
            raise RaysnapError(f"search workers: one was lost ({loss}), and {what}; search again with fewer --workers")
        num_dead = len(self._workers) - len(alive)
        logger.warning("%d search workers died; the remaining %d run this rung again", num_dead, len(alive))
        self._workers = [self._workers[number] for number in alive]
        self._held = [self._held[number] for number in alive]
        self._reported = [self._reported[number] for number in alive]


def _places(setup: Setup) -> list[JobFolder]:
    """Return the folders that workers read; the dataset is there, as this process has opened it."""
    root = find_dataset(setup.data, setup.options.data_dir, setup.options.shapes)
    assert root is not None
    return [*store_places("--store", setup.store, "read"), JobFolder("--data", root, "read")]


def worker_bundle(num_workers: int, device: str | None) -> dict[str, float]:
    """Return what each of so many workers gets: a GPU or a share of one where all can have it, and CPUs of one node.

    Raises:
        ClusterError: the cluster has no room for so many, and may never get it.
    """
    capacity = read_capacity()
    shares = [1.0, *(1 / count for count in range(2, num_workers + 1))] if device != "cpu" else []
    fitting = (share for share in shares if capacity.slots({"CPU": 1, "GPU": share}) >= num_workers)
    num_gpus = next(fitting, 1.0 if device == "cuda" else 0.0)
    bundle = {"CPU": 1.0, "GPU": num_gpus}
    capacity = refuse_impossible(f"--workers {num_workers}", bundle, num_workers)
    return bundle | {"CPU": most_cpus(capacity, bundle, num_workers)}


class _Run:
    """One partition being run: running tasks, outputs that wait for other workers, and the features so far."""

    def __init__(self, fleet: Fleet, partition: Partition, positions: Sequence[int], border: Border | None):
        self.faults: dict[int, str] = {}
        self._tree = fleet.tree
        self._workers = fleet._workers
        self._partition = partition
        self._positions = positions
        self._border = border
        self._dispatcher = Dispatcher(partition)
        self._on_share = fleet.on_share
        self._running: dict[ray.ObjectRef[Any], tuple[Task, tuple[int, ...]]] = {}
        self._num_queued = [0] * partition.num_workers
        self._handed: dict[int, dict[tuple[int, int], ray.ObjectRef[Any]]] = defaultdict(dict)
        self._features: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
        self._lost: set[int] = set()
        self._written: set[tuple[int, int]] = set()

    def finish(self) -> None:
        """Run everything.

        Raises:
            WorkerLost: a worker died.
            RaysnapError: a worker raised it.
        """
        woken = set(range(self._partition.num_workers))
        num_done, num_all = 0, sum(len(piece.waves) for piece in self._partition.pieces)
        while True:
            while woken:
                woken |= self._start_tasks(woken.pop())
            if self._dispatcher.is_done:
                break
            (ref,), _ = ray.wait(list(self._running), num_returns=1)
            task, exports = self._running.pop(ref)
            features, faults = _get(ref)
            self._note_faults(faults)
            for node, rows in features.items():
                self._features[node][task.wave] = rows
            self._write(task, exports)
            worker = self._partition.pieces[task.piece].worker
            self._num_queued[worker] -= 1
            num_done += 1
            self._on_share(num_done / num_all)
            woken = self._dispatcher.finish(task) | {worker}
            for wave in [wave for wave in self._handed if wave < self._dispatcher.first_open]:
                del self._handed[wave]

    def features_of(self, node: int) -> np.ndarray:
        """Return the node's outputs of all items, float32 `[num_items, feature_dim]`."""
        return np.concatenate([rows for _, rows in sorted(self._features[node].items())])

    def _start_tasks(self, worker: int) -> set[int]:
        """Start tasks for the worker; return others that have more to do, as tasks without usable nodes are skipped."""
        woken: set[int] = set()
        while self._num_queued[worker] < NUM_QUEUED:
            task = self._dispatcher.next_task(worker)
            if task is None:
                break
            piece = self._partition.pieces[task.piece]
            nodes = [node for node in piece.nodes if node not in self._lost]
            if not nodes:
                woken |= self._dispatcher.finish(task)
                continue
            wanted = set(self._border.wanted if self._border else ()) & set(nodes)
            exports = tuple(sorted((set(piece.exports) & set(nodes)) | wanted))
            run = self._workers[worker].run.options(num_returns=1 + len(exports))
            wave = self._partition.waves[task.wave]
            refs = run.remote(nodes, exports, self._positions[wave.start : wave.stop], piece.source, self._input(task))
            refs = refs if exports else [refs]
            self._running[refs[0]] = (task, exports)
            for node, ref in zip(exports, refs[1:], strict=True):
                self._handed[task.wave][task.piece, node] = ref
            self._num_queued[worker] += 1
        return woken

    def _input(self, task: Task) -> Any:
        """Return what the task's piece takes other than pixels."""
        piece = self._partition.pieces[task.piece]
        if piece.source is None:
            return None
        maker = self._partition.maker.get((piece.source, task.wave, piece.worker))
        if maker is not None:
            return self._handed[task.wave][maker, piece.source]
        assert self._border is not None, "an output that no piece makes is given"
        wave = self._partition.waves[task.wave]
        return ray.put(to_array(self._border.read(piece.source, self._positions[wave.start : wave.stop])))

    def _note_faults(self, faults: dict[int, str]) -> None:
        self.faults |= faults
        stack = [index for index in faults if index not in self._lost]
        while stack:
            index = stack.pop()
            self._lost.add(index)
            stack.extend(self._tree.nodes[index].children)

    def _write(self, task: Task, exports: tuple[int, ...]) -> None:
        """Write to the border those of a task's outputs that it wants."""
        if self._border is None:
            return
        wave = self._partition.waves[task.wave]
        for node in exports:
            if node in self._border.wanted and node not in self._lost and (node, task.wave) not in self._written:
                self._written.add((node, task.wave))
                rows = _get(self._handed[task.wave][task.piece, node])
                outputs = from_array(rows.copy(), self._border.dtype)
                self._border.write(node, self._positions[wave.start : wave.stop], outputs)


@ray.remote(max_restarts=0)
class _Worker:
    """An executor in its own process."""

    def __init__(self, tree: PrefixTree, setup: Setup, bundle: dict[str, float]):
        torch.set_num_threads(max(1, int(bundle["CPU"])))
        self._num_gpus = bundle["GPU"]
        self._work = Work()
        self._open = ExitStack()  # closed when the process ends
        with naming_node():  # it may have joined after the search began
            items = setup.open_items(tree.candidates)
            store = Store.open(setup.store)
        self._numerics = setup.numerics()
        self._memory_bytes = setup.memory_bytes()
        self._executor = self._open.enter_context(open_executor(setup, store, tree, items, self._work))

    def describe(self) -> tuple[torch.dtype, str, str]:
        """Return the type and fingerprint that it computes in, and whose memory: a node's, or a GPU's of it."""
        granted_device(self._num_gpus, get_node_ip_address())  # type: ignore[no-untyped-call]
        place = f"{ray.get_runtime_context().get_node_id()} {ray.get_gpu_ids() if self._num_gpus else 'cpu'}"
        return self._executor.dtype, self._executor.fingerprint, place

    def share_memory(self, num_workers: int) -> None:
        """Take one part of the bound on memory of so many equal ones."""
        self._executor.memory_bytes = self._memory_bytes // num_workers

    def measure(self, kinds: Collection[Kind]) -> Speeds:
        speeds = measure_kinds(sorted(kinds), self._numerics)
        return {kind: speed.times(1 / self._numerics.num_streams) for kind, speed in speeds.items()}

    def pid(self) -> int:
        return os.getpid()

    def run(
        self, nodes: list[int], exports: tuple[int, ...], positions: Sequence[int], source: int | None, handed: Any
    ) -> Any:
        """Return features and faults, and after them each export's outputs; None where a fault prevented them."""
        border = _WaveBorder(self._executor.dtype, positions, source, handed, exports)
        found = self._executor.run(nodes, positions, border)
        return (found, *(border.collected(node) for node in exports)) if exports else found

    def keep(self, candidates: list[int]) -> None:
        self._executor.keep(candidates)

    def report(self) -> tuple[Work, dict[str, dict[str, int]]]:
        """Return what it did so far, and what it asked of buckets since the last report."""
        return self._work, take_requests()


class _WaveBorder:
    """A wave's activations that come from another piece, and those that go to others."""

    def __init__(
        self, dtype: torch.dtype, positions: Sequence[int], source: int | None, handed: Any, exports: tuple[int, ...]
    ):
        self.dtype = dtype
        self.given = () if source is None else (source,)
        self.wanted = exports
        self._rows = {position: row for row, position in enumerate(positions)}
        self._handed = handed
        self._parts: dict[int, list[np.ndarray]] = defaultdict(list)

    def read(self, node: int, positions: Sequence[int]) -> Tensor:  # noqa: ARG002 - only one is given
        return from_array(self._handed[[self._rows[position] for position in positions]], self.dtype)

    def write(self, node: int, positions: Sequence[int], outputs: Tensor) -> None:  # noqa: ARG002 - they arrive in order
        self._parts[node].append(to_array(outputs))

    def collected(self, node: int) -> np.ndarray | None:
        parts = self._parts.get(node, [])
        return np.concatenate(parts) if sum(map(len, parts)) == len(self._rows) else None


def _get(refs: Any) -> Any:
    """Return what the references refer to; Ray's errors become raysnap's."""
    try:
        return ray.get(refs)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RaysnapError):
            raise cause from None
        if isinstance(cause, ray.exceptions.RayError):
            raise WorkerLost(_first_line(cause)) from None
        raise
    except ray.exceptions.RayError as error:
        raise WorkerLost(_first_line(error)) from None


def _responds(worker: Any) -> bool:
    try:
        ray.get(worker.describe.remote(), timeout=PING_TIMEOUT_S)
    except ray.exceptions.RayError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    """Return the first line of Ray's error, or of raysnap's within it: that of a worker which can't start."""
    lines = str(error).strip().splitlines()
    own = [line for line in lines if line.startswith("raysnap.errors.")]
    return own[-1].partition(": ")[2] if own else lines[0]
