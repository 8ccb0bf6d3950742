"""How a rung's work is dealt to workers: frozen data, made before any tensor is in hand.

The tree is cut into connected pieces, each with one worker that reads its blocks; items flow past the workers in
*waves*. A piece takes its parent's outputs of the same wave, handed over where another worker made them, or runs that
prefix again where it is cheaper. A piece that is too much for one worker is shared by several, each with waves of its
own, for which its blocks are read by each of them.

Cuts are as few as pieces of that size allow (Kundu and Misra 1977, doi 10.1137/0206012). Pieces go, largest first, to
the worker that would finish them first, so no worker gets more than total / workers and one piece (Graham 1969, doi
10.1137/0117039); the waves that a chain of pieces on several workers waits for come on top.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from raysnap.models.block_facts import block_shapes
from raysnap.models.block_shape import BlockShape
from raysnap.search.plan.tree import Node, PrefixTree

Pieces = list["Piece"]
BlockKey = tuple[str, int, str]
Kind = tuple[str, int, int]  # architecture, image size, index of the block


@dataclass(frozen=True)
class Rates:
    """What a worker does in a second; only their ratios shape a partition.

    Attributes:
        read_bytes_per_s: of blocks read, verified and made ready.
        handover_bytes_per_s: of writing activations for another worker; reading them takes as long again.
        dispatch_s: seconds that starting a piece on a wave takes.
    """

    flops_per_s: float = 5e10
    read_bytes_per_s: float = 3e8
    handover_bytes_per_s: float = 1e9
    dispatch_s: float = 0.003


@dataclass(frozen=True)
class Piece:
    """A connected part of the tree, the worker that runs it, and on which waves.

    Attributes:
        nodes: indices of its nodes, parents first.
        source: index of the node whose outputs it takes; None for pixels.
        exports: indices of its nodes whose outputs other pieces take.
        item_s: seconds that it computes for an item.
        read_s: seconds that its worker reads blocks for it, once.
    """

    nodes: tuple[int, ...]
    source: int | None
    worker: int
    waves: tuple[int, ...]
    item_s: float
    read_s: float
    exports: tuple[int, ...] = ()


@dataclass(frozen=True)
class Partition:
    """Who runs what on which items.

    Attributes:
        waves: ranges that together are the rung's items.
        pieces: in an order in which each comes after those it depends on.
    """

    num_workers: int
    waves: tuple[range, ...]
    pieces: tuple[Piece, ...]

    @cached_property
    def maker(self) -> dict[tuple[int, int, int], int]:
        """The piece that makes a source's outputs of a wave for a worker: its own where there is one.

        Outputs that are given to the search have no maker.
        """
        sources = {piece.source for piece in self.pieces} - {None}
        makers: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, piece in enumerate(self.pieces):
            for source in sources.intersection(piece.nodes):
                for wave in piece.waves:
                    makers[source, wave].append(number)
        found = {}
        for source, wave, worker in {
            (piece.source, wave, piece.worker) for piece in self.pieces for wave in piece.waves
        }:
            numbers = makers.get((source, wave))
            if numbers:
                own = (number for number in numbers if self.pieces[number].worker == worker)
                found[source, wave, worker] = next(own, numbers[0])
        return found

    @cached_property
    def load_s(self) -> tuple[float, ...]:
        """Seconds that each worker reads and computes."""
        loads_s = [0.0] * self.num_workers
        for piece in self.pieces:
            loads_s[piece.worker] += piece.read_s + piece.item_s * sum(len(self.waves[wave]) for wave in piece.waves)
        return tuple(loads_s)

    def takes_from(self, number: int) -> dict[int, int]:
        """For each of a piece's waves the piece that makes its input, where one does."""
        piece = self.pieces[number]
        makers = ((wave, self.maker.get((piece.source, wave, piece.worker))) for wave in piece.waves)
        return {wave: maker for wave, maker in makers if maker is not None}


