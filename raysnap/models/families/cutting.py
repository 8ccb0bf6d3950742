"""Cut a library's model into blocks that run alone: its forward is recorded twice, at two sizes, and cut at waists.

A module that lies whole in one block is called there as the library calls it, in training as well; only the forwards
that a cut goes through are replayed call by call. Integers that a block needs of shapes before it, such as the height
of the map that tokens were, follow from the shape of what it is given: two sizes tell how.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from raysnap.errors import ArchitectureError
from raysnap.models.block import Block
from raysnap.models.block_shape import HEAD, STEM
from raysnap.models.families.recording import TRACE_DTYPE, Call, Record, record
from raysnap.models.families.replay import BlockParts, CannotReplay, Replay
from raysnap.models.families.segment import Idle, Program, Segment
from raysnap.models.families.waists import Cut, Flow, find_cuts, trace_flow

NUM_ITEMS = (3, 5)
"""How many items are in each recorded batch: numbers that models seldom have for other reasons."""

_MIN_BLOCKS = 3
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError)

Run = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A model to be cut.

    Attributes:
        model: without weights, with the measured number of classes.
        per_class: the names of its stored tensors that have a row per class.
        run: calls a model and returns the logits.
        make_items: gives so many items without values, the second argument being their size; None is the usual one.
        image_sizes: the sizes at which it may be recorded besides the usual one: the first that it takes is.
    """

    model: nn.Module
    per_class: frozenset[str]
    run: Run
    make_items: Callable[[int, int | None], Tensor]
    image_sizes: Sequence[int]


@dataclass(frozen=True)
class CutModel:
    """The blocks of a model, from stem to head, and the calls of the forward that they replay."""

    blocks: tuple[Block, ...]
    calls: tuple[Call, ...]


def cut_model(subject: Subject) -> CutModel:
    """Return the blocks of a model, around its own modules.

    Raises:
        ArchitectureError: it can't be cut into three blocks or more; the message says why.
    """
    if not subject.per_class:
        raise ArchitectureError("it has no head: no tensor of it depends on the number of classes")
    first = _record(subject, NUM_ITEMS[0], None)
    second = _second_record(subject, first)
    stored = _places(subject.model)
    flow = trace_flow(first, stored, subject.per_class)
    if not flow.head_calls:
        raise ArchitectureError("it has no head: its output does not depend on the tensors that have a row per class")
    wanted = find_cuts(flow)
    cuts, reason = _without_shared_tensors(flow, wanted)
    replay = Replay(subject.model, first, second, flow)
    while len(cuts) >= min(_MIN_BLOCKS, len(wanted)) and len(cuts) > 1:  # not a body that is one block of many
        try:
            parts = replay.split([cut.start for cut in cuts])
        except CannotReplay as refusal:
            if refusal.start is None:
                raise ArchitectureError(str(refusal)) from None
            cuts, reason = [cut for cut in cuts if cut.start != refusal.start], str(refusal)
            continue
        return CutModel(_assemble(subject, cuts, parts), tuple(first.calls))
    raise ArchitectureError(
        "no place in its body was found where one tensor alone carries what came before"
        + (f": {reason}" if reason else "")
    )


def _assemble(subject: Subject, cuts: Sequence[Cut], parts: Sequence[BlockParts]) -> tuple[Block, ...]:
    names = [STEM, *(cut.name for cut in cuts[1:]), HEAD]
    blocks = [
        Block(name, _steps(Program(part.calls, part.source, part.result), subject.model))
        for name, part in zip(names, parts, strict=True)
    ]
    stored = list(subject.model.state_dict())
    seen = {name for block in blocks for name in block.tensors()}
    idle = [name for name in stored if name not in seen]
    for block, wanted in ((blocks[0], False), (blocks[-1], True)):
        kept = [name for name in idle if (name in subject.per_class) == wanted]
        if kept:
            block.paths += ("",)
            block.steps.append(Idle(kept, subject.model))
    found = [name for block in blocks for name in block.tensors()]
    if sorted(found) != sorted(stored) or len(set(names)) != len(names):
        twice = sorted({name for name in found if found.count(name) > 1})
        raise ArchitectureError(f"some of its tensors would be in two blocks: {', '.join(twice[:3])}")
    if not set(blocks[-1].tensors()) <= subject.per_class:
        raise ArchitectureError("its head can't be replaced alone: what comes after it has weights of its own")
    return tuple(block.eval() for block in blocks)


def _steps(program: Program, model: nn.Module) -> list[tuple[str, nn.Module]]:
    paths = program.chain
    if paths is None or len(set(paths)) < len(paths) or not paths:
        return [("", Segment(program, model))]
    return [(path, model.get_submodule(path)) for path in paths]


def _record(subject: Subject, num_items: int, image_size: int | None) -> Record:
    model = copy.deepcopy(subject.model)
    for module in model.modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                vars(module)[key] = value.to("meta")
    model = model.to(device="meta", dtype=TRACE_DTYPE).eval()
    items = subject.make_items(num_items, image_size)
    items = items.to(TRACE_DTYPE) if items.is_floating_point() else items
    try:
        return record(model, items, subject.run)
    except _FAILURES as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ArchitectureError(f"its forward can't be recorded on the meta device: {lines[0][:200]}") from error


def makes_calls(subject: Subject, calls: Sequence[Call], image_size: int) -> bool:
    """Return whether the forward makes these calls for images of another size as well.

    Raises:
        ArchitectureError: it rejects images of that size.
    """
    return _outline(_record(subject, NUM_ITEMS[0], image_size).calls) == _outline(calls)


def _second_record(subject: Subject, first: Record) -> Record:
    """Return the forward at another size, if there is one at which the same calls are made, else at the same size."""
    for image_size in subject.image_sizes:
        try:
            found = _record(subject, NUM_ITEMS[1], image_size)
        except ArchitectureError:
            continue
        if _outline(first.calls) == _outline(found.calls):
            return found
    found = _record(subject, NUM_ITEMS[1], None)
    if _outline(first.calls) != _outline(found.calls):
        raise ArchitectureError("its forward takes another path for another number of items")
    return found


def _outline(calls: Iterable[Call]) -> list[tuple[object, ...]]:
    """Return what calls that are made for any size have in common."""
    return [(call.target, tuple(call.inputs), call.outputs) for call in calls]


def _places(model: nn.Module) -> Mapping[str, list[str]]:
    """Return the names of the stored tensors below each path, and of each tensor itself."""
    places: dict[str, list[str]] = {}
    for name in model.state_dict():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            places.setdefault(".".join(parts[:end]), []).append(name)
    return places


def _without_shared_tensors(flow: Flow, cuts: Sequence[Cut]) -> tuple[list[Cut], str]:
    """Return the cuts on either side of which no tensor is taken that is taken on the other, and what is shared."""
    spans: dict[str, tuple[int, int]] = {}
    for index, names in enumerate(flow.owned):
        if flow.is_body(index):
            for name in names:
                spans[name] = (spans.get(name, (index, index))[0], index)
    shared = {name: span for name, span in spans.items() if any(span[0] < cut.start <= span[1] for cut in cuts)}
    left = [cut for cut in cuts if not any(start < cut.start <= end for start, end in shared.values())]
    return left, f"its blocks share {', '.join(list(shared)[:3])}" if shared else ""
