"""Order the pieces that run on waves of items: the same for real workers and for simulated ones.

Of the tasks that are ready, a worker runs first the one on which the longest chain of others waits. A wave does not run
until the wave `MAX_OPEN_WAVES` before it is done, which bounds the activations that wait for another worker.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from raysnap.search.plan.costs import Costs, Rates
from raysnap.search.plan.partition import Partition

MAX_OPEN_WAVES = 4


@dataclass(frozen=True, order=True)
class Task:
    """A piece on a wave."""

    piece: int
    wave: int


class Dispatcher:
    """Tracks which tasks are ready to run, and what the others wait for.

    Attributes:
        first_open: the first wave that is not done.
    """

    def __init__(self, partition: Partition):
        self.partition = partition
        self._urgency_s = _urgencies(partition)
        self._waits_for: dict[Task, int] = {}
        self._takers: dict[Task, list[Task]] = defaultdict(list)
        self._num_left = [0] * len(partition.waves)
        self.first_open = 0
        self._ready: list[list[tuple[float, Task]]] = [[] for _ in range(partition.num_workers)]
        self._held_back: dict[int, list[Task]] = defaultdict(list)
        for number, piece in enumerate(partition.pieces):
            makers = partition.takes_from(number)
            for wave in piece.waves:
                self._num_left[wave] += 1
                if wave in makers:
                    self._takers[Task(makers[wave], wave)].append(Task(number, wave))
                else:
                    self._make_ready(Task(number, wave))
        self._advance()

    def next_task(self, worker: int) -> Task | None:
        """Return the most urgent task that is ready for the worker; None where it has to wait."""
        return heapq.heappop(self._ready[worker])[1] if self._ready[worker] else None

    def finish(self, task: Task) -> set[int]:
        """Mark the task as done; return the workers that have more to do now."""
        woken = {self.partition.pieces[taker.piece].worker for taker in self._takers[task] if self._make_ready(taker)}
        self._num_left[task.wave] -= 1
        return woken | self._advance()

    @property
    def is_done(self) -> bool:
        """Whether every task is finished."""
        return self.first_open == len(self._num_left)

    def _make_ready(self, task: Task) -> bool:
        if task.wave >= self.first_open + MAX_OPEN_WAVES:
            self._held_back[task.wave].append(task)
            return False
        worker = self.partition.pieces[task.piece].worker
        heapq.heappush(self._ready[worker], (-self._urgency_s[task.piece], task))
        return True

    def _advance(self) -> set[int]:
        """Open the waves after those that are done; return the workers that have more to do now."""
        woken: set[int] = set()
        while not self.is_done and self._num_left[self.first_open] == 0:
            self.first_open += 1
            for task in self._held_back.pop(self.first_open + MAX_OPEN_WAVES - 1, ()):
                self._make_ready(task)
                woken.add(self.partition.pieces[task.piece].worker)
        return woken


def play(partition: Partition, costs: Costs, rates: Rates) -> float:
    """Simulate the partition; return the seconds until the last worker is done."""
    seconds_of = _task_seconds(partition, costs, rates)
    dispatcher = Dispatcher(partition)
    clock_s, idle = 0.0, set(range(partition.num_workers))
    running: list[tuple[float, int, Task]] = []
    woken = set(idle)
    while True:
        for worker in sorted(woken & idle):
            task = dispatcher.next_task(worker)
            if task is not None:
                idle.discard(worker)
                heapq.heappush(running, (clock_s + seconds_of(task), worker, task))
        if not running:
            return clock_s
        clock_s, worker, task = heapq.heappop(running)
        idle.add(worker)
        woken = dispatcher.finish(task) | {worker}


def _task_seconds(partition: Partition, costs: Costs, rates: Rates) -> Callable[[Task], float]:
    """Return how long each task takes: computing, reading blocks at the piece's first wave, its part in handovers."""
    is_taken_elsewhere: set[tuple[int, int, int]] = set()
    is_from_elsewhere: set[Task] = set()
    for number, piece in enumerate(partition.pieces):
        if piece.source is None:
            continue
        for wave, maker in partition.takes_from(number).items():
            if partition.pieces[maker].worker != piece.worker:
                is_taken_elsewhere.add((maker, wave, piece.source))
                is_from_elsewhere.add(Task(number, wave))

    def seconds(task: Task) -> float:
        piece, num_items = partition.pieces[task.piece], len(partition.waves[task.wave])
        taken_s = 0.0
        if piece.source is not None and task in is_from_elsewhere:
            taken_s = costs.handover_s[piece.source] / 2
        given_s = sum(
            costs.handover_s[node] / 2 for node in piece.exports if (task.piece, task.wave, node) in is_taken_elsewhere
        )
        read_s = piece.read_s if task.wave == piece.waves[0] else 0.0
        return rates.dispatch_s + read_s + num_items * (piece.item_s + taken_s + given_s)

    return seconds


def _urgencies(partition: Partition) -> list[float]:
    """Return, for each piece, the longest chain of pieces that wait for one another from it on, in seconds per item."""
    below_s = [0.0] * len(partition.pieces)
    for number in reversed(range(len(partition.pieces))):
        below_s[number] += partition.pieces[number].item_s
        for maker in set(partition.takes_from(number).values()):
            below_s[maker] = max(below_s[maker], below_s[number])
    return below_s
