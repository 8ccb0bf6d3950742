"""Assign a rung's work to workers: cut the tree into pieces, each for the worker that would finish it first.

Cuts are as few as pieces of that size allow (Kundu and Misra 1977, doi 10.1137/0206012). Pieces are dealt largest
first, so no worker gets more than total / workers and one piece (Graham 1969, doi 10.1137/0117039); the waves that a
chain of pieces on several workers waits for come on top.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from raysnap.search.plan.costs import BlockKey, Costs, block_key
from raysnap.search.plan.partition import Partition, Piece

Pieces: TypeAlias = list[Piece]
Seconds: TypeAlias = npt.NDArray[np.float64]


def deal(
    costs: Costs,
    num_workers: int,
    waves: Sequence[range],
    piece_s: float,
    share_s: float,
    held: Sequence[Collection[BlockKey]] = (),
) -> Partition:
    """Return a partition into pieces of up to `piece_s` seconds; several workers share those of more than `share_s`.

    Args:
        held: the blocks that each worker has in memory and need not read.
    """
    fragments = _cut(costs, sum(map(len, waves)), piece_s)
    dealer = _Dealer(costs, num_workers, held)
    for share in _share_out(costs, fragments, num_workers, waves, share_s):
        dealer.deal(share)
    return _link(costs, _run_again_where_cheaper(costs, dealer.pieces(), waves), num_workers, waves)


def _cut(costs: Costs, num_items: int, piece_s: float) -> list[tuple[int, ...]]:
    """Cut the tree into the fewest connected fragments of at most `piece_s`; a node that alone takes more is one."""
    parents = {index: costs.tree.nodes[index].parent for index in costs.needed}
    below: dict[int, list[int]] = {index: [] for index in costs.needed}
    for index, parent in parents.items():
        if parent is not None and parent in below:
            below[parent].append(index)
    rest_s: dict[int, float] = {}
    is_top = {index: parent not in below for index, parent in parents.items()}
    for index in reversed(costs.needed):
        rest_s[index] = num_items * costs.item_s[index] + costs.read_s[index]
        rest_s[index] += sum(rest_s[child] for child in below[index])
        for child in sorted(below[index], key=lambda child: -rest_s[child]):
            if rest_s[index] <= piece_s:
                break
            is_top[child] = True
            rest_s[index] -= rest_s[child]
    top: dict[int, int] = {}
    fragments: dict[int, list[int]] = defaultdict(list)
    for index, parent in parents.items():
        top[index] = index if parent is None or is_top[index] else top[parent]
        fragments[top[index]].append(index)
    return [tuple(fragment) for fragment in fragments.values()]


@dataclass(frozen=True)
class _Share:
    """Some waves of a fragment, which one worker runs.

    Attributes:
        nodes: the fragment's nodes, parents first.
        is_whole: whether these are all waves.
        compute_s: seconds that the waves take to compute.
    """

    nodes: tuple[int, ...]
    waves: tuple[int, ...]
    is_whole: bool
    num_items: int
    compute_s: float


def _share_out(
    costs: Costs, fragments: list[tuple[int, ...]], num_workers: int, waves: Sequence[range], share_s: float
) -> list[_Share]:
    """Split fragments into shares of at most `share_s`, as far as waves and workers allow; the largest come first."""
    num_items = sum(map(len, waves))
    shares = []
    for nodes in fragments:
        item_s = sum(costs.item_s[index] for index in nodes)
        num_shares = min(len(waves), num_workers, math.ceil(item_s * num_items / share_s) if share_s else 1) or 1
        for first in range(num_shares):
            own_waves = tuple(range(first, len(waves), num_shares))
            own_items = sum(len(waves[wave]) for wave in own_waves)
            shares.append(_Share(nodes, own_waves, len(own_waves) == len(waves), own_items, item_s * own_items))
    return sorted(shares, key=lambda share: -share.compute_s)


class _Dealer:
    """Deals shares to workers one after the other; knows how busy each worker is and what it has at hand."""

    def __init__(self, costs: Costs, num_workers: int, held: Sequence[Collection[BlockKey]]):
        self._costs = costs
        self._load_s = np.zeros(num_workers)
        self._holders: dict[BlockKey, list[int]] = defaultdict(list)
        for worker, keys in enumerate(held):
            for key in keys:
                self._holders[key].append(worker)
        # By the fragment's first node and the worker.
        self._dealt: dict[tuple[int, int], tuple[tuple[int, ...], list[int]]] = {}
        # The workers that compute a node's outputs of these waves.
        self._computing: dict[tuple[int, tuple[int, ...]], set[int]] = defaultdict(set)

    def deal(self, share: _Share) -> None:
        """Give the share to the worker that would finish it first."""
        source = self._costs.tree.nodes[share.nodes[0]].parent
        prefix, input_s = _cheapest_input(self._costs, source, share.num_items, lambda _: False)
        extra_s = self._read_s(share) + self._is_far(source, share.waves) * input_s
        worker = int((self._load_s + extra_s).argmin())
        self._load_s[worker] += share.compute_s + extra_s[worker]
        _, waves = self._dealt.setdefault((share.nodes[0], worker), (share.nodes, []))
        waves += share.waves
        for index in (*prefix, *share.nodes):
            self._computing[index, share.waves].add(worker)

    def pieces(self) -> Pieces:
        """Return what was dealt, a piece for each fragment and worker."""
        return [
            _piece(self._costs, nodes, worker, tuple(sorted(waves)))
            for (_, worker), (nodes, waves) in self._dealt.items()
        ]

    def _read_s(self, share: _Share) -> Seconds:
        """Return the seconds that each worker would read blocks for the share, float64 `[num_workers]`."""
        read_s = np.full(len(self._load_s), sum(self._costs.read_s[index] for index in share.nodes))
        if self._holders:
            for index in share.nodes:
                key = block_key(self._costs.tree.nodes[index])
                read_s[self._holders.get(key, [])] -= self._costs.read_s[index]
        if share.is_whole:
            return read_s
        for worker in range(len(read_s)):
            if (share.nodes[0], worker) in self._dealt:
                read_s[worker] = 0.0
        return read_s

    def _is_far(self, source: int | None, waves: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Return which workers don't compute the source's outputs of these waves, bool `[num_workers]`."""
        is_far = np.ones(len(self._load_s), dtype=bool)
        if source is not None:
            is_far[list(self._computing[source, waves])] = False
        return is_far


