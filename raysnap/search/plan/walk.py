"""Plan a walk over the tree, as frozen data made before any tensor is loaded.

A method is a list of rungs; the candidates that survive a rung decide which nodes the next one needs, so each rung's
walk is planned when its candidates are known. One executor runs every plan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from raysnap.errors import UsageError
from raysnap.models.block_facts import block_shapes, text_facts
from raysnap.search.plan.tree import Node, PrefixTree

# What a batch's largest block may hold of input and output: within a CPU's cache, or enough to keep a GPU busy.
BATCH_ACTIVATION_BYTES = {"cpu": 12 * 2**20, "cuda": 2**30}
MAX_BATCH_ITEMS = 256
# Weights are read once per batch, which takes longer than the cache saves if only a few items share that.
ENOUGH_BATCH_ITEMS = 8
ENOUGH_BATCH_ACTIVATION_BYTES = 64 * 2**20

# What a block holds while it runs besides its input and output, as a multiple of them. Those of transformers hold four
# times their input within an MLP, inverted residuals six; most hold less.
WORKING_SHARE = 4


@dataclass(frozen=True)
class Room:
    """The memory that a walk's activations may take.

    Attributes:
        budget_bytes: bound on the activations held at once; None is no limit.
        value_bytes: bytes of one value of an activation.
        device: type of the device, which decides how large a batch is where no budget binds.
        num_streams: how many batches may run at once.
    """

    budget_bytes: int | None = None
    value_bytes: int = 4
    device: str = "cpu"
    num_streams: int = 1


@dataclass(frozen=True)
class WalkStep:
    """Running one node's block on the batch at hand.

    Attributes:
        node: index of the node.
        frees_input: whether its input is freed afterwards: it is the last child to run.
        keeps_output: whether children of it run later in the walk.
    """

    node: int
    frees_input: bool
    keeps_output: bool


@dataclass(frozen=True)
class Walk:
    """A depth-first walk from one node down, made once for every batch of items.

    Attributes:
        steps: in the order that holds the fewest activation bytes at once.
        batch_items: the most items of a batch.
        num_streams: how many batches run at once.
        peak_activation_bytes: the most bytes of activations held at once, inputs and outputs of the running block
            included, the block's own working memory not.
    """

    root: int
    steps: tuple[WalkStep, ...]
    batch_items: int
    num_streams: int
    peak_activation_bytes: int

    def split(self, positions: Sequence[int]) -> list[Sequence[int]]:
        """Split the positions into batches of nearly equal length, as many as keep all streams busy."""
        num_rounds = math.ceil(len(positions) / (self.batch_items * self.num_streams))
        num_batches = min(len(positions), num_rounds * self.num_streams)
        edges = [len(positions) * number // num_batches for number in range(num_batches + 1)] if num_batches else []
        return [positions[start:stop] for start, stop in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Held:
    """The bytes of activations that one item holds at each step of a walk.

    Attributes:
        running: while the step runs, with what its block holds besides input and output: see `WORKING_SHARE`.
        after: from then to the next step.
    """

    running: tuple[int, ...]
    after: tuple[int, ...]


def plan_walk(tree: PrefixTree, root: Node, needed: Collection[int], room: Room) -> Walk:
    """Plan the walk over the `needed` nodes from `root` down that holds the fewest bytes of activations at once.

    A node's output is held until its last child has run, so the child whose own subtree needs the most goes last.

    Raises:
        UsageError: not even one item fits the budget.
    """
    held_bytes = _activation_bytes(root.architecture, root.preprocessing.image_size, room.value_bytes)
    output_bytes = held_bytes[1:]
    children = {index: [c for c in tree.nodes[index].children if c in needed] for index in needed}
    peaks: dict[int, int] = {}
    for index in sorted(needed, reverse=True):
        own_bytes = output_bytes[tree.nodes[index].block_index]
        ordered = sorted(children[index], key=lambda child: (peaks[child], child))
        children[index] = ordered
        peak = own_bytes
        for child in ordered:
            held = 0 if child == ordered[-1] else own_bytes
            peak = max(peak, own_bytes + output_bytes[tree.nodes[child].block_index], held + peaks[child])
        peaks[index] = peak
    peak_bytes = max(sum(held_bytes[root.block_index : root.block_index + 2]), peaks[root.index])
    if room.budget_bytes is not None and peak_bytes > room.budget_bytes:
        raise UsageError(
            f"--budget {room.budget_bytes}: {root.architecture} at {root.preprocessing.image_size} px holds "
            f"{peak_bytes} bytes of activations for a single item; give at least that much"
        )
    batch_items = usual_batch_items(root.architecture, root.preprocessing.image_size, room.device)
    num_streams = room.num_streams
    if room.budget_bytes is not None:
        num_streams = min(num_streams, room.budget_bytes // peak_bytes)
        batch_items = min(batch_items, room.budget_bytes // peak_bytes // num_streams)
    steps = _depth_first(root.index, children)
    return Walk(root.index, steps, batch_items, num_streams, num_streams * batch_items * peak_bytes)


def held_by_steps(tree: PrefixTree, walk: Walk, value_bytes: int) -> Held:
    """Return what one item holds during and after each step of the walk."""
    root = tree.nodes[walk.root]
    held_bytes = _activation_bytes(root.architecture, root.preprocessing.image_size, value_bytes)
    held = {root.parent: held_bytes[root.block_index]}
    running, after = [], []
    for step in walk.steps:
        node = tree.nodes[step.node]
        input_bytes, output_bytes = held[node.parent], held_bytes[node.block_index + 1]
        running.append(sum(held.values()) + output_bytes + WORKING_SHARE * (input_bytes + output_bytes))
        if step.frees_input:
            del held[node.parent]
        if step.keeps_output:
            held[step.node] = output_bytes
        after.append(sum(held.values()))
    return Held(tuple(running), tuple(after))


def usual_batch_items(architecture: str, image_size: int, device: str) -> int:
    """Return the items per batch where no budget binds: see `BATCH_ACTIVATION_BYTES`.

    It depends on nothing else, so methods with and without sharing run the same batches and get the same features. On
    a CPU ResNet-18 at 224 px runs within 8 % of its best speed in batches of 8 to 32, and slower in larger ones;
    ResNet-50 takes one and a half times as long per image alone as in batches of 4.
    """
    largest_bytes = max(map(sum, itertools.pairwise(_activation_bytes(architecture, image_size, 4))))
    num_items = max(
        BATCH_ACTIVATION_BYTES[device] // largest_bytes,
        min(ENOUGH_BATCH_ITEMS, ENOUGH_BATCH_ACTIVATION_BYTES // largest_bytes),
    )
    return min(MAX_BATCH_ITEMS, max(1, num_items))


def _activation_bytes(architecture: str, image_size: int, value_bytes: int) -> list[int]:
    """Return the bytes of one item's input, pixels or tokens of 8 bytes, and of each block's output."""
    outputs = [shape.output_bytes * value_bytes // 4 for shape in block_shapes(architecture, image_size)]
    is_text = text_facts(architecture) is not None
    return [8 * image_size if is_text else 3 * image_size**2 * value_bytes, *outputs]


def _depth_first(root: int, children: dict[int, list[int]]) -> tuple[WalkStep, ...]:
    steps: list[WalkStep] = []
    stack = [(root, True)]
    while stack:
        node, is_last_child = stack.pop()
        steps.append(WalkStep(node, frees_input=is_last_child, keeps_output=bool(children[node])))
        siblings = children[node]
        stack.extend((child, child == siblings[-1]) for child in reversed(siblings))
    return tuple(steps)