@dataclass(frozen=True)
class Costs:
    """What each needed node takes, known without weights.

    Attributes:
        needed: indices of the nodes to run, parents first. A node whose parent is not among them takes pixels, if it
            is a root, or else outputs that are given.
        item_s: seconds to compute a node's outputs of one item.
        read_s: seconds to read its block.
        handover_s: seconds to hand one item's output over, written and read.
    """

    tree: PrefixTree
    needed: tuple[int, ...]
    item_s: Mapping[int, float]
    read_s: Mapping[int, float]
    handover_s: Mapping[int, float]

    @classmethod
    def of(
        cls, tree: PrefixTree, needed: Collection[int], rates: Rates, measured_s: Mapping[Kind, float] | None = None
    ) -> Costs:
        """The costs of these nodes at these rates, or as measured for an item of blocks of their kind."""
        measured_s = measured_s or {}
        needed = tuple(sorted(needed))
        nodes = [tree.nodes[index] for index in needed]
        shapes = [shape_of(node) for node in nodes]
        return cls(
            tree,
            needed,
            {
                node.index: measured_s.get(kind_of(node), shape.flops / rates.flops_per_s)
                for node, shape in zip(nodes, shapes, strict=True)
            },
            {node.index: node.block.num_bytes / rates.read_bytes_per_s for node in nodes},
            {
                node.index: 2 * shape.output_bytes / rates.handover_bytes_per_s
                for node, shape in zip(nodes, shapes, strict=True)
            },
        )

    def total_s(self, num_items: int) -> float:
        """Seconds of all work, each block read once and nothing run twice."""
        return num_items * sum(self.item_s.values()) + sum(self.read_s.values())

    def longest_path_s(self, num_items: int) -> float:
        """Seconds of the longest way from a root to a candidate."""
        down: dict[int, float] = {}
        for index in self.needed:
            above = down.get(self.tree.nodes[index].parent, 0.0)
            down[index] = above + num_items * self.item_s[index] + self.read_s[index]
        return max(down.values(), default=0.0)


def shape_of(node: Node) -> BlockShape:
    """What the node's block costs."""
    return block_shapes(node.architecture, node.preprocessing.image_size)[node.block_index]


def kind_of(node: Node) -> Kind:
    """What a block's speed goes by."""
    return node.architecture, node.preprocessing.image_size, node.block_index


def block_key(node: Node) -> BlockKey:
    """What a block in memory goes by: nodes under different parents may hold the same one."""
    return node.architecture, node.block_index, node.block.digest


def split_waves(num_items: int, wave_items: int) -> tuple[range, ...]:
    """Ranges of `wave_items` items, the last one of what is left."""
    return tuple(range(start, min(num_items, start + wave_items)) for start in range(0, num_items, wave_items))


def deal(
    costs: Costs,
    num_workers: int,
    waves: Sequence[range],
    piece_s: float,
    share_s: float,
    held: Sequence[Collection[BlockKey]] = (),
) -> Partition:
    """A partition into pieces of up to `piece_s` seconds, those of more than `share_s` shared by several workers.

    Args:
        held: the blocks that each worker has in memory and need not read.
    """
    num_items = sum(map(len, waves))
    fragments = _cut(costs, num_items, piece_s)
    pieces = _assign(costs, fragments, num_workers, waves, share_s, held)
    return _link(costs, _run_again_where_cheaper(costs, pieces, waves), num_workers, waves)


def _cut(costs: Costs, num_items: int, piece_s: float) -> list[tuple[int, ...]]:
    """The fewest connected fragments of at most `piece_s`; a node that alone takes more is one."""
    nodes = costs.tree.nodes
    below: dict[int, list[int]] = {index: [] for index in costs.needed}
    for index in costs.needed:
        if nodes[index].parent in below:
            below[nodes[index].parent].append(index)
    rest_s: dict[int, float] = {}
    is_top = {index: nodes[index].parent not in below for index in costs.needed}
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
    for index in costs.needed:
        top[index] = index if is_top[index] else top[nodes[index].parent]
        fragments[top[index]].append(index)
    return [tuple(fragment) for fragment in fragments.values()]


