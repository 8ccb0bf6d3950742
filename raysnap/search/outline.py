"""A prefix tree as people can take it in: chains of blocks as one branch, the small branches of many as one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raysnap.anatomy import block_shapes
from raysnap.search.tree import PrefixTree, find_misfit

MAX_BRANCHES = 6
MAX_DEPTH = 7


@dataclass(frozen=True)
class Branch:
    """A chain of blocks that the same candidates share, or what was folded of a branch's ends.

    Attributes:
        architecture: empty where branches are folded.
        first_block, last_block: names of its ends, empty where branches are folded; likewise their digests.
        num_blocks: how many blocks it has, all those of folded branches counted.
        num_candidates: how many need it.
        names: of candidates whose last block is its last, not those that are folded.
        flops_share: its own blocks' part of the FLOPs of the whole tree, for an item.
        num_folded: how many branches this line stands for; 0 for a branch.
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


def outline(tree: PrefixTree) -> tuple[Branch, ...]:
    """The tree's branches, those with most candidates first; candidates that can't run are left out."""
    fits = [find_misfit(candidate) is None for candidate in tree.candidates]
    num_below = [0] * len(tree.nodes)
    flops = [0] * len(tree.nodes)
    for node in reversed(tree.nodes):
        num_below[node.index] += sum(fits[number] for number in node.candidates)
        if node.parent is not None:
            num_below[node.parent] += num_below[node.index]
        if num_below[node.index]:
            shapes = block_shapes(node.architecture, node.preprocessing.image_size)
            flops[node.index] = shapes[node.block_index].flops
    return _Folder(tree, fits, num_below, flops).fold([root.index for root in tree.roots], depth=0)


class _Folder:
    def __init__(self, tree: PrefixTree, fits: list[bool], num_below: list[int], flops: list[int]):
        self._tree = tree
        self._fits = fits
        self._num_below = num_below
        self._flops = flops
        self._total_flops = sum(flops)

    def fold(self, tops: Sequence[int], depth: int) -> tuple[Branch, ...]:
        """The branches that begin at these nodes; all but the largest in one."""
        tops = sorted((top for top in tops if self._num_below[top]), key=lambda top: (-self._num_below[top], top))
        num_shown = 0 if depth == MAX_DEPTH else len(tops) if len(tops) <= MAX_BRANCHES else MAX_BRANCHES - 1
        shown = tuple(self._branch(top, depth) for top in tops[:num_shown])
        return (*shown, self._rest(tops[num_shown:])) if tops[num_shown:] else shown

    def _branch(self, top: int, depth: int) -> Branch:
        nodes = self._tree.nodes
        chain = [nodes[top]]
        while len(chain[-1].children) == 1 and not chain[-1].candidates:
            chain.append(nodes[chain[-1].children[0]])
        first, last = chain[0], chain[-1]
        return Branch(
            architecture=first.architecture,
            first_block=first.block.name,
            last_block=last.block.name,
            first_digest=first.block.digest,
            last_digest=last.block.digest,
            num_blocks=len(chain),
            num_candidates=self._num_below[top],
            names=tuple(self._tree.candidates[number].name for number in last.candidates if self._fits[number]),
            flops_share=sum(self._flops[node.index] for node in chain) / self._total_flops,
            branches=self.fold(last.children, depth + 1),
        )

    def _rest(self, tops: Sequence[int]) -> Branch:
        nodes = self._tree.nodes
        below, stack = [], list(tops)
        while stack:
            below.append(stack.pop())
            stack.extend(nodes[below[-1]].children)
        num_candidates = sum(self._num_below[top] for top in tops)
        share = sum(self._flops[index] for index in below) / self._total_flops
        return Branch("", "", "", "", "", len(below), num_candidates, (), share, num_folded=len(tops))
