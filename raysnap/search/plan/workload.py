"""Count how much a search computes, from its tree and rungs alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate

from raysnap.search.plan.costs import kind_of, model_share
from raysnap.search.plan.rungs import Rung
from raysnap.search.plan.tree import PrefixTree, needed_nodes


def image_forwards(tree: PrefixTree, rungs: Sequence[Rung], entrants: Sequence[Collection[int]]) -> float:
    """Count the images that run through whole models; a block counts as its share of its own model's FLOPs.

    A model is counted from its stem to its last body block, as heads don't run in a search.

    Args:
        entrants: the candidates that enter each rung.
    """
    total = 0.0
    for rung, candidates in zip(rungs, entrants, strict=True):
        total += rung.num_items * whole_models(tree, candidates)
    return total


def whole_models(tree: PrefixTree, candidates: Collection[int]) -> float:
    """Return how many whole models, by FLOPs, the nodes amount to that the candidates need."""
    return sum(model_share(kind_of(tree.nodes[index])) for index in needed_nodes(tree, candidates))


def models_of_first(tree: PrefixTree, candidates: Sequence[int]) -> list[float]:
    """Return how many whole models the first of these candidates need, for each number of them."""
    needed: set[int] = set()
    added = []
    for number in candidates:
        new = needed_nodes(tree, [number], needed)
        added.append(sum(model_share(kind_of(tree.nodes[index])) for index in new))
        needed |= new
    return list(accumulate(added))
