"""Arrange candidates as a prefix tree: snapshots that begin with the same blocks share the nodes of those blocks.

A node is (parent, block structure, block digest). Heads are left out, as a search replaces them by its probe. Without
sharing, each candidate has its own chain: that is how the methods that share nothing are expressed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from raysnap.errors import ArchitectureError
from raysnap.models.block_facts import block_shapes, text_facts
from raysnap.store.manifest import BlockEntry
from raysnap.store.preprocessing import AnyPreprocessing


@dataclass(frozen=True)
class Candidate:
    """A snapshot that a search may rank.

    Attributes:
        snapshot: the snapshot's id.
        name: the name that people know it by.
        preprocessing: how items become its input.
        blocks: its blocks from the stem to the last body block.
        is_base: whether it derives from no other snapshot.
    """

    snapshot: str
    name: str
    architecture: str
    preprocessing: AnyPreprocessing
    blocks: tuple[BlockEntry, ...]
    is_base: bool = False


@dataclass(frozen=True)
class Node:
    """One block that runs once per item for all candidates below it.

    Attributes:
        index: position in the tree's `nodes`.
        parent: index of the node whose output is this block's input; None for a stem, whose input is pixels or
            tokens.
        block_index: position of the block in its architecture.
        children: indices of the nodes that take this block's output.
        candidates: indices of the candidates whose features this block's output is.
    """

    index: int
    parent: int | None
    architecture: str
    preprocessing: AnyPreprocessing
    block_index: int
    block: BlockEntry
    children: tuple[int, ...] = ()
    candidates: tuple[int, ...] = ()


@dataclass(frozen=True)
class PrefixTree:
    """A forest of nodes, parents before children, over `candidates`.

    Attributes:
        ends: for each candidate the index of the node whose output is its features; None for one without blocks.
    """

    candidates: tuple[Candidate, ...]
    nodes: tuple[Node, ...]
    ends: tuple[int | None, ...]

    def end_of(self, candidate: int) -> int:
        """Return the index of the node whose output is the candidate's features."""
        end = self.ends[candidate]
        assert end is not None, "a candidate without blocks is a misfit"
        return end

    @cached_property
    def roots(self) -> tuple[Node, ...]:
        """The nodes whose input is pixels or tokens."""
        return tuple(node for node in self.nodes if node.parent is None)


def find_misfit(candidate: Candidate) -> str | None:
    """Return why the candidate can't run, judging by its manifest; None when it can."""
    try:
        facts, num_tokens = text_facts(candidate.architecture), candidate.preprocessing.image_size
        if facts is not None and facts.longest is not None and num_tokens > facts.longest:
            return f"snapshot {candidate.snapshot}: expected at most {facts.longest} tokens, found {num_tokens}"
        shapes = block_shapes(candidate.architecture, candidate.preprocessing.image_size)
    except ArchitectureError as error:
        return str(error)
    expected, found = [shape.name for shape in shapes[:-1]], [block.name for block in candidate.blocks]
    if expected != found:
        return f"snapshot {candidate.snapshot}: expected {candidate.architecture}'s blocks {expected}, found {found}"
    return None


def build_tree(candidates: Sequence[Candidate], *, sharing: bool) -> PrefixTree:
    """Build the prefix tree of the candidates, or one chain per candidate where `sharing` is off."""
    made: list[tuple[int | None, Candidate, int]] = []
    children: list[list[int]] = []
    ending: list[list[int]] = []
    ends: list[int | None] = []
    known: dict[tuple[object, BlockEntry], int] = {}
    for number, candidate in enumerate(candidates):
        above: object = (None if sharing else number, candidate.architecture, candidate.preprocessing)
        parent = None
        for block_index, block in enumerate(candidate.blocks):
            index = known.setdefault((above, block), len(made))
            if index == len(made):
                made.append((parent, candidate, block_index))
                children.append([])
                ending.append([])
                if parent is not None:
                    children[parent].append(index)
            above = parent = index
        ends.append(parent)
        if parent is not None:
            ending[parent].append(number)
    nodes = (
        Node(
            index=index,
            parent=parent,
            architecture=candidate.architecture,
            preprocessing=candidate.preprocessing,
            block_index=block_index,
            block=candidate.blocks[block_index],
            children=tuple(children[index]),
            candidates=tuple(ending[index]),
        )
        for index, (parent, candidate, block_index) in enumerate(made)
    )
    return PrefixTree(tuple(candidates), tuple(nodes), tuple(ends))


def needed_nodes(tree: PrefixTree, kept: Iterable[int], given: Collection[int] = ()) -> set[int]:
    """Return the indices of the nodes that the `kept` candidates need, given the outputs of the `given` nodes."""
    needed: set[int] = set()
    for number in kept:
        index = tree.ends[number]
        while index is not None and index not in needed and index not in given:
            needed.add(index)
            index = tree.nodes[index].parent
    return needed


def candidates_below(tree: PrefixTree, node: Node) -> set[int]:
    """Return the indices of all candidates that need this node."""
    below: set[int] = set()
    stack = [node]
    while stack:
        top = stack.pop()
        below.update(top.candidates)
        stack.extend(tree.nodes[child] for child in top.children)
    return below
