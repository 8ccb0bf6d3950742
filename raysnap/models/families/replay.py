"""From a recorded forward and the places of its cuts to what each block calls, in which order, on what it is given."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from raysnap.models.families.recording import Call, ModuleCall, Record, Ref, size_of
from raysnap.models.families.segment import grid_edge, join_mask, mask_of, without_mask
from raysnap.models.families.waists import Flow

_MAX_MORE_TOKENS = 8  # class and register tokens before the tokens of an image


class CannotReplay(Exception):
    """A block can't be had alone; `start` is the call that it begins with, if it would help not to cut there."""

    def __init__(self, reason: str, start: int | None = None):
        super().__init__(reason)
        self.start = start


@dataclass(frozen=True)
class BlockParts:
    """What a block calls, the value that it is given, and the one that it gives."""

    calls: list[Call]
    source: int
    result: int


@dataclass
class _Draft:
    """A block in the making: which calls of the record it must make, what is there already, which values must be."""

    start: int | None
    own: set[int]
    source: int
    wanted: set[int]
    calls: list[Call] = field(default_factory=list)
    there: set[int] = field(default_factory=set)


class Replay:
    """A recorded forward that is split where it is cut; `second` is the same forward at another size."""

    def __init__(self, model: nn.Module, first: Record, second: Record, flow: Flow):
        self.model = model
        self.first, self.second, self.flow = first, second, flow
        self._num_values = len(first.numbers)

    def split(self, starts: Sequence[int]) -> list[BlockParts]:
        """Return what each block calls: the stem, one for each further start, and the head.

        Raises:
            CannotReplay: a block needs what is before it and is not given, or there is no head that can be replaced.
        """
        flow, end = self.flow, len(self.first.calls)
        head, features, moved = self._head()
        bounds = [*starts, end]
        parts: list[BlockParts] = []
        source = self.first.item
        for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
            span = range(start if number else 0, stop)
            own = {index for index in span if flow.is_body(index) and index not in moved}
            is_last = stop == end
            wanted = set(features) if is_last else flow.live_before(stop)
            if not is_last and len(wanted) != 1:
                raise CannotReplay("more than one tensor is live", stop)
            draft = _Draft(start if number else None, own, source, wanted)
            given = self._split_mask(draft) if number else source
            self._fill(draft)
            if is_last:
                parts.append(replace(self._give_features(draft, features), source=given))
                break
            (source,) = wanted
            parts.append(BlockParts(draft.calls, given, self._join_mask(draft, source)))
        parts.append(self._make_head(head, features, parts[-1]))
        return parts

    def _split_mask(self, draft: _Draft) -> int:
        """Return the value that a block is given: for texts its tokens, which the mask is the last channel of."""
        if (mask := self.flow.carried) is None:
            return draft.source
        given = self._new_value()
        draft.calls.append(Call(without_mask, (Ref(given),), {}, (((), draft.source),)))
        draft.calls.append(Call(mask_of, (Ref(given),), {}, (((), mask),)))
        draft.there.add(mask)
        return given

    def _join_mask(self, draft: _Draft, result: int) -> int:
        """Return the value that a block gives, see `_split_mask`."""
        if (mask := self.flow.carried) is None:
            return result
        if len(self.first.numbers[result]) != 3:
            raise CannotReplay("its blocks give no sequence of tokens", draft.start)
        draft.calls += self._obtain(draft, mask, draft.there)
        joined = self._new_value()
        draft.calls.append(Call(join_mask, (Ref(result), Ref(mask)), {}, (((), joined),)))
        return joined

    def _head(self) -> tuple[set[int], list[int], set[int]]:
        """Return the head's calls, the values that it takes, and which of its calls are the body's by their place."""
        flow, calls = self.flow, self.first.calls
        head, moved = set(flow.head_calls), set()
        while True:
            taken = sorted({value for index in head for value in calls[index].inputs if flow.is_data[value]})
            features = [value for value in taken if flow.made_by.get(value, -1) not in head]
            for value in features:
                made = flow.made_by.get(value)
                if made is None or not set(flow.users[value]) <= head or not self._may_move(made, features):
                    continue
                head.add(made)
                moved.add(made)
                break
            else:
                return head, features, moved

    def _may_move(self, index: int, features: list[int]) -> bool:
        """Return whether a call before the head is better made by it: dropout, or what takes unlike things from one."""
        call = self.first.calls[index]
        if isinstance(call.target, str):
            return isinstance(self.model.get_submodule(call.target), nn.Dropout)
        ranks = {len(self.first.numbers[value]) for value in features}
        return len(features) > 1 and ranks != {2} and not self.flow.owned[index]

    def _give_features(self, draft: _Draft, features: list[int]) -> BlockParts:
        """Return the last block of the body, which gives the features, joined where the head takes several."""
        shapes = [self.first.numbers[value] for value in features]
        if len(features) > 1:
            if any(len(shape) != 2 for shape in shapes):
                raise CannotReplay(f"its head takes {len(features)} different features, of shapes {shapes}")
            joined = self._new_value()
            draft.calls.append(Call(torch.cat, ([Ref(value) for value in features], 1), {}, (((), joined),)))
            return BlockParts(draft.calls, draft.source, joined)
        shape = shapes[0]
        if len(shape) == 4 and shape[2:] == self.second.numbers[features[0]][2:] == (1, 1):
            flat = self._new_value()
            draft.calls.append(Call(torch.flatten, (Ref(features[0]), 1), {}, (((), flat),)))
            return BlockParts(draft.calls, draft.source, flat)
        if len(shape) not in (2, 3, 4):
            raise CannotReplay(f"its head takes features of shape {shape}")
        return BlockParts(draft.calls, draft.source, features[0])

    def _make_head(self, head: set[int], features: list[int], body: BlockParts) -> BlockParts:
        draft = _Draft(None, head, body.result, {self.first.output})
        draft.there.add(body.result)
        shapes = [self.first.numbers[value] for value in features]
        if len(features) > 1:
            outputs = tuple(((position,), value) for position, value in enumerate(features))
            draft.calls.append(Call(torch.split, (Ref(body.result), [shape[1] for shape in shapes], 1), {}, outputs))
        elif body.result != features[0]:
            square = (shapes[0][1], 1, 1)
            draft.calls.append(Call(torch.unflatten, (Ref(body.result), 1, square), {}, (((), features[0]),)))
        draft.there |= set(features)
        self._fill(draft)
        return BlockParts(draft.calls, body.result, self.first.output)

    def _fill(self, draft: _Draft) -> None:
        draft.there.add(draft.source)
        try:
            self._emit(draft, self.first.root, self.second.root)
            for value in draft.wanted:
                draft.calls += self._obtain(draft, value, draft.there)
        except _MissingError as missing:
            raise CannotReplay(f"a block would need {missing}, which it is not given", draft.start) from None

    def _emit(self, draft: _Draft, node: ModuleCall, again: ModuleCall) -> None:
        """Append the draft's calls in a module: the module's own, if all of it is the draft's, else those in it."""
        if node.end <= min(draft.own, default=0) or node.start > max(draft.own, default=-1):
            return
        inner = [index for index in range(node.start, node.end) if self._is_run(index)]
        if not draft.own.intersection(inner):
            return
        if draft.own.issuperset(inner) and self._stands_for(node, inner, draft.wanted):
            there = set(draft.there)
            with contextlib.suppress(_MissingError):
                draft.calls += self._repeat(draft, node.call, again.call, there)
                draft.there = there
                return
        position = node.start
        for child, twin in [*zip(node.children, again.children, strict=True), (None, None)]:
            for index in range(position, child.start if child else node.end):
                if index in draft.own:
                    draft.calls += self._repeat(draft, self.first.calls[index], self.second.calls[index], draft.there)
            if child and twin:
                self._emit(draft, child, twin)
                position = child.end

    def _is_run(self, index: int) -> bool:
        return index in self.flow.head_calls or self.flow.is_body(index)

    def _stands_for(self, node: ModuleCall, inner: list[int], wanted: set[int]) -> bool:
        """Return whether a module is given all that its inner calls take, and gives all that others take of them."""
        if node is self.first.root:
            return False
        flow, given = self.flow, set(node.call.inputs)
        gives = {value for _, value in node.call.outputs}
        span = range(node.start, node.end)
        for index in inner:
            call = self.first.calls[index]
            taken = [value for value in call.inputs if flow.is_data[value] and flow.made_by.get(value, -1) not in span]
            data = [value for _, value in call.outputs if flow.is_data[value]]
            left = [v for v in data if v in wanted or any(user not in span for user in flow.users.get(v, ()))]
            if not given.issuperset(taken) or not gives.issuperset(left):
                return False
        return True

    def _obtain(self, draft: _Draft, value: int, there: set[int]) -> list[Call]:
        """Return the calls that give a value: what doesn't depend on the item is computed where it is needed."""
        if value in there:
            return []
        made = self.flow.made_by.get(value)
        if made is None or self.flow.is_data[value]:
            raise _MissingError(f"a tensor of shape {self.first.numbers[value]}")
        try:
            return self._repeat(draft, self.first.calls[made], self.second.calls[made], there)
        except _MissingError:
            if not self.first.is_int[value]:
                raise
        there.add(value)
        return [self._size_again(draft, value, self.first.numbers[value], self.second.numbers[value])]

    def _repeat(self, draft: _Draft, call: Call, again: Call, there: set[int]) -> list[Call]:
        """Return a call after all the calls that it needs; `there`, the values that are, grows by those they give."""
        if not call.is_complete:
            raise _MissingError("a tensor that the model makes outside of its forward")
        calls: list[Call] = []
        new = set(there)
        for value in call.inputs:
            calls += self._obtain(draft, value, new)

        def match(one: Any, other: Any) -> Any:
            """Return the first of two numbers, or where they differ a new value that follows from what is given."""
            is_number = all(isinstance(number, int | float) and not isinstance(number, bool) for number in (one, other))
            if one == other or not is_number:
                return one
            if not (float(one).is_integer() and float(other).is_integer()):
                raise _MissingError(f"the number {one}")
            whole = self._new_value()
            calls.append(self._size_again(draft, whole, int(one), int(other)))
            if isinstance(one, int):
                return Ref(whole)
            value = self._new_value()
            calls.append(Call(float, (Ref(whole),), {}, (((), value),)))
            return Ref(value)

        args, kwargs = _matched(call.args, again.args, match), _matched(dict(call.kwargs), dict(again.kwargs), match)
        there |= new | {value for _, value in call.outputs}
        return [*calls, Call(call.target, args, kwargs, call.outputs)]

    def _size_again(self, draft: _Draft, value: int, first: int, second: int) -> Call:
        """Return a call that works out an integer from the shape of what the block is given."""
        outputs = (((), value),)
        pairs = list(zip(self._shape(draft.source, self.first), self._shape(draft.source, self.second), strict=True))
        if first == second:
            return Call(int, (first,), {}, outputs)
        if (first, second) in pairs:
            return Call(size_of, (Ref(draft.source), pairs.index((first, second))), {}, outputs)
        for dim, (one, other) in enumerate(pairs):
            for num_more in range(_MAX_MORE_TOKENS):
                if (one - num_more, other - num_more) == (first**2, second**2):
                    return Call(grid_edge, (Ref(draft.source), dim, num_more), {}, outputs)
        raise _MissingError(f"the number {first}")

    @staticmethod
    def _shape(value: int, record: Record) -> tuple[int, ...]:
        return tuple(record.numbers[value]) if value < len(record.numbers) else ()

    def _new_value(self) -> int:
        self._num_values += 1
        return self._num_values - 1


class _MissingError(Exception):
    """A value that a block needs is not there."""


def _matched(one: Any, other: Any, match: Callable[[Any, Any], Any]) -> Any:
    """Return nested arguments with each thing in them replaced by what it and its twin give."""
    if isinstance(one, tuple | list) and type(one) in (tuple, list) and len(one) == len(other):
        return type(one)(_matched(left, right, match) for left, right in zip(one, other, strict=True))
    if type(one) is dict and one.keys() == other.keys():
        return {key: _matched(entry, other[key], match) for key, entry in one.items()}
    if isinstance(one, slice):
        parts = ((one.start, other.start), (one.stop, other.stop), (one.step, other.step))
        return slice(*(_matched(left, right, match) for left, right in parts))
    return match(one, other)
