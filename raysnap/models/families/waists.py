"""Find where a recorded forward can be cut: at waists, where one tensor is live, between modules of lists.

A list is two modules or more, numbered by their names, each of which takes and gives the only tensor that is live.
Where a model has none, such as VGG, each convolution begins a block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from raysnap.models.families.recording import Call, ModuleCall, Record, carry, is_layer, size_of

_WHOLE = ("stem", "embed", "downsample", "head", "classifier")
"""What the names of modules contain that are never taken apart: they begin or end a model, or a stage."""


@dataclass(frozen=True)
class Cut:
    """A block's beginning: the recorded call that it begins with, and the path of the module that it is named after."""

    start: int
    name: str


@dataclass
class Flow:
    """How values flow through a recorded forward.

    Attributes:
        is_data: for each value whether it is a tensor that depends on what the item contains.
        made_by: the call that gives each value.
        users: the calls that take each value.
        head_calls: those that take the tensors that have a row per class, and all that follow from them.
        carried: the mask of a text's tokens, which every block is given.
        owned: for each call the stored tensors of the model that it takes, those of what it needs included.
    """

    record: Record
    is_data: list[bool]
    made_by: dict[int, int]
    users: dict[int, list[int]]
    head_calls: set[int]
    owned: list[frozenset[str]]
    carried: int | None = None
    _live: dict[int, set[int]] = field(default_factory=dict)

    def is_body(self, index: int) -> bool:
        """Return whether a call is part of the stem or the body: it computes with the item, and not for the head."""
        call = self.record.calls[index]
        return index not in self.head_calls and any(self.is_data[value] for _, value in call.outputs)

    def live_before(self, start: int) -> set[int]:
        """Return the values that depend on the item, are there before a call, and are taken by it or a later one."""
        return self._live.get(start, set())


def trace_flow(record: Record, stored: Mapping[str, list[str]], per_class: frozenset[str]) -> Flow:
    """Return how values flow through a recorded forward.

    Args:
        stored: the names of the stored tensors below each path of the model, and of each tensor itself.
        per_class: the names of those that have a row per class.
    """
    is_data = [False] * len(record.numbers)
    is_data[record.item] = True
    made_by: dict[int, int] = {}
    users: dict[int, list[int]] = {}
    from_head = [False] * len(record.numbers)
    head_calls: set[int] = set()
    owned: list[frozenset[str]] = []
    carried = next((call.outputs[0][1] for call in record.calls if call.target is carry), None)
    for index, call in enumerate(record.calls):
        takes_data = call.target not in (size_of, carry) and any(is_data[value] for value in call.inputs)
        own = frozenset(name for place in _places(call) for name in stored.get(place, ()))
        own = own.union(*(owned[made_by[v]] for v in call.inputs if not is_data[v] and v in made_by))
        owned.append(own)
        if own & per_class or any(from_head[value] for value in call.inputs):
            head_calls.add(index)
        for value in call.inputs:
            users.setdefault(value, []).append(index)
        for _, value in call.outputs:
            made_by[value] = index
            is_data[value] = takes_data and not record.is_int[value]
            from_head[value] = index in head_calls
    flow = Flow(record, is_data, made_by, users, head_calls, owned, carried)
    _measure_lives(flow)
    return flow


def _places(call: Call) -> Iterator[str]:
    yield from call.owned
    if isinstance(call.target, str):
        yield call.target


def _measure_lives(flow: Flow) -> None:
    """Note for each call of the body which values are live before it; what the head takes stays live to the end."""
    record = flow.record
    body = [index for index in range(len(record.calls)) if flow.is_body(index)]
    end = len(record.calls)
    last_use: dict[int, int] = {}
    for value, users in flow.users.items():
        if flow.is_data[value] and flow.made_by.get(value, -1) not in flow.head_calls:
            own = [user for user in users if flow.is_body(user)]
            in_head = any(user in flow.head_calls for user in users)
            last_use[value] = end if in_head else max(own, default=-1)
    live: set[int] = {record.item}
    for index in body:
        live = {value for value in live if last_use.get(value, -1) >= index}
        flow._live[index] = set(live)
        live |= {value for _, value in record.calls[index].outputs if last_use.get(value, -1) > index}


