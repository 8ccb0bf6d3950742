"""Plan which blocks a search holds while it walks, and when it reads them, within a bound on memory.

Where all blocks of a walk fit, each is read once and stays. Otherwise the walk is cut into stages: some of its steps,
run on all batches of a group before the next steps, so that each block is read once per group. Between two stages the
group's activations at the cut are held, so cuts lie where these are small, and groups are as large as fits. Which
blocks stay while others are read follows from the sequence, which is known: what is needed again last goes first
(Belady 1966, doi 10.1147/sj.52.0078). Prefixes are never run again instead of holding their outputs: where outputs are
large, blocks have few bytes and many operations, and take longer to run again than others take to read again.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from raysnap.errors import UsageError
from raysnap.search.plan.costs import BlockKey, block_key
from raysnap.search.plan.tree import Node, PrefixTree
from raysnap.search.plan.walk import Held, Room, Walk, held_by_steps, plan_walk

# The largest stages tried, as parts of the memory for blocks and activations. Small ones begin to run after less
# reading and leave room to read ahead; large ones wait less often for the last batch of a group.
STAGE_PARTS = (4, 8, 16, 32)


@dataclass(frozen=True)
class Bound:
    """What a search may hold in memory, and what it holds other than blocks and activations.

    Attributes:
        memory_bytes: bound on all that it holds; None is no limit.
        block_bytes: bytes of each block, ready to run.
        reading_bytes: bytes that readers hold in addition while they make blocks ready.
        walking_bytes: bytes of features and pixels while blocks run.
        resting_bytes: bytes of features and their copies while probes are fitted.
    """

    memory_bytes: int | None
    block_bytes: Mapping[BlockKey, int]
    reading_bytes: int = 0
    walking_bytes: int = 0
    resting_bytes: int = 0

    @property
    def walking_room(self) -> float:
        """Bytes for blocks and activations while blocks run."""
        return math.inf if self.memory_bytes is None else self.memory_bytes - self.reading_bytes - self.walking_bytes

    @property
    def resting_room(self) -> float:
        """Bytes for blocks while probes are fitted."""
        return math.inf if self.memory_bytes is None else self.memory_bytes - self.resting_bytes


@dataclass(frozen=True)
class Stage:
    """Some steps of a walk, run on some batches on which the steps before have run.

    Attributes:
        walk: position in the schedule's `walks`.
        steps: positions in the walk's steps.
        batches: positions in the walk's batches.
        dropped: blocks that leave memory before it begins.
        fetched: nodes whose blocks are read from then on, in this order: its own, then those of later stages.
        peak_bytes: the most bytes held during it.
    """

    walk: int
    steps: range
    batches: range
    dropped: tuple[BlockKey, ...]
    fetched: tuple[int, ...]
    peak_bytes: int


@dataclass(frozen=True)
class Schedule:
    """All walks of a rung, and when which blocks are in memory.

    Attributes:
        batches: of each walk, as ranges of items.
        stages: in the order in which they run.
        dropped: blocks that leave memory after the last one.
        peak_bytes: the most bytes held at once.
    """

    walks: tuple[Walk, ...]
    batches: tuple[tuple[range, ...], ...]
    stages: tuple[Stage, ...]
    dropped: tuple[BlockKey, ...]
    peak_bytes: int


def plan_schedule(
    tree: PrefixTree,
    tops: Mapping[int, Collection[int]],
    num_items: int,
    room: Room,
    bound: Bound,
    held: Collection[BlockKey] = (),
    *,
    is_last: bool = False,
) -> Schedule:
    """Plan a walk from each of the `tops` over the nodes given for it, one after the other, within the bound.

    Args:
        held: blocks in memory.
        is_last: whether no walk follows; else as many blocks as fit are kept, first those of most candidates.

    Raises:
        UsageError: not even one item fits.
    """
    walks: list[Walk] = []
    batches: list[tuple[range, ...]] = []
    parts: list[_Part] = []
    for top, nodes in tops.items():
        walk, split = _fit(tree, tree.nodes[top], nodes, num_items, room, bound)
        parts += _cut_walk(len(walks), tree, walk, split, room, bound)
        walks.append(walk)
        batches.append(split)
    placing = _Placing(tree, walks, parts, bound, held, is_last=is_last)
    stages = tuple(placing.place(number) for number in range(len(parts)))
    dropped, resting_bytes = placing.place_rest()
    peak_bytes = max([resting_bytes, *(stage.peak_bytes for stage in stages)])
    return Schedule(tuple(walks), tuple(batches), stages, dropped, peak_bytes)


def _fit(
    tree: PrefixTree, top: Node, nodes: Collection[int], num_items: int, room: Room, bound: Bound
) -> tuple[Walk, tuple[range, ...]]:
    """Return a walk and its batches of which one fits beside any one block.

    Where they have to, fewer streams run the same batches, which changes no bit of the features; if that isn't enough,
    batches are smaller.
    """
    walk = plan_walk(tree, top, nodes, room)
    activation_room = bound.walking_room - max(bound.block_bytes[block_key(tree.nodes[index])] for index in nodes)
    item_bytes = max(held_by_steps(tree, walk, room.value_bytes).running)
    batches = _split(walk, num_items)
    batch_bytes = item_bytes * max(map(len, batches), default=1)
    if batch_bytes <= activation_room:
        return _shrink(walk, int(min(walk.num_streams, activation_room // batch_bytes)), walk.batch_items), batches
    if item_bytes > activation_room:
        found_bytes = bound.memory_bytes or 0
        raise UsageError(
            f"memory: {top.architecture} at {top.preprocessing.image_size} px takes "
            f"{found_bytes + item_bytes - int(activation_room)} bytes for {num_items} items one by one, found "
            f"{found_bytes} (--memory, or what is free); give at least that much or search with fewer items"
        )
    walk = _shrink(walk, 1, int(activation_room // item_bytes))
    return walk, _split(walk, num_items)


def _shrink(walk: Walk, num_streams: int, batch_items: int) -> Walk:
    item_bytes = walk.peak_activation_bytes // (walk.num_streams * walk.batch_items)
    peak_bytes = num_streams * batch_items * item_bytes
    return replace(walk, num_streams=num_streams, batch_items=batch_items, peak_activation_bytes=peak_bytes)


def _split(walk: Walk, num_items: int) -> tuple[range, ...]:
    return tuple(range(batch[0], batch[-1] + 1) for batch in walk.split(range(num_items)))


@dataclass(frozen=True)
class _Part:
    """A stage before its blocks are placed: steps, batches, and the activations held meanwhile."""

    walk: int
    steps: range
    batches: range
    activation_bytes: int


def _cut_walk(
    walk_index: int, tree: PrefixTree, walk: Walk, batches: Sequence[range], room: Room, bound: Bound
) -> Iterator[_Part]:
    """Yield the parts of a walk, in order: one after the other on the first group of batches, then on the next."""
    held = held_by_steps(tree, walk, room.value_bytes)
    keys = [block_key(tree.nodes[step.node]) for step in walk.steps]
    own_bytes = [bound.block_bytes[key] for key in keys]
    batch_items = max(map(len, batches), default=0)

    def activation_bytes(edges: Sequence[int], num_batches: int) -> int:
        return max(
            _activation_bytes(held, steps, num_batches, walk.num_streams) * batch_items for steps in _ranges(edges)
        )

    edges: tuple[int, ...] = (0, len(keys))
    whole_bytes = sum(dict(zip(keys, own_bytes, strict=True)).values()) + activation_bytes(edges, len(batches))
    if whole_bytes <= bound.walking_room:
        # A block that can't be used is found by the first batches; the others leave out what only it needs.
        groups = [range(min(walk.num_streams, len(batches))), range(walk.num_streams, len(batches))]
    else:
        edges, group_batches = _choose_cut(own_bytes, held.after, len(batches), activation_bytes, bound.walking_room)
        groups = [range(first, first + group_batches) for first in range(0, len(batches), group_batches)]
    for group in groups:
        for steps in _ranges(edges):
            within = range(group.start, min(group.stop, len(batches)))
            held_bytes = _activation_bytes(held, steps, len(within), walk.num_streams) * batch_items
            if within:
                yield _Part(walk_index, steps, within, held_bytes)


def _activation_bytes(held: Held, steps: range, num_batches: int, num_streams: int) -> int:
    """Return what batches of one item hold while these steps run on them, as many at once as there are streams."""
    before = held.after[steps.start - 1] if steps.start else 0
    waiting_bytes = max(before, held.after[steps.stop - 1])
    num_running = min(num_batches, num_streams)
    return num_running * max(held.running[steps.start : steps.stop]) + (num_batches - num_running) * waiting_bytes


def _choose_cut(
    own_bytes: Sequence[int],
    after: Sequence[int],
    num_batches: int,
    activation_bytes: Callable[[Sequence[int], int], int],
    room: float,
) -> tuple[tuple[int, ...], int]:
    """Choose where to cut a walk, and how many batches go together: as reads the fewest bytes, in the fewest stages.

    Stages that leave no room to read the next one's blocks are taken only where no others fit.
    """
    total_bytes, largest_bytes = sum(own_bytes), max(own_bytes)
    sizes = {max(largest_bytes, int(room // part)) for part in STAGE_PARTS} | {largest_bytes}
    for num_held in (2, 1):
        found: list[tuple[float, int, tuple[int, ...], int]] = []
        for stage_bytes in sizes:
            edges = _cut_low(own_bytes, after, stage_bytes)
            left = room - num_held * stage_bytes
            counts = range(1, num_batches + 1)
            most = bisect_left(counts, True, key=lambda count: activation_bytes(edges, count) > left)
            for num_groups in _doubled(math.ceil(num_batches / most), num_batches) if most else ():
                group_batches = math.ceil(num_batches / num_groups)
                kept_bytes = min(total_bytes, left - activation_bytes(edges, group_batches))
                read_bytes = total_bytes + (num_groups - 1) * (total_bytes - kept_bytes)
                found.append((read_bytes, len(edges), edges, group_batches))
        if found:
            _, _, edges, group_batches = min(found)
            return edges, group_batches
    raise AssertionError("one batch fits beside any one block")


def _doubled(first: int, last: int) -> Iterator[int]:
    """Yield `first`, twice that, and so on, and then `last`."""
    while first < last:
        yield first
        first *= 2
    yield last


def _cut_low(own_bytes: Sequence[int], after: Sequence[int], stage_bytes: int) -> tuple[int, ...]:
    """Cut steps into stages of at most so many bytes, so that the most held at a cut is the least possible."""
    levels = sorted(set(after))

    def edges_at(level: int) -> tuple[int, ...] | None:
        edges, taken, allowed = [0], 0, 0
        for step, own in enumerate(own_bytes):
            if taken + own > stage_bytes:
                if allowed == edges[-1]:
                    return None
                edges.append(allowed)
                taken = sum(own_bytes[allowed:step])
                if taken + own > stage_bytes:
                    return None
            taken += own
            if after[step] <= level:
                allowed = step + 1
        return (*edges, len(own_bytes))

    lowest = bisect_left(levels, True, key=lambda level: edges_at(level) is not None)
    edges = edges_at(levels[lowest])
    assert edges is not None, "any cut is allowed at the highest level"
    return edges


def _ranges(edges: Sequence[int]) -> Iterator[range]:
    return (range(start, stop) for start, stop in itertools.pairwise(edges))


class _Placing:
    """Places blocks in memory, stage by stage."""

    def __init__(
        self,
        tree: PrefixTree,
        walks: Sequence[Walk],
        parts: Sequence[_Part],
        bound: Bound,
        held: Collection[BlockKey],
        *,
        is_last: bool,
    ):
        self._parts = parts
        self._bound = bound
        self._is_last = is_last
        self._rooms = [bound.walking_room - part.activation_bytes for part in parts]
        self._nodes: list[dict[BlockKey, int]] = []
        self._uses: dict[BlockKey, list[int]] = defaultdict(list)
        self._num_below: dict[BlockKey, int] = defaultdict(int)
        below = _count_below(tree)
        for number, part in enumerate(parts):
            own: dict[BlockKey, int] = {}
            for step in part.steps:
                node = walks[part.walk].steps[step].node
                own.setdefault(block_key(tree.nodes[node]), node)
                self._num_below[block_key(tree.nodes[node])] += below[node]
            self._nodes.append(own)
            for key in own:
                self._uses[key].append(number)
        self._held = set(held)
        self._held_bytes = sum(bound.block_bytes[key] for key in self._held)
        self._ahead = 0  # the blocks of all stages before this one have been fetched
        self._dropped: list[BlockKey] = []
        self._fetched: list[int] = []
        self._others: list[BlockKey] | None = None

    def place(self, number: int) -> Stage:
        """Return a stage: make room, fetch its blocks, then those of the next stages as far as there is room."""
        self._dropped, self._fetched, self._others = [], [], None
        if self._is_last:
            for key in self._nodes[number - 1] if number else tuple(self._held):
                if key in self._held and self._next_use(key, number) == math.inf:
                    self._drop(key)
        for key, node in self._nodes[number].items():
            self._fetch(key, node)
        while self._held_bytes > self._rooms[number]:
            key = self._rank_others(number).pop()
            self._ahead = int(min(self._ahead, self._next_use(key, number)))
            self._drop(key)
        self._fetch_ahead(number)
        part = self._parts[number]
        peak_bytes = self._bound.reading_bytes + self._bound.walking_bytes + part.activation_bytes + self._held_bytes
        return Stage(part.walk, part.steps, part.batches, tuple(self._dropped), tuple(self._fetched), peak_bytes)

    def place_rest(self) -> tuple[tuple[BlockKey, ...], int]:
        """Return the blocks to drop after the last stage, and the bytes that remain held."""
        self._dropped, self._others = [], None
        while self._held and (self._is_last or self._held_bytes > self._bound.resting_room):
            self._drop(self._rank_others(len(self._parts)).pop())
        return tuple(self._dropped), self._bound.resting_bytes + self._held_bytes

    def _fetch_ahead(self, number: int) -> None:
        """Fetch blocks of later stages, as far as they can stay; those of the next one in place of others.

        What else is dropped for them would be colder than blocks of many candidates, which the next rung needs again.
        """
        self._ahead = max(self._ahead, number + 1)
        room = min(self._rooms[number : self._ahead])
        while self._ahead < len(self._parts):
            room = min(room, self._rooms[self._ahead])
            for key, node in self._nodes[self._ahead].items():
                if key in self._held:
                    continue
                room_before = room - self._bound.block_bytes[key]
                if self._held_bytes > room_before and (
                    self._ahead > number + 1 or not self._make_room(number, room_before)
                ):
                    return
                self._fetch(key, node)
            self._ahead += 1

    def _make_room(self, number: int, room: float) -> bool:
        """Drop blocks until no more than `room` bytes are held; none, where those needed after `_ahead` don't do."""
        going: list[BlockKey] = []
        excess = self._held_bytes - room
        while excess > 0:
            others = self._rank_others(number)
            if len(going) == len(others) or self._next_use(others[-1 - len(going)], number) <= self._ahead:
                return False
            going.append(others[-1 - len(going)])
            excess -= self._bound.block_bytes[going[-1]]
        for key in going:
            self._rank_others(number).pop()
            self._drop(key)
        return True

    def _rank_others(self, number: int) -> list[BlockKey]:
        """Return the held blocks that the stage doesn't run; what goes first comes last.

        Of blocks that no stage runs again, the next rung will most likely need those of the most candidates.
        """
        if self._others is None:
            own = self._nodes[number] if number < len(self._nodes) else {}
            self._others = sorted(
                self._held - own.keys(), key=lambda key: (self._next_use(key, number), -self._num_below[key], key)
            )
        return self._others

    def _next_use(self, key: BlockKey, number: int) -> float:
        """Return the first stage from `number` on that runs the block."""
        uses = self._uses.get(key, ())
        position = bisect_left(uses, number)
        return uses[position] if position < len(uses) else math.inf

    def _fetch(self, key: BlockKey, node: int) -> None:
        if key not in self._held:
            self._held.add(key)
            self._held_bytes += self._bound.block_bytes[key]
            self._fetched.append(node)

    def _drop(self, key: BlockKey) -> None:
        self._held.remove(key)
        self._held_bytes -= self._bound.block_bytes[key]
        self._dropped.append(key)


def _count_below(tree: PrefixTree) -> list[int]:
    """Return for each node how many candidates need it."""
    num_below = [len(node.candidates) for node in tree.nodes]
    for node in reversed(tree.nodes):
        if node.parent is not None:
            num_below[node.parent] += num_below[node.index]
    return num_below