def _assign(
    costs: Costs,
    fragments: list[tuple[int, ...]],
    num_workers: int,
    waves: Sequence[range],
    share_s: float,
    held: Sequence[Collection[BlockKey]],
) -> Pieces:
    """Each fragment, or each share of it, for the worker that would be through with it first, largest first."""
    num_items = sum(map(len, waves))
    lengths = [len(wave) for wave in waves]
    holders: dict[BlockKey, list[int]] = defaultdict(list)
    for worker, keys in enumerate(held):
        for key in keys:
            holders[key].append(worker)
    shares = []
    for number, fragment in enumerate(fragments):
        item_s = sum(costs.item_s[index] for index in fragment)
        num_shares = min(len(waves), num_workers, math.ceil(item_s * num_items / share_s) if share_s else 1) or 1
        for first in range(num_shares):
            own_waves = tuple(range(first, len(waves), num_shares))
            shares.append((item_s * sum(lengths[wave] for wave in own_waves), number, own_waves))
    dealt: dict[tuple[int, int], list[int]] = defaultdict(list)
    near: dict[tuple[int, tuple[int, ...]], set[int]] = defaultdict(set)
    load_s = np.zeros(num_workers)
    for compute_s, number, own_waves in sorted(shares, key=lambda share: -share[0]):
        fragment = fragments[number]
        source = costs.tree.nodes[fragment[0]].parent
        extra_s = np.full(num_workers, sum(costs.read_s[index] for index in fragment))
        for index in fragment if holders else ():
            extra_s[holders.get(block_key(costs.tree.nodes[index]), [])] -= costs.read_s[index]
        for worker in range(num_workers) if len(own_waves) < len(waves) else ():
            if (number, worker) in dealt:
                extra_s[worker] = 0.0
        prefix, input_s = _cheapest_input(costs, source, sum(lengths[wave] for wave in own_waves), lambda _: False)
        is_far = np.ones(num_workers, dtype=bool)
        is_far[list(near[source, own_waves])] = False
        extra_s += is_far * input_s
        worker = int((load_s + extra_s).argmin())
        load_s[worker] += compute_s + extra_s[worker]
        dealt[number, worker] += own_waves
        for index in (*prefix, *fragment):
            near[index, own_waves].add(worker)
    return [
        _piece(costs, fragments[number], worker, tuple(sorted(own_waves)))
        for (number, worker), own_waves in dealt.items()
    ]


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
    """The pieces, with the prefix before them where running it again is cheaper than its handover."""
    owned: dict[tuple[int, int], set[int]] = defaultdict(set)
    for piece in pieces:
        for node in piece.nodes:
            owned[node, piece.worker].update(piece.waves)
    result = []
    for piece in pieces:
        num_items = sum(len(waves[wave]) for wave in piece.waves)
        again, _ = _cheapest_input(
            costs, piece.source, num_items, lambda node, piece=piece: owned[node, piece.worker].issuperset(piece.waves)
        )
        result.append(_piece(costs, [*again, *piece.nodes], piece.worker, piece.waves) if again else piece)
    return result


def _cheapest_input(
    costs: Costs, source: int | None, num_items: int, is_at_hand: Callable[[int], bool]
) -> tuple[list[int], float]:
    """The nodes to run again for a source's outputs, parents first, and the seconds that the outputs take so.

    What is at hand, as pixels and given outputs are, takes nothing.
    """
    above, spent_s = source, 0.0
    prefix: list[int] = []
    best: list[int] = []
    best_s = math.inf
    while above in costs.item_s and not is_at_hand(above):
        if spent_s + num_items * costs.handover_s[above] < best_s:
            best, best_s = list(prefix), spent_s + num_items * costs.handover_s[above]
        spent_s += num_items * costs.item_s[above] + costs.read_s[above]
        prefix.append(above)
        above = costs.tree.nodes[above].parent
    if spent_s < best_s:
        best, best_s = prefix, spent_s
    return best[::-1], best_s


def _link(costs: Costs, pieces: Pieces, num_workers: int, waves: Sequence[range]) -> Partition:
    """The partition of these pieces: one for all of a worker that nobody waits for, none that nobody needs."""
    taken = {(piece.source, wave) for piece in pieces for wave in piece.waves}
    merged: dict[tuple, list[int]] = defaultdict(list)
    for piece in pieces:
        is_waited_for = any((node, wave) in taken for node in piece.nodes for wave in piece.waves)
        group = (piece.worker, piece.waves, piece.source)
        merged[(*group, piece.nodes[0]) if is_waited_for else group] += piece.nodes
    whole = [_piece(costs, sorted(set(nodes)), key[0], key[1]) for key, nodes in merged.items()]
    partition = Partition(num_workers, tuple(waves), tuple(sorted(whole, key=lambda piece: piece.nodes[0])))
    exports: dict[int, set[int]] = defaultdict(set)
    needed: list[int] = []
    for number in reversed(range(len(partition.pieces))):
        piece = partition.pieces[number]
        if number in exports or any(costs.tree.nodes[node].candidates for node in piece.nodes):
            needed.append(number)
            for maker in partition.takes_from(number).values():
                exports[maker].add(piece.source)
    kept = [replace(partition.pieces[number], exports=tuple(sorted(exports[number]))) for number in reversed(needed)]
    return replace(partition, pieces=tuple(kept))
