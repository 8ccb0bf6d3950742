"""`nested` on simulated answers: whom its rungs drop, how often that is the winner, and how few images it takes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from raysnap.config.parts import RetrainConfig
from raysnap.models.block_facts import block_shapes
from raysnap.planning.sampling import draw_retrain_indices
from raysnap.search.plan.rungs import plan_rungs
from raysnap.search.plan.tree import build_tree
from raysnap.search.plan.workload import image_forwards, whole_models
from raysnap.search.probes.confidence import find_survivors
from tests.support.search_stores import candidate, digest

# Image-forwards that nested needs at most for 36 ResNet-18 and 1,000 items at confidence 0, in any draw of the trees.
MOST_FORWARDS = {
    "top_layers": 1300,
    "twenty_five_percent": 1700,
    "fifty_percent": 2200,
    "last_one_layer": 1300,
    "uniform": 2400,
}


def simulated_answers(rates, num_items, seed):
    """Whether each candidate is right on each item, float64 `[C, T]`; some items are harder than others."""
    return simulated_rungs(rates, num_items, 1, 1.0, seed)[0]


def simulated_rungs(rates, num_items, num_rungs, steadiness, seed):
    """Return the same for each rung; `steadiness`: how much of an answer's noise stays as probes train on more."""
    rng = np.random.default_rng(seed)
    lasting = rng.standard_normal((len(rates), num_items))
    difficulty = rng.standard_normal(num_items)
    passing = [rng.standard_normal(lasting.shape) for _ in range(num_rungs)]
    noise = [np.sqrt(steadiness) * lasting + np.sqrt(1 - steadiness) * own for own in passing]
    return [((own + difficulty) / np.sqrt(2) < norm.ppf(rates)[:, None]).astype(np.float64) for own in noise]


def play(answers_by_rung, rungs, confidence):
    """Return the candidates that enter each rung, best of the rung before first, and the order after the last."""
    alive, entrants = np.arange(len(answers_by_rung[0])), []
    for number, (rung, answers_CT) in enumerate(zip(rungs, answers_by_rung, strict=True), start=1):
        entrants.append(alive.tolist())
        parts = answers_CT[alive, : rung.test_stop]
        order = np.lexsort((alive, -parts.mean(axis=1)))
        alive, parts = alive[order], parts[order]
        if number < len(rungs):
            is_kept, confidence = find_survivors(parts, rung.num_kept, confidence, len(rungs) - number, seed=0)
            alive = alive[is_kept]
    return entrants, alive.tolist()


def snapshots_of(distribution, seed, num_snapshots=36):
    """Return a prefix tree of ResNet-18 snapshots that share all but their last retrained blocks with one base."""
    config = RetrainConfig(distribution=distribution)
    indices = draw_retrain_indices(config, "resnet18", num_snapshots, np.random.default_rng(seed))
    paths = [
        [digest(f"{index}" if index < 9 - r else f"{index}of{number}") for index in range(9)]
        for number, r in enumerate(indices)
    ]
    return build_tree([candidate(str(number), path) for number, path in enumerate(paths)], sharing=True)


@pytest.mark.parametrize("steadiness", [1.0, 0.4])
@pytest.mark.parametrize(("low", "high"), [(0.6, 0.6), (0.4, 0.7), (0.8, 0.85)])
@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
def test_the_winner_is_dropped_no_more_often_than_allowed(low, high, steadiness, confidence):
    """Even where all are equally good, and most of the chance that decides in the end is yet to come."""
    num_dropped, num_draws = 0, 60
    rungs = plan_rungs("nested", 16, 320, 80)
    for draw in range(num_draws):
        rates = np.random.default_rng(draw).uniform(low, high, 16)
        answers = simulated_rungs(rates, 80, len(rungs), steadiness, draw)
        winner = np.lexsort((np.arange(16), -answers[-1].mean(axis=1)))[0]
        entrants, _ = play(answers, rungs, confidence)
        num_dropped += winner not in entrants[-1]
    assert num_dropped <= (1 - confidence) * num_draws


def test_a_higher_confidence_keeps_all_that_a_lower_one_keeps():
    answers = simulated_answers(np.linspace(0.3, 0.8, 20), 50, 3)
    ordered = answers[np.argsort(-answers.mean(axis=1), kind="stable")]
    kept = [find_survivors(ordered, 5, confidence, 1, 0)[0] for confidence in (0, 0.5, 0.9, 0.99, 0.9999)]
    assert kept[0].tolist() == [True] * 5 + [False] * 15
    assert all((one <= other).all() for one, other in itertools.pairwise(kept))
    assert kept[0].sum() < kept[2].sum() < kept[4].sum()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 30), st.sampled_from([0, 0.5, 0.95]), st.integers(0, 99))