def find_cuts(flow: Flow) -> list[Cut]:
    """Return where blocks begin, from the stem on, at most one per call; empty where there is no place to cut."""
    blocks = _blocks_in(flow, flow.record.root)
    if len(blocks) < 2:
        cuts = [Cut(_first(flow, call), call.path) for call in _convolutions(flow, flow.record.root)]
        return _from_stem(flow, cuts)
    cuts = [Cut(_first(flow, blocks[0]), blocks[0].path)]
    for before, block in pairwise(blocks):
        cuts.append(Cut(_next_body(flow, before.end), block.path))
    for call in _convolutions(flow, flow.record.root):
        shape = flow.record.numbers[call.call.outputs[0][1]]
        if call.start >= blocks[-1].end and len(shape) == 4 and min(shape[2:]) > 1:
            cuts.append(Cut(_first(flow, call), call.path))  # such as the last convolution of MobileNets
            break
    return _from_stem(flow, cuts)


def _from_stem(flow: Flow, cuts: list[Cut]) -> list[Cut]:
    """Return the cuts with the stem's; where nothing with weights comes before the first block, that is the stem."""
    if not cuts:
        return []
    before = (flow.owned[index] for index in range(cuts[0].start) if flow.is_body(index))
    first = _next_body(flow, 0)
    return [Cut(first, ""), *(cuts if any(before) else cuts[1:])]


def _blocks_in(flow: Flow, node: ModuleCall) -> list[ModuleCall]:
    """Return the calls of modules that are blocks, in order; empty where the module can't be taken apart."""
    children = [child for child in node.children if _num_matrices(child)]
    parts = [[] if _is_whole(child) else _blocks_in(flow, child) for child in children]
    inner = [_unwrapped(flow, child) for child in children]
    is_member = [_can_be_block(child) and _is_between_waists(flow, child) for child in inner]
    lists = Counter(_parent(child) for child, counts in zip(children, is_member, strict=True) if counts)
    has_parts = any(len(found) > 1 for found in parts)
    blocks: list[ModuleCall] = []
    for child, found, block, counts in zip(children, parts, inner, is_member, strict=True):
        if len(found) > 1:
            blocks += found
        elif counts and (has_parts or lists[_parent(child)] > 1):
            blocks.append(block)
    return blocks


def _unwrapped(flow: Flow, node: ModuleCall) -> ModuleCall:
    """Return what a sequence holds that holds one thing with weights."""
    while isinstance(node.module, nn.Sequential):
        inner = [child for child in node.children if _num_matrices(child)]
        if len(inner) != 1 or is_layer(inner[0].module) or not _is_between_waists(flow, inner[0]):
            break
        node = inner[0]
    return node


def _can_be_block(node: ModuleCall) -> bool:
    """Return whether a module is one of several by its name, and more than a layer with what belongs to it."""
    has_number = any(character.isdigit() for character in node.path.rpartition(".")[2])
    return has_number and _num_matrices(node) > 1 and not (_is_whole(node) or _has_layers_alone(node))


def _has_layers_alone(node: ModuleCall) -> bool:
    """Return whether a module is a sequence of layers, such as what halves a map before a stage."""
    inner = [child for child in node.children if _num_matrices(child)]
    return isinstance(node.module, nn.Sequential) and all(is_layer(child.module) for child in inner)


def _num_matrices(node: ModuleCall) -> int:
    """Return how many parameters of a module are matrices or kernels."""
    return sum(parameter.dim() > 1 for parameter in node.module.parameters())


def _is_whole(node: ModuleCall) -> bool:
    name = node.path.rpartition(".")[2].lower()
    return is_layer(node.module) or any(word in name for word in _WHOLE)


def _parent(node: ModuleCall) -> str:
    return node.path.rpartition(".")[0]


def _is_between_waists(flow: Flow, node: ModuleCall) -> bool:
    """Return whether a module is of the body, and one tensor is live before it and one after it."""
    body = [index for index in range(node.start, node.end) if flow.is_body(index)]
    if not body or any(index in flow.head_calls for index in range(node.start, node.end)):
        return False
    after = _next_body(flow, node.end)
    return len(flow.live_before(body[0])) == 1 and (after < 0 or len(flow.live_before(after)) == 1)


def _convolutions(flow: Flow, node: ModuleCall) -> Iterator[ModuleCall]:
    """Yield the calls of convolutions before which one tensor is live."""
    if isinstance(node.module, nn.Conv2d):
        if flow.is_body(node.start) and len(flow.live_before(_first(flow, node))) == 1:
            yield node
        return
    for child in node.children:
        yield from _convolutions(flow, child)


def _first(flow: Flow, node: ModuleCall) -> int:
    return _next_body(flow, node.start)


def _next_body(flow: Flow, start: int) -> int:
    """Return the first call of the body from one on; -1 where there is none."""
    return next((index for index in range(start, len(flow.record.calls)) if flow.is_body(index)), -1)