def _piece(costs: Costs, nodes: Sequence[int], worker: int, waves: tuple[int, ...]) -> Piece:
    return Piece(
        nodes=tuple(nodes),
        source=costs.tree.nodes[nodes[0]].parent,
        worker=worker,
        waves=waves,
        item_s=sum(costs.item_s[index] for index in nodes),
        read_s=sum(costs.read_s[index] for index in nodes),
    )


def _run_again_where_cheaper(costs: Costs, pieces: Pieces, waves: Sequence[range]) -> Pieces:
    """Put before each piece the prefix that is cheaper to run again than to hand over."""
    owned: dict[tuple[int, int], set[int]] = defaultdict(set)
    for piece in pieces:
        for node in piece.nodes:
            owned[node, piece.worker].update(piece.waves)
    result = []
    for piece in pieces:

        def is_at_hand(node: int, piece: Piece = piece) -> bool:
            return owned[node, piece.worker].issuperset(piece.waves)

        num_items = sum(len(waves[wave]) for wave in piece.waves)
        again, _ = _cheapest_input(costs, piece.source, num_items, is_at_hand)
        result.append(_piece(costs, [*again, *piece.nodes], piece.worker, piece.waves) if again else piece)
    return result


def _cheapest_input(
    costs: Costs, source: int | None, num_items: int, is_at_hand: Callable[[int], bool]
) -> tuple[list[int], float]:
    """Find the cheapest way to a source's outputs: by handover, or by running a prefix again.

    Returns:
        The nodes to run again, parents first, and the seconds that the outputs take. What is at hand, as pixels and
        given outputs are, takes nothing.
    """
    above, spent_s = source, 0.0
    prefix: list[int] = []
    best: list[int] = []
    best_s = math.inf
    while above is not None and above in costs.item_s and not is_at_hand(above):
        if spent_s + num_items * costs.handover_s[above] < best_s:
            best, best_s = list(prefix), spent_s + num_items * costs.handover_s[above]
        spent_s += num_items * costs.item_s[above] + costs.read_s[above]
        prefix.append(above)
        above = costs.tree.nodes[above].parent
    if spent_s < best_s:
        best, best_s = prefix, spent_s
    return best[::-1], best_s


def _link(costs: Costs, pieces: Pieces, num_workers: int, waves: Sequence[range]) -> Partition:
    """Return the partition of these pieces: merge those that no other waits for, leave out those that none needs."""
    taken = {(piece.source, wave) for piece in pieces for wave in piece.waves}
    # By worker, waves and source, and by its first node where another piece waits for it.
    merged: dict[tuple[int, tuple[int, ...], int | None, int | None], list[int]] = defaultdict(list)
    for piece in pieces:
        is_waited_for = any((node, wave) in taken for node in piece.nodes for wave in piece.waves)
        merged[piece.worker, piece.waves, piece.source, piece.nodes[0] if is_waited_for else None] += piece.nodes
    whole = [
        _piece(costs, sorted(set(nodes)), worker, own_waves) for (worker, own_waves, _, _), nodes in merged.items()
    ]
    partition = Partition(num_workers, tuple(waves), tuple(sorted(whole, key=lambda piece: piece.nodes[0])))
    exports: dict[int, set[int]] = defaultdict(set)
    needed: list[int] = []
    for number in reversed(range(len(partition.pieces))):
        piece = partition.pieces[number]
        if number not in exports and not any(costs.tree.nodes[node].candidates for node in piece.nodes):
            continue
        needed.append(number)
        if piece.source is not None:
            for maker in partition.takes_from(number).values():
                exports[maker].add(piece.source)
    kept = [replace(partition.pieces[number], exports=tuple(sorted(exports[number]))) for number in reversed(needed)]
    return replace(partition, pieces=tuple(kept))
