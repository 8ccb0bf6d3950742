"""How much a search computes, counted from its tree and rungs alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from raysnap.models.block_facts import block_shapes
from raysnap.search.plan.rungs import Rung
from raysnap.search.plan.tree import PrefixTree, keep_candidates


def image_forwards(tree: PrefixTree, rungs: Sequence[Rung], entrants: Sequence[Collection[int]]) -> float:
    """Images that are run through a whole model, or through parts that amount to one by their FLOPs.

    A block counts as its part of its own model's FLOPs from stem to last body block; heads don't run in a search.

    Args:
        entrants: the candidates that are still in, by rung.
    """
    total = 0.0
    for rung, candidates in zip(rungs, entrants, strict=True):
        num_items = rung.train_stop - rung.train_start + rung.test_stop - rung.test_start
        total += num_items * whole_models(tree, candidates)
    return total


def whole_models(tree: PrefixTree, candidates: Collection[int]) -> float:
    """How many whole models the nodes that the candidates need amount to, by FLOPs."""
    total = 0.0
    for index in keep_candidates(tree, candidates):
        node = tree.nodes[index]
        shapes = block_shapes(node.architecture, node.preprocessing.image_size)
        total += shapes[node.block_index].flops / sum(shape.flops for shape in shapes[:-1])
    return total
