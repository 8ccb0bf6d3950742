"""Choose the partition that would finish first, and simulate how long a whole search takes on many workers.

Real and simulated searches choose their partitions here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from raysnap.search.plan.costs import BlockKey, Costs, Rates, block_key, shape_of
from raysnap.search.plan.dealing import deal
from raysnap.search.plan.dispatch import MAX_OPEN_WAVES, play
from raysnap.search.plan.partition import Partition, split_waves
from raysnap.search.plan.rungs import Rung
from raysnap.search.plan.tree import PrefixTree, needed_nodes

MAX_WAVES = 16
HANDOVER_BYTES = 64 * 2**20

# The largest pieces and shares tried, as parts of a worker's part of the work. Large pieces hand over little and are
# hard to deal evenly; shares of whole trees hand over nothing and have each worker read every block.
CUTS = ((math.inf, 1.0), (1.0, 1.0), (0.5, 0.5), (0.25, 0.25), (0.125, 0.125), (0.0625, 0.125))


@dataclass(frozen=True)
class SimulatedRung:
    """What one rung would take.

    Attributes:
        makespan_s: seconds until the last worker is done.
        bound_s: total work over workers, each block read once and nothing run twice, or the longest path from a root
            to a candidate, whichever is more.
        computed_s: seconds of all workers' computing; `unique_s` is what remains when nothing is computed twice.
        read_s: seconds of all workers' reading.
    """

    num_candidates: int
    num_items: int
    num_pieces: int
    num_waves: int
    makespan_s: float
    bound_s: float
    computed_s: float
    unique_s: float
    read_s: float


def choose_partition(
    costs: Costs,
    num_items: int,
    batch_items: int,
    num_workers: int,
    rates: Rates,
    held: Sequence[Collection[BlockKey]] = (),
    handover_bytes: int = HANDOVER_BYTES,
) -> Partition:
    """Return the partition that finishes first by the rates, of those that `CUTS` gives.

    Args:
        batch_items: waves have whole batches of so many items.
        held: the blocks that each worker has in memory.
        handover_bytes: bound on the bytes that wait to be handed over, per worker, unless waves of one batch exceed it.
    """
    fair_s = costs.total_s(num_items) / num_workers
    best: Partition | None = None
    best_s = math.inf
    for piece_share, fragment_share in CUTS if num_workers > 1 else CUTS[:1]:
        wave_items = batch_items * _even_wave(math.ceil(num_items / batch_items), num_workers)
        while True:
            waves = split_waves(num_items, wave_items)
            partition = deal(costs, num_workers, waves, fair_s * piece_share, fair_s * fragment_share, held)
            waiting_bytes = MAX_OPEN_WAVES * _handed_over_bytes(costs, partition)
            most_items = num_workers * handover_bytes // max(1, waiting_bytes)
            if wave_items <= max(batch_items, most_items):
                break
            wave_items = max(1, most_items // batch_items) * batch_items
        if max(partition.load_s) < best_s:
            makespan_s = play(partition, costs, rates)
            if makespan_s < best_s:
                best, best_s = partition, makespan_s
    assert best is not None, "a partition takes finite time"
    return best


def _even_wave(num_batches: int, num_workers: int) -> int:
    """Return the batches of a wave: about as many as give `MAX_WAVES`, and with few workers an equal part for each."""
    usual = math.ceil(num_batches / MAX_WAVES)
    if num_workers > MAX_WAVES:
        return usual

    def largest_share(wave: int) -> int:
        return wave * math.ceil(math.ceil(num_batches / wave) / num_workers)

    return min(range(2 * usual, 0, -1), key=largest_share)


def simulate(
    tree: PrefixTree, rungs: Sequence[Rung], entrants: Sequence[Collection[int]], num_workers: int, rates: Rates
) -> tuple[SimulatedRung, ...]:
    """Return what the rungs would take, each with the candidates that enter it; workers keep the blocks they read."""
    held: list[set[BlockKey]] = [set() for _ in range(num_workers)]
    result = []
    for rung, candidates in zip(rungs, entrants, strict=True):
        costs = Costs.of(tree, needed_nodes(tree, candidates), rates)
        partition = choose_partition(costs, rung.num_items, 1, num_workers, rates, held)
        unique_s = rung.num_items * sum(costs.item_s.values())
        seconds_of = {block_key(tree.nodes[index]): read_s for index, read_s in costs.read_s.items()}
        unread_s = sum(seconds_of[key] for key in seconds_of.keys() - set().union(*held))
        before = held
        held = [old | new for old, new in zip(before, held_after(tree, partition), strict=True)]
        result.append(
            SimulatedRung(
                num_candidates=len(candidates),
                num_items=rung.num_items,
                num_pieces=len(partition.pieces),
                num_waves=len(partition.waves),
                makespan_s=play(partition, costs, rates),
                bound_s=max((unique_s + unread_s) / num_workers, costs.longest_path_s(rung.num_items)),
                computed_s=sum(
                    piece.item_s * sum(len(partition.waves[wave]) for wave in piece.waves) for piece in partition.pieces
                ),
                unique_s=unique_s,
                read_s=sum(seconds_of[key] for keys, old in zip(held, before, strict=True) for key in keys - old),
            )
        )
    return tuple(result)


def held_after(tree: PrefixTree, partition: Partition) -> list[set[BlockKey]]:
    """Return the blocks that each worker has read when its pieces have run."""
    held: list[set[BlockKey]] = [set() for _ in range(partition.num_workers)]
    for piece in partition.pieces:
        held[piece.worker].update(block_key(tree.nodes[node]) for node in piece.nodes)
    return held


def _handed_over_bytes(costs: Costs, partition: Partition) -> int:
    """Return the bytes of one item's outputs that wait for other workers."""
    given = {
        (maker, source)
        for (source, _, worker), maker in partition.maker.items()
        if partition.pieces[maker].worker != worker
    }
    return sum(shape_of(costs.tree.nodes[node]).output_bytes for _, node in given)
