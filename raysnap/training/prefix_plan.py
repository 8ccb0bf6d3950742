"""Which depth of frozen blocks to cache for each trial: frozen data in, frozen data out, before any tensor is loaded.

Trials of one group start from one base and see one dataset in the same views. Outputs cached at depth d serve every
trial of the group that freezes d blocks or more; the frozen blocks after d run in each of its epochs. A plan maximises
the forward FLOPs saved, minus those of filling the cache, within a budget of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from raysnap.models.block_facts import block_shapes, text_facts
from raysnap.training.trial import Trial

# More choices are thinned to the best among those of similar bytes; with fewer, a plan is optimal.
MAX_CHOICES = 500

CHUNK_ITEMS = 64  # whose outputs are computed at once where they are cached


@dataclass(frozen=True)
class PrefixTrial:
    """A trial's part in the plan.

    Attributes:
        group: names the trials that can share outputs.
        num_frozen: how many blocks it leaves frozen.
        num_passes: how many items pass its frozen blocks over all epochs and could be cached.
    """

    id: str
    group: str
    num_frozen: int
    num_passes: int


@dataclass(frozen=True)
class PrefixGroup:
    """What trials of one group share.

    Attributes:
        num_items: items whose outputs are kept, each view and split counted.
        block_flops: FLOPs per item of each block, from the stem.
        output_bytes: bytes of one item's output of each block.
    """

    num_items: int
    block_flops: tuple[int, ...]
    output_bytes: tuple[int, ...]


@dataclass(frozen=True)
class _Choice:
    """Depths to cache, per group: their bytes, the FLOPs they save, and the depths."""

    num_bytes: int = 0
    saved_flops: int = 0
    depths: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: _Choice) -> _Choice:
        return _Choice(
            self.num_bytes + other.num_bytes, self.saved_flops + other.saved_flops, self.depths + other.depths
        )


def plan_prefixes(
    trials: Sequence[PrefixTrial], groups: Mapping[str, PrefixGroup], budget_bytes: int
) -> dict[str, int]:
    """Return the depth to cache for each trial's id; 0 is none."""
    members: dict[str, list[PrefixTrial]] = {}
    for trial in trials:
        members.setdefault(trial.group, []).append(trial)
    choices = [_Choice()]
    for name, found in members.items():
        of_group = _choices_of_group(name, groups[name], found)
        choices = _best_per_bytes(one + other for one in choices for other in of_group)
    chosen = max((choice for choice in choices if choice.num_bytes <= budget_bytes), key=lambda it: it.saved_flops)
    return {
        trial.id: max(
            (depth for name, depth in chosen.depths if name == trial.group and depth <= trial.num_frozen), default=0
        )
        for trial in trials
    }


def plan_trials(
    trials: Sequence[Trial],
    image_size: int,
    num_items: Mapping[str, Mapping[str, int]],
    budget_bytes: int,
    element_bytes: int = 4,
) -> dict[str, int]:
    """Return the depth to cache for each trial's id.

    Args:
        image_size: of trials without their own.
        num_items: of each dataset that trials name, the items used of `train`, `val` and, where there is one, `test`.
        element_bytes: of one number of an output: 4 in float32, 2 in bfloat16 and float16.

    Raises:
        ArchitectureError: an architecture can't take images of that size.
    """
    planned: list[PrefixTrial] = []
    groups: dict[str, PrefixGroup] = {}
    for trial in trials:
        if trial.dataset is None or not trial.num_frozen:
            continue
        train, counts = trial.train, num_items[trial.dataset]
        num_val, num_test = counts["val"], counts.get("test", 0)
        num_views = 0 if train.views is None or train.is_mixing else min(train.views, train.epochs)
        num_views = num_views if text_facts(trial.architecture) is None else 1  # texts are not augmented
        num_train_passes = counts["train"] * train.epochs if num_views else 0
        edge = trial.image_size or image_size
        group = f"{trial.base_key}/{trial.architecture}/{trial.dataset}/{edge}/{num_views}"
        shapes = block_shapes(trial.architecture, edge)
        groups[group] = PrefixGroup(
            num_views * counts["train"] + num_val + num_test,
            tuple(shape.flops for shape in shapes),
            tuple(element_bytes * math.prod(shape.output_shape) for shape in shapes),
        )
        num_passes = num_train_passes + num_val * train.epochs + num_test
        planned.append(PrefixTrial(trial.id, group, trial.num_frozen, num_passes))
    depths = plan_prefixes(planned, groups, budget_bytes)
    return {trial.id: depths.get(trial.id, 0) for trial in trials}


def _choices_of_group(name: str, group: PrefixGroup, trials: Sequence[PrefixTrial]) -> list[_Choice]:
    """Return all sets of depths worth caching for one group, from the empty one, best per bytes.

    Goes through the depths from the deepest: cached at d are the trials that freeze d blocks or more and for which no
    deeper one is cached.
    """
    flops = (0, *accumulate(group.block_flops))
    ending: list[tuple[int, list[_Choice]]] = []
    for depth in sorted(_depths_worth_caching(group, trials), reverse=True):
        num_bytes = group.num_items * group.output_bytes[depth - 1]
        extended = []
        for deeper, choices in [(math.inf, [_Choice()]), *ending]:
            num_passes = sum(trial.num_passes for trial in trials if depth <= trial.num_frozen < deeper)
            added = _Choice(num_bytes, flops[depth] * (num_passes - group.num_items), ((name, depth),))
            extended += [choice + added for choice in choices]
        ending.append((depth, _best_per_bytes(extended)))
    return _best_per_bytes([_Choice(), *(choice for _, choices in ending for choice in choices)])


def _depths_worth_caching(group: PrefixGroup, trials: Sequence[PrefixTrial]) -> set[int]:
    """Return the depths that no deeper one beats by serving the same trials, saving as much with no more bytes."""
    frozen = sorted({trial.num_frozen for trial in trials if trial.num_frozen > 0})
    worth = set()
    for above, deepest in zip([0, *frozen], frozen, strict=False):
        least_bytes = math.inf
        for depth in range(deepest, above, -1):
            if group.output_bytes[depth - 1] < least_bytes:
                least_bytes = group.output_bytes[depth - 1]
                worth.add(depth)
    return worth


def _best_per_bytes(choices: Iterable[_Choice]) -> list[_Choice]:
    """Return the choices that save more than every one of no more bytes, thinned where they are many."""
    best: list[_Choice] = []
    for choice in sorted(choices, key=lambda it: (it.num_bytes, -it.saved_flops)):
        if not best or choice.saved_flops > best[-1].saved_flops:
            best.append(choice)
    if len(best) <= MAX_CHOICES:
        return best
    # The last of each bin of bytes saves most in it; which bins there are must not depend on a budget.
    first, last = math.log(best[1].num_bytes), math.log(best[-1].num_bytes)
    bins = {int((math.log(it.num_bytes) - first) / (last - first) * (MAX_CHOICES - 2)): it for it in best[1:]}
    return [best[0], *bins.values()]
