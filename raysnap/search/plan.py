"""What a search will do, as frozen data made before any tensor is in hand.

A method is a list of rungs; the candidates that survive a rung decide which nodes the next one needs, so each rung's
walk over the tree is planned when its candidates are known. One executor runs every plan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

from raysnap.anatomy import block_shapes
from raysnap.choices import Method
from raysnap.errors import UsageError
from raysnap.search.tree import Node, PrefixTree

BATCH_ACTIVATION_BYTES = 16 * 2**20
MAX_BATCH_ITEMS = 256

SHARING_METHODS = ("alsatian", "shared")
HALVING_METHODS = ("shift", "alsatian")


@dataclass(frozen=True)
class Rung:
    """One round: the train items it adds, and how many candidates it keeps for the next."""

    train_start: int
    train_stop: int
    num_kept: int


@dataclass(frozen=True)
class Step:
    """Running one node's block on the batch at hand.

    Attributes:
        node: index of the node.
        frees_input: whether its input is let go afterwards: it is the last child to run.
        keeps_output: whether children of it run later in the walk.
    """

    node: int
    frees_input: bool
    keeps_output: bool


@dataclass(frozen=True)
class Walk:
    """A depth-first walk over one root's nodes, made once for every batch of items.

    Attributes:
        steps: in the order that holds the fewest activation bytes at once.
        batch_items: items per batch.
        peak_activation_bytes: the most bytes of activations held at once, inputs and outputs of the running block
            included, the block's own working memory not.
    """

    root: int
    steps: tuple[Step, ...]
    batch_items: int
    peak_activation_bytes: int


def shares_prefixes(method: Method) -> bool:
    """Whether the method runs a block that several candidates begin with only once."""
    return method in SHARING_METHODS


def plan_rungs(method: Method, num_candidates: int, num_train: int) -> tuple[Rung, ...]:
    """The rounds of a method.

    Halving is as published for SHiFT and Alsatian: K = ceil(log2 N) rungs, the first with ceil(T / 2^K) of the T train
    items, each next one with twice as many, the last with all that is left; the upper half (rounded down, at least
    one) stays. With fewer items than that needs there are fewer rungs.
    """
    if method not in HALVING_METHODS:
        return (Rung(0, num_train, num_candidates),)
    num_rungs = max(1, math.ceil(math.log2(num_candidates)))
    num_items = math.ceil(num_train / 2**num_rungs)
    rungs, start, num_kept = [], 0, num_candidates
    for _ in range(num_rungs):
        stop = min(num_train, start + num_items)
        num_kept = max(1, num_kept // 2)
        rungs.append(Rung(start, stop, num_kept))
        start, num_items = stop, num_items * 2
        if start == num_train:
            break
    rungs[-1] = Rung(rungs[-1].train_start, num_train, rungs[-1].num_kept)
    return tuple(rungs)


def plan_walk(tree: PrefixTree, root: Node, needed: Collection[int], budget_bytes: int | None) -> Walk:
    """The walk over the `needed` nodes below `root` that holds the fewest bytes of activations at once.

    A node's output is held until its last child has run, so the child whose own subtree needs the most goes last.

    Raises:
        UsageError: not even one item fits the budget.
    """
    shapes = block_shapes(root.architecture, root.preprocessing.image_size)
    input_bytes = 4 * 3 * root.preprocessing.image_size**2
    children = {index: [c for c in tree.nodes[index].children if c in needed] for index in needed}
    peaks: dict[int, int] = {}
    below = [node for node in reversed(tree.nodes) if node.index in needed]
    for node in below:
        output_bytes = shapes[node.block_index].output_bytes
        ordered = sorted(children[node.index], key=lambda child: (peaks[child], child))
        children[node.index] = ordered
        peak = output_bytes
        for child in ordered:
            child_bytes = shapes[tree.nodes[child].block_index].output_bytes
            held = 0 if child == ordered[-1] else output_bytes
            peak = max(peak, output_bytes + child_bytes, held + peaks[child])
        peaks[node.index] = peak
    peak_bytes = max(input_bytes + shapes[0].output_bytes, peaks[root.index])
    if budget_bytes is not None and peak_bytes > budget_bytes:
        raise UsageError(
            f"--budget {budget_bytes}: {root.architecture} at {root.preprocessing.image_size} px holds {peak_bytes} "
            "bytes of activations for a single item; give at least that much"
        )
    batch_items = usual_batch_items(root.architecture, root.preprocessing.image_size)
    if budget_bytes is not None:
        batch_items = min(batch_items, budget_bytes // peak_bytes)
    return Walk(root.index, _depth_first(root.index, children), batch_items, batch_items * peak_bytes)


def usual_batch_items(architecture: str, image_size: int) -> int:
    """Items per batch where no budget binds: as many as keep a block's input and output within a CPU's cache.

    It depends on nothing else, so methods with and without sharing run the same batches and get the same features.
    """
    shapes = block_shapes(architecture, image_size)
    outputs = [4 * 3 * image_size**2, *(shape.output_bytes for shape in shapes)]
    largest_bytes = max(before + after for before, after in itertools.pairwise(outputs))
    return min(MAX_BATCH_ITEMS, max(1, BATCH_ACTIVATION_BYTES // largest_bytes))


def _depth_first(root: int, children: dict[int, list[int]]) -> tuple[Step, ...]:
    steps = []
    stack = [(root, True)]
    while stack:
        node, is_last_child = stack.pop()
        steps.append(Step(node, frees_input=is_last_child, keeps_output=bool(children[node])))
        siblings = children[node]
        stack.extend((child, child == siblings[-1]) for child in reversed(siblings))
    return tuple(steps)
