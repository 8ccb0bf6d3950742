"""Which depth of frozen blocks is cached: the laws of the plan, and that no other would save more."""

import itertools
import subprocess
import sys
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysnap.config.jobs import GenerateConfig
from raysnap.training import prefix_plan
from raysnap.training.prefix_plan import PrefixGroup, PrefixTrial, plan_prefixes, plan_trials
from raysnap.training.trial import Trial

NUM_BLOCKS = 6


@st.composite
def problems(draw, max_groups=3, max_trials=8):
    groups = {
        str(number): PrefixGroup(
            draw(st.integers(1, 50)),
            tuple(draw(st.lists(st.integers(0, 100), min_size=NUM_BLOCKS, max_size=NUM_BLOCKS))),
            tuple(draw(st.lists(st.integers(1, 100), min_size=NUM_BLOCKS, max_size=NUM_BLOCKS))),
        )
        for number in range(draw(st.integers(1, max_groups)))
    }
    num_trials = draw(st.integers(0, max_trials))
    trials = [
        PrefixTrial(
            f"trial {number}",
            draw(st.sampled_from(sorted(groups))),
            draw(st.integers(0, NUM_BLOCKS)),
            draw(st.integers(0, 200)),
        )
        for number in range(num_trials)
    ]
    return trials, groups


budgets = st.integers(0, 20_000)


def held_bytes(trials, groups, depths):
    held = {(trial.group, depths[trial.id]) for trial in trials if depths[trial.id]}
    return sum(groups[name].num_items * groups[name].output_bytes[depth - 1] for name, depth in held)


def saved_flops(trials, groups, depths):
    """Return what a plan saves over no cache, by the definition: passes that are not run, less the passes that fill."""
    below = {name: [0, *accumulate(group.block_flops)] for name, group in groups.items()}
    held = {(trial.group, depths[trial.id]) for trial in trials if depths[trial.id]}
    run = sum(trial.num_passes * below[trial.group][depths[trial.id]] for trial in trials)
    return run - sum(groups[name].num_items * below[name][depth] for name, depth in held)


@given(problem=problems(), budget=budgets)
def test_a_plan_keeps_the_budget_and_the_frozen_depths(problem, budget):
    trials, groups = problem
    depths = plan_prefixes(trials, groups, budget)
    assert depths.keys() == {trial.id for trial in trials}
    assert all(0 <= depths[trial.id] <= trial.num_frozen for trial in trials)
    assert held_bytes(trials, groups, depths) <= budget


@given(problem=problems(), budget=budgets, more=budgets)
def test_a_plan_never_loses_and_more_budget_never_saves_less(problem, budget, more):
    trials, groups = problem
    small, large = (saved_flops(trials, groups, plan_prefixes(trials, groups, b)) for b in (budget, budget + more))
    assert 0 <= small <= large


@settings(max_examples=60)
@given(problem=problems(max_groups=2, max_trials=5), budget=budgets)
def test_no_other_choice_of_depths_saves_more(problem, budget):
    trials, groups = problem
    best = 0
    sets = itertools.product(itertools.product((False, True), repeat=NUM_BLOCKS), repeat=len(groups))
    for chosen in sets:
        held = {
            name: [d + 1 for d in range(NUM_BLOCKS) if flags[d]] for name, flags in zip(groups, chosen, strict=True)
        }
        depths = {trial.id: max((d for d in held[trial.group] if d <= trial.num_frozen), default=0) for trial in trials}
        if held_bytes(trials, groups, depths) <= budget:
            best = max(best, saved_flops(trials, groups, depths))
    assert saved_flops(trials, groups, plan_prefixes(trials, groups, budget)) == best


@given(problem=problems(max_groups=4, max_trials=12), budget=budgets, more=budgets)
def test_the_laws_hold_where_choices_are_thinned(problem, budget, more):
    trials, groups = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_plan, "MAX_CHOICES", 3)
        small, large = (plan_prefixes(trials, groups, b) for b in (budget, budget + more))
    assert held_bytes(trials, groups, small) <= budget
    assert 0 <= saved_flops(trials, groups, small) <= saved_flops(trials, groups, large)


def test_trials_share_the_outputs_that_all_of_them_can_use():
    group = PrefixGroup(10, (5, 5, 5, 5), (100, 100, 10, 10))
    trials = [PrefixTrial(name, "g", num_frozen, 50) for name, num_frozen in (("a", 3), ("b", 4), ("c", 3), ("d", 2))]
    assert plan_prefixes(trials, {"g": group}, 100) == {"a": 3, "b": 3, "c": 3, "d": 0}
    assert plan_prefixes(trials, {"g": group}, 200) == {"a": 3, "b": 4, "c": 3, "d": 0}
    assert plan_prefixes(trials, {"g": group}, 1200) == {"a": 3, "b": 4, "c": 3, "d": 2}


def test_what_is_seen_once_is_not_worth_caching():
    group = PrefixGroup(10, (5, 5), (1, 1))
    assert plan_prefixes([PrefixTrial("a", "g", 2, 10)], {"g": group}, 10**9) == {"a": 0}


def test_many_trials_and_groups_are_planned_at_once():
    blocks = range(1, 53)
    groups = {str(g): PrefixGroup(1000, tuple(blocks), tuple(60 - b for b in blocks)) for g in range(20)}
    trials = [PrefixTrial(f"{g} {n}", str(g), n, 9000) for g in range(20) for n in (3, 9, 20, 33, 41, 47, 52)]
    depths = plan_prefixes(trials, groups, 1_000_000)
    assert 0 < held_bytes(trials, groups, depths) <= 1_000_000


def trial(number, **changes):
    train = GenerateConfig(datasets=["d"]).train.model_copy(update=changes.pop("train", {}))
    facts = {"role": "finetune", "architecture": "resnet18", "dataset": "d", "retrain_index": 1, "seed": number}
    return Trial(id=f"trial {number}", train=train, **facts | changes)


@pytest.mark.parametrize(
    ("changes", "depth"),
    [
        ({}, 8),
        ({"retrain_index": 8}, 1),
        ({"retrain_index": None}, 0),
        ({"dataset": None}, 0),
        ({"train": {"epochs": 1}}, 0),
        ({"train": {"views": 5, "epochs": 5}}, 8),
        ({"train": {"views": None}}, 8),
    ],
)
def test_trials_are_cached_as_deep_as_it_saves_anything(changes, depth):
    counts = {"d": {"train": 80, "val": 20, "test": 20}}
    assert plan_trials([trial(1, **changes)], 64, counts, 10**12) == {"trial 1": depth}


def test_the_plan_of_a_job_halves_what_is_kept_in_half_precision():
    counts = {"d": {"train": 80, "val": 20}}
    per_item_bytes = 512 * 2 * 2  # of resnet18's layer4.0 at 64 px
    assert plan_trials([trial(1)], 64, counts, 100 * per_item_bytes * 2, 2) == {"trial 1": 8}
    assert plan_trials([trial(1)], 64, counts, 100 * per_item_bytes * 4 - 1, 4) == {"trial 1": 0}


def test_planning_needs_no_torch():
    code = "import sys, raysnap.training.prefix_plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
