"""What each node of a tree takes to run, read and hand over, known without weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from raysnap.models.block_facts import block_shapes
from raysnap.models.block_shape import BlockShape
from raysnap.search.plan.tree import Node, PrefixTree

BlockKey: TypeAlias = tuple[str, int, int, str]  # architecture, image size, index of the block, digest
Kind: TypeAlias = tuple[str, int, int]  # architecture, image size, index of the block


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast a worker is; only the ratios shape a partition.

    Attributes:
        flops_per_s: of each stream: each core of a CPU runs one, a GPU is one.
        call_s: seconds that a block takes on a batch before its first item: the launches of its kernels.
        rung_s: seconds that a rung takes whatever is in it: kernels chosen for batches of new sizes, waits at its end.
        first_rung_s: that the first one takes more: memory touched and libraries made ready for the first time.
        read_bytes_per_s: of blocks read, verified and made ready.
        handover_bytes_per_s: of writing activations for another worker; reading them takes as long again.
        dispatch_s: seconds that starting a piece on a wave takes.
        decode_s: of decoding an image that no earlier job has decoded; `pixel_s` of reading a decoded one.
        probe_s: of fitting probes that are fitted together, whatever their features; `probe_flops_per_s` is the rate
            of the rest of it.
    """

    flops_per_s: float = 5e10
    call_s: float = 2e-4
    rung_s: float = 0.02
    first_rung_s: float = 0.2
    read_bytes_per_s: float = 3e8
    handover_bytes_per_s: float = 1e9
    dispatch_s: float = 0.003
    decode_s: float = 0.004
    pixel_s: float = 1e-4
    probe_s: float = 8e-4
    probe_flops_per_s: float = 1.2e10


@dataclass(frozen=True)
class BlockSpeed:
    """Seconds that a kind of block takes in one stream: `call_s` for each batch, and `item_s` more for each item."""

    call_s: float
    item_s: float

    def times(self, factor: float) -> BlockSpeed:
        """Return the speed of a device that takes `factor` times as long."""
        return BlockSpeed(self.call_s * factor, self.item_s * factor)


@dataclass(frozen=True)
class Costs:
    """What each needed node takes, known without weights.

    Attributes:
        needed: indices of the nodes to run, parents first. A node whose parent is not among them takes pixels, if it
            is a root, or else outputs that are given.
        call_s: seconds that a node takes for each batch, however few its items.
        item_s: seconds to compute a node's outputs of one item.
        read_s: seconds to read its block.
        handover_s: seconds to hand one item's output over, written and read.
    """

    tree: PrefixTree
    needed: tuple[int, ...]
    call_s: Mapping[int, float]
    item_s: Mapping[int, float]
    read_s: Mapping[int, float]
    handover_s: Mapping[int, float]

    @classmethod
    def of(
        cls, tree: PrefixTree, needed: Collection[int], rates: Rates, measured: Mapping[Kind, BlockSpeed] | None = None
    ) -> Costs:
        """Return the costs of these nodes at these rates, or as measured for blocks of their kind."""
        measured = measured or {}
        needed = tuple(sorted(needed))
        nodes = [tree.nodes[index] for index in needed]
        shapes = [shape_of(node) for node in nodes]
        speeds = {
            node.index: measured.get(kind_of(node)) or BlockSpeed(rates.call_s, shape.flops / rates.flops_per_s)
            for node, shape in zip(nodes, shapes, strict=True)
        }
        return cls(
            tree,
            needed,
            {index: speed.call_s for index, speed in speeds.items()},
            {index: speed.item_s for index, speed in speeds.items()},
            {node.index: node.block.num_bytes / rates.read_bytes_per_s for node in nodes},
            {
                node.index: 2 * shape.output_bytes / rates.handover_bytes_per_s
                for node, shape in zip(nodes, shapes, strict=True)
            },
        )

    def total_s(self, num_items: int) -> float:
        """Return the seconds of all work, each block read once and nothing run twice."""
        return num_items * sum(self.item_s.values()) + sum(self.read_s.values())

    def longest_path_s(self, num_items: int) -> float:
        """Return the seconds of the longest path from a root to a candidate."""
        down: dict[int, float] = {}
        for index in self.needed:
            parent = self.tree.nodes[index].parent
            above = 0.0 if parent is None else down.get(parent, 0.0)
            down[index] = above + num_items * self.item_s[index] + self.read_s[index]
        return max(down.values(), default=0.0)


def shape_of(node: Node) -> BlockShape:
    """Return what the node's block costs."""
    return shape_of_kind(kind_of(node))


def shape_of_kind(kind: Kind) -> BlockShape:
    """Return what a block of that kind costs."""
    architecture, image_size, index = kind
    return block_shapes(architecture, image_size)[index]


@lru_cache(maxsize=4096)
def model_share(kind: Kind) -> float:
    """Return the part of its model's FLOPs that a block of that kind takes; the head, which no search runs, aside."""
    architecture, image_size, index = kind
    flops = [shape.flops for shape in block_shapes(architecture, image_size)[:-1]]
    return flops[index] / sum(flops)


def kind_of(node: Node) -> Kind:
    """Return what determines a block's speed."""
    return node.architecture, node.preprocessing.image_size, node.block_index


def block_key(node: Node) -> BlockKey:
    """Return what identifies a block in memory: nodes under different parents may hold the same one.

    Blocks are made to be fast for one image size, so a store that mixes sizes may hold one twice.
    """
    return *kind_of(node), node.block.digest
