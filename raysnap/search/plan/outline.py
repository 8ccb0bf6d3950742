"""Outline a prefix tree for people: each chain of blocks as one branch, and only the largest of many branches."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from raysnap.models.block_facts import block_shapes
from raysnap.search.plan.tree import Node, PrefixTree, find_misfit

MAX_BRANCHES = 40


@dataclass(frozen=True)
class Branch:
    """A chain of blocks that the same candidates share, or several branches folded into one.

    Attributes:
        architecture: empty where branches are folded.
        first_block, last_block: names of its ends, empty where branches are folded; likewise their digests.
        num_blocks: how many blocks it has; where branches are folded, all below them.
        num_candidates: how many need it.
        names: of candidates whose last block is its last; empty where branches are folded.
        flops_share: the part of the whole tree's FLOPs per item that it and all branches below it take.
        num_folded: how many branches are folded into this one; 0 for a branch.
    """

    architecture: str
    first_block: str
    last_block: str
    first_digest: str
    last_digest: str
    num_blocks: int
    num_candidates: int
    names: tuple[str, ...]
    flops_share: float
    num_folded: int = 0
    branches: tuple[Branch, ...] = ()


def outline(tree: PrefixTree, max_branches: int = MAX_BRANCHES) -> tuple[Branch, ...]:
    """Return the tree's branches, those with most candidates first; candidates that can't run are left out.

    Of more than `max_branches`, those with most candidates are kept and the others folded in their place.
    """
    return _Outline(tree, max_branches).branches([root.index for root in tree.roots])


class _Outline:
    def __init__(self, tree: PrefixTree, max_branches: int):
        self._tree = tree
        self._fits = [find_misfit(candidate) is None for candidate in tree.candidates]
        self._num_candidates = [0] * len(tree.nodes)
        self._num_blocks = [1] * len(tree.nodes)
        self._flops = [0] * len(tree.nodes)
        for node in reversed(tree.nodes):
            index = node.index
            self._num_candidates[index] += sum(self._fits[number] for number in node.candidates)
            if self._num_candidates[index]:
                shapes = block_shapes(node.architecture, node.preprocessing.image_size)
                self._flops[index] += shapes[node.block_index].flops
            if node.parent is not None:
                self._num_candidates[node.parent] += self._num_candidates[index]
                self._num_blocks[node.parent] += self._num_blocks[index]
                self._flops[node.parent] += self._flops[index]
        self._total_flops = sum(self._flops[root.index] for root in tree.roots)
        self._is_shown = self._choose(max_branches)

    def _choose(self, max_branches: int) -> set[int]:
        """Choose the branches to show, by their first nodes."""
        shown: set[int] = set()
        waiting = [(-self._num_candidates[root.index], root.index) for root in self._tree.roots]
        heapq.heapify(waiting)
        while waiting and len(shown) < max_branches:
            _, top = heapq.heappop(waiting)
            shown.add(top)
            for child in self._chain(top)[-1].children:
                heapq.heappush(waiting, (-self._num_candidates[child], child))
        return shown

    def _chain(self, top: int) -> list[Node]:
        nodes = self._tree.nodes
        chain = [nodes[top]]
        while len(chain[-1].children) == 1 and not chain[-1].candidates:
            chain.append(nodes[chain[-1].children[0]])
        return chain

    def branches(self, tops: Sequence[int]) -> tuple[Branch, ...]:
        """Return the branches that begin at these nodes."""
        tops = sorted((top for top in tops if self._num_candidates[top]), key=lambda top: -self._num_candidates[top])
        folded = [top for top in tops if top not in self._is_shown]
        shown = tuple(self._branch(top) for top in tops if top in self._is_shown)
        return (*shown, self._fold(folded)) if folded else shown

    def _branch(self, top: int) -> Branch:
        chain = self._chain(top)
        first, last = chain[0], chain[-1]
        return Branch(
            architecture=first.architecture,
            first_block=first.block.name,
            last_block=last.block.name,
            first_digest=first.block.digest,
            last_digest=last.block.digest,
            num_blocks=len(chain),
            num_candidates=self._num_candidates[top],
            names=tuple(self._tree.candidates[number].name for number in last.candidates if self._fits[number]),
            flops_share=self._flops[top] / self._total_flops,
            branches=self.branches(last.children),
        )

    def _fold(self, tops: Sequence[int]) -> Branch:
        num_blocks, num_candidates, flops = (
            sum(counts[top] for top in tops) for counts in (self._num_blocks, self._num_candidates, self._flops)
        )
        share = flops / self._total_flops
        return Branch("", "", "", "", "", num_blocks, num_candidates, (), share, num_folded=len(tops))