def test_the_first_stay_and_those_equal_to_the_last_of_them(num_candidates, num_kept, num_items, level, seed):
    answers = simulated_answers(np.full(num_candidates, 0.5), num_items, seed)
    ordered = answers[np.argsort(-answers.mean(axis=1), kind="stable")]
    is_kept, _ = find_survivors(ordered, num_kept, level, 1, seed)
    assert is_kept[:num_kept].all()
    if level > 0 and num_kept < num_candidates:
        assert is_kept[(ordered == ordered[num_kept - 1]).all(axis=1)].all()


@pytest.mark.parametrize(("num_items", "is_dropped"), [(1, False), (7, False), (8, True), (20, True)])
def test_few_items_drop_no_candidate_even_if_all_are_wrong(num_items, is_dropped):
    right, wrong = np.ones(num_items), np.zeros(num_items)
    assert find_survivors(np.stack([right, wrong]), 1, 0.95, 1, 0)[0].tolist() == [True, not is_dropped]


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(2, 60), st.integers(1, 40), st.sampled_from([0, 0.95]), st.integers(0, 99))
def test_any_numbers_end_with_a_winner_on_all_items(num_candidates, num_train, num_test, confidence, seed):
    answers = simulated_answers(np.random.default_rng(seed).uniform(0.2, 0.9, num_candidates), num_test, seed)
    rungs = plan_rungs("nested", num_candidates, num_train, num_test)
    entrants, order = play([answers] * len(rungs), rungs, confidence)
    assert rungs[-1].test_stop == num_test and len(order) >= 1
    assert all(set(later) <= set(earlier) for earlier, later in itertools.pairwise(entrants))
    if confidence == 0:
        assert [len(ids) for ids in entrants[1:]] == [rung.num_kept for rung in rungs[:-1]]


@pytest.mark.parametrize("num_decisions", [1, 2, 5])
def test_only_a_decision_that_drops_spends_its_share(num_decisions):
    better, worse = np.ones(200), np.zeros(200)
    confidence = 0.95
    for num_left in reversed(range(1, num_decisions + 1)):
        _, same = find_survivors(np.stack([better, better]), 1, confidence, num_left, 0)
        _, confidence = find_survivors(np.stack([better, worse]), 1, confidence, num_left, 0)
        assert same == pytest.approx(0.95 ** (num_left / num_decisions))
        assert confidence == pytest.approx(0.95 ** ((num_left - 1) / num_decisions))


def test_equal_candidates_all_stay_unless_confidence_is_off():
    answers = np.tile(simulated_answers(np.array([0.6]), 60, 0), (9, 1))
    rungs = plan_rungs("nested", 9, 100, 60)
    assert [len(ids) for ids in play([answers] * len(rungs), rungs, 0.95)[0]] == [9, 9, 9, 9, 9]
    assert [len(ids) for ids in play([answers] * len(rungs), rungs, 0)[0]] == [9, 4, 2, 1, 1]


@pytest.mark.parametrize("distribution", MOST_FORWARDS)
@pytest.mark.parametrize("num_items", [1000, 2000])
def test_image_forwards_of_the_published_workload(distribution, num_items):
    num_train, num_test = num_items * 4 // 5, num_items // 5
    rungs = {method: plan_rungs(method, 36, num_train, num_test) for method in ("shared", "alsatian", "nested")}
    for seed in range(5):
        tree = snapshots_of(distribution, seed)
        order = np.random.default_rng(seed).permutation(36).tolist()
        entrants = {
            method: [order, *(order[: rung.num_kept] for rung in planned[:-1])] for method, planned in rungs.items()
        }
        full, published, nested = (image_forwards(tree, rungs[method], entrants[method]) for method in rungs)
        assert full == pytest.approx(num_items * whole_models(tree, order))
        assert nested <= MOST_FORWARDS[distribution] * num_items / 1000
        assert nested <= 0.7 * published
        everyone = image_forwards(tree, rungs["nested"], [order] * len(rungs["nested"]))
        assert everyone == pytest.approx(full), "at worst nested is shared"


def test_a_whole_model_is_one_image_forward():
    shapes = block_shapes("resnet18", 32)[:-1]
    own = [digest(index) for index in range(9)]
    tree = build_tree([candidate("one", own), candidate("other", [*own[:8], digest("f")])], sharing=True)
    assert whole_models(tree, [0]) == pytest.approx(1.0)
    last = shapes[8].flops / sum(shape.flops for shape in shapes)
    assert whole_models(tree, [0, 1]) == pytest.approx(1 + last)
    assert whole_models(tree, []) == 0
