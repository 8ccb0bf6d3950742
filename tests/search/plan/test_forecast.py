"""What methods are forecast to take: sums over the tree at the pace of a device, and what `auto` takes by them."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysnap.humanize import seconds_text
from raysnap.models.block_facts import block_shapes
from raysnap.search.plan.choice import choose, expected_entrants
from raysnap.search.plan.costs import BlockSpeed, kind_of
from raysnap.search.plan.forecast import PROBE_FLOPS, DevicePace, Question, hit_share
from raysnap.search.plan.rungs import Rung, plan_rungs
from raysnap.search.plan.tree import build_tree
from raysnap.search.plan.workload import image_forwards
from raysnap.store.preprocessing import Preprocessing
from tests.support.search_stores import candidate, digest
from tests.support.search_trees import NUM_BLOCKS, star

CPU, GPU = DevicePace("cpu", 2), DevicePace("cuda", 1)


def ask(tree, pace, nodes=None, num_classes=10):
    candidates = tuple(range(len(tree.candidates)))
    nodes = frozenset(range(len(tree.nodes)) if nodes is None else nodes)
    return Question(tree, candidates, nodes, "linear", num_classes, pace)


def take(question, asked="auto", num_train=320, num_test=80, **more):
    more = {"num_undecoded": lambda _train, _test: 0, "start_s": 0.0} | more
    return choose(question, asked, num_train, num_test, **more)


def at_224(tree):
    """Return the same tree for images of 224 px."""
    large = Preprocessing(resize_size=256, image_size=224)
    return build_tree([replace(one, preprocessing=large) for one in tree.candidates], sharing=True)


def heavy(tree):
    """Return the same tree of blocks of 1 MB."""
    blocks = [tuple(replace(block, num_bytes=10**6) for block in one.blocks) for one in tree.candidates]
    candidates = [replace(one, blocks=own) for one, own in zip(tree.candidates, blocks, strict=True)]
    return build_tree(candidates, sharing=True)


@given(st.integers(1, 8), st.data())
def test_the_chance_to_be_needed_is_that_of_random_draws(num_candidates, data):
    reach = data.draw(st.integers(1, num_candidates))
    num_drawn = data.draw(st.integers(0, num_candidates))
    draws = list(combinations(range(num_candidates), num_drawn))
    hits = sum(any(number < reach for number in draw) for draw in draws)
    assert hit_share(num_candidates, reach, num_drawn) == pytest.approx(hits / len(draws), abs=1e-9)


def test_a_rung_of_everyone_takes_the_sum_of_all_blocks():
    tree = star(6)
    speeds = {kind_of(node): BlockSpeed(0.5, 0.01 * (node.block_index + 1)) for node in tree.nodes}
    question = ask(tree, DevicePace("cuda", 1, speeds))
    (rung,) = plan_rungs("shared", 6, 100, 20)
    found = question.forecast("shared", [rung], [6], num_undecoded=0, start_s=2.0)
    blocks_s = sum(0.5 + 120 * 0.01 * (node.block_index + 1) for node in tree.nodes)
    assert found.timings_s["inference"] == pytest.approx(question.pace.rates.rung_s + blocks_s)
    assert found.image_forwards == pytest.approx(image_forwards(tree, [rung], [range(6)]))
    assert found.total_s == pytest.approx(sum(found.timings_s.values()) / 2), "the total of start and stages"
    assert [(one.num_candidates, one.num_train, one.num_test) for one in found.rungs] == [(6, 100, 20)]


def test_forecast_forwards_are_the_mean_over_random_survivors():
    tree = star(6)
    rungs = (Rung(0, 40, 0, 10, 3), Rung(40, 100, 10, 20, 1))
    draws = list(combinations(range(6), 3))
    exact = [image_forwards(tree, rungs, [range(6), draw]) for draw in draws]
    found = ask(tree, CPU).forecast("nested", rungs, [6, 3], num_undecoded=0, start_s=0.0)
    assert found.image_forwards == pytest.approx(sum(exact) / len(exact))
    early = ask(tree, CPU).forecast("nested", rungs, [6], num_undecoded=0, start_s=0.0)
    assert early.image_forwards < found.image_forwards and len(early.rungs) == 1, "it may end before the last rung"


def test_each_stage_takes_its_own_and_corrections_scale_it():
    tree = heavy(star(4))
    rungs = plan_rungs("shared", 4, 80, 20)
    plain = ask(tree, CPU).forecast("shared", rungs, [4], num_undecoded=50, start_s=1.0).timings_s
    stages = {"load_blocks": "load_blocks", "inference": "inference", "decode": "decode", "linear": "proxy"}
    for name, stage in stages.items():
        pace = replace(CPU, corrections={name: 3.0})
        slow = ask(tree, pace).forecast("shared", rungs, [4], num_undecoded=50, start_s=1.0).timings_s
        assert {key for key in plain if slow[key] != plain[key]} == {stage, "total"}
        assert slow[stage] == pytest.approx(3 * plain[stage])


def test_blocks_that_were_read_ahead_need_no_reading():
    question = ask(heavy(star(4)), CPU)
    rungs = plan_rungs("shared", 4, 80, 20)

    def reading_s(num_bytes_ahead):
        ahead = replace(question, num_bytes_ahead=num_bytes_ahead)
        return ahead.forecast("shared", rungs, [4], num_undecoded=0, start_s=0.0).timings_s["load_blocks"]

    all_bytes = reading_s(0) * CPU.rates.read_bytes_per_s
    assert reading_s(round(all_bytes / 4)) == pytest.approx(0.75 * reading_s(0))
    assert reading_s(round(2 * all_bytes)) == 0


def test_rungs_that_may_not_come_count_by_their_chance():
    question, rungs = ask(star(6), CPU), (Rung(0, 40, 0, 10, 3), Rung(40, 100, 10, 20, 1))
    alone = [sum(question.rung_s("nested", rung, 6).values()) for rung in rungs]
    found = question.forecast("nested", rungs, [6, 6], num_undecoded=0, start_s=0.0, end_chance=0.25)
    assert found.total_s - found.timings_s["load_blocks"] == pytest.approx(alone[0] + 0.75 * alone[1])
    assert [rung.total_s for rung in found.rungs] == pytest.approx(alone), "a rung by itself, if it comes"


def test_a_search_that_drops_nobody_is_forecast_to_its_end():
    question = ask(star(6), CPU)
    ends, goes_on = (
        next(one for one in take(question, "nested", tolerance=tolerance).forecasts if one.method == "nested")
        for tolerance in (0.01, 0.0)
    )
    rungs_s = sum(rung.total_s for rung in goes_on.rungs)
    assert goes_on.total_s - goes_on.timings_s["load_blocks"] == pytest.approx(rungs_s) and ends.total_s < rungs_s


def test_the_first_rung_makes_ready_what_later_ones_use():
    question, both = ask(star(4), CPU), (Rung(0, 40, 0, 10, 4), Rung(40, 80, 10, 20, 1))
    first, later = (question.rung_s("nested", rung, 4)["inference"] for rung in both)
    assert first - later == pytest.approx(CPU.rates.first_rung_s)


def test_blocks_that_are_cached_take_nothing():
    tree = star(5)
    rungs = plan_rungs("nested", 5, 80, 20)
    entrants = expected_entrants("nested", rungs, 5, 0.01)
    found = ask(tree, CPU, nodes=()).forecast("nested", rungs, entrants, num_undecoded=0, start_s=0.0)
    assert found.timings_s["inference"] == found.timings_s["load_blocks"] == found.image_forwards == 0
    assert found.timings_s["proxy"] > 0


def test_unmeasured_blocks_run_at_the_pace_of_those_measured():
    tree = star(1)
    shapes = block_shapes("resnet18", 32)
    pace = replace(CPU, speeds={("resnet18", 32, 0): BlockSpeed(0.0, shapes[0].flops / 1e9)})
    assert pace.rates.flops_per_s == pytest.approx(1e9)
    assert ask(tree, pace).unmeasured_kinds()[-1] != ("resnet18", 32, 0)
    most = max(range(1, NUM_BLOCKS), key=lambda index: shapes[index].flops)
    assert ask(tree, pace).unmeasured_kinds()[0] == ("resnet18", 32, most), "what takes longest first"


@pytest.mark.parametrize("proxy", PROBE_FLOPS)
def test_probes_take_longer_with_more_of_everything(proxy):
    smallest = (100, 20, 64, 4)
    for position, value in enumerate(smallest):
        larger = (*smallest[:position], 2 * value, *smallest[position + 1 :])
        assert PROBE_FLOPS[proxy](*larger) > PROBE_FLOPS[proxy](*smallest) > 0


@pytest.mark.parametrize(
    ("pace", "num_candidates", "num_train", "num_test", "method"),
    [
        (CPU, 16, 320, 80, "nested"),
        (CPU, 36, 800, 200, "nested"),
        (GPU, 16, 320, 80, "shared"),
        (GPU, 36, 800, 200, "shared"),
        (GPU, 36, 8000, 2000, "nested"),
    ],
)
def test_auto_takes_what_answers_soonest_on_the_device(pace, num_candidates, num_train, num_test, method):
    question = ask(at_224(star(num_candidates)), pace)
    choice = take(question, num_train=num_train, num_test=num_test)
    assert (choice.method, choice.num_train, choice.num_test) == (method, num_train, num_test)
    totals_s = {one.method: one.total_s for one in choice.forecasts}
    assert totals_s[method] == min(totals_s.values()) and totals_s.keys() == {"shared", "nested"}
    assert choice.is_open and "soonest" in choice.reason


def test_a_method_that_is_asked_for_is_taken():
    question = ask(star(8), CPU)
    for asked in ("shared", "alsatian", "nested"):
        choice = take(question, asked)
        assert choice.method == asked and not choice.is_open and choice.reason == "it was asked for"
        assert {one.method for one in choice.forecasts} == {"shared", "nested", asked}, "the others for comparison"
    unshared = build_tree(star(8).candidates, sharing=False)
    assert [one.method for one in take(ask(unshared, CPU), "baseline").forecasts] == ["baseline"]


def test_a_single_candidate_leaves_nothing_to_choose():
    tree = build_tree([candidate("one", [digest(index) for index in range(NUM_BLOCKS)])], sharing=True)
    choice = take(ask(tree, CPU))
    assert (choice.method, choice.is_open, choice.reason) == ("shared", False, "there is a single candidate")


def test_nothing_that_can_run_is_forecast_to_take_nothing():
    tree = star(3)
    choice = take(Question(tree, (), frozenset(), "linear", 4, CPU))
    assert choice.forecast.timings_s["inference"] == 0


@pytest.mark.parametrize("budget_s", [75.0, 60.0, 40.0])
def test_a_budget_takes_the_largest_share_that_fits(budget_s):
    question = ask(at_224(star(16)), CPU)
    choice = take(question, num_train=2000, num_test=500, start_s=0.1, budget_s=budget_s)
    assert choice.forecast.total_s <= budget_s
    assert choice.num_train < 2000 and choice.num_test / choice.num_train == pytest.approx(0.25, abs=0.01)
    larger = take(question, num_train=round(choice.num_train / 0.8), num_test=round(choice.num_test / 0.8))
    assert larger.forecast.total_s + 0.1 > budget_s
    assert f"of 2,500 items fit the {budget_s:.0f}" in choice.reason.replace(".00", "").replace(".0", "")


def test_what_is_decoded_first_counts_against_the_budget():
    question = ask(star(4), CPU)
    free, decoding = (
        take(question, num_train=4000, num_test=400, budget_s=2.0, num_undecoded=num_undecoded)
        for num_undecoded in (lambda _train, _test: 0, lambda train, test: train + test)
    )
    assert decoding.num_train < free.num_train <= 4000


def test_too_small_a_budget_takes_the_fewest_items():
    choice = take(ask(at_224(star(16)), CPU, num_classes=4), num_train=2000, num_test=500, start_s=3.0, budget_s=2.0)
    assert choice.num_train == 16 and choice.num_test >= 8
    over_s = choice.forecast.total_s - 2.0
    took = f"items take {seconds_text(choice.forecast.total_s)}, {seconds_text(over_s)} more than"
    assert over_s > 1 and f"{took} the 2.00\u00a0s left of the time budget" in choice.reason
    few = take(ask(star(2), CPU), num_train=3, num_test=2, budget_s=1e-6)
    assert (few.num_train, few.num_test) == (3, 2), "never more than there are"


def test_a_budget_that_everything_fits_changes_nothing():
    question = ask(star(6), CPU)
    free, bound = (take(question, budget_s=budget_s) for budget_s in (None, 1e6))
    assert (free.method, free.num_train, free.num_test) == (bound.method, bound.num_train, bound.num_test)
    assert "all 400 items fit" in bound.reason
    assert math.isclose(free.forecast.total_s, bound.forecast.total_s)


def test_entrants_are_those_that_rungs_plan_to_keep():
    rungs = plan_rungs("alsatian", 9, 100, 20)
    assert expected_entrants("alsatian", rungs, 9, 0.0) == [9, 4, 2, 1]
    assert expected_entrants("nested", rungs, 9, 0.01) == [9, 4, 2, 1]
    assert expected_entrants("nested", rungs, 9, 0.0) == [9, 9, 9, 9], "without a tolerance nobody is dropped"


def test_candidates_and_folds_are_fitted_together_on_a_gpu():
    question = ask(star(16), GPU)
    nested_s, shared_s = (question.probes_s(method, 40, 10, 16) for method in ("nested", "shared"))
    assert shared_s == pytest.approx(GPU.rates.probe_s, rel=0.01)
    assert nested_s == pytest.approx(2 * GPU.rates.probe_s, rel=0.01), "64 probes of four folds, and 32 of two"


def test_nested_fits_a_probe_for_each_fold():
    question = ask(star(4), replace(CPU, num_streams=1))
    rates, flops = question.pace.rates, PROBE_FLOPS["linear"]
    fits = [(4, 300, 200)] * 4 + [(4, 200, 300)] * 2  # candidates, items trained on, items scored on
    expected_s = sum(num * (rates.probe_s + flops(*items, 512, 10) / rates.probe_flops_per_s) for num, *items in fits)
    assert question.probes_s("nested", 400, 100, 4) == pytest.approx(expected_s)
    scored = replace(question, proxy="logme")
    assert scored.probes_s("nested", 400, 100, 4) == scored.probes_s("shared", 400, 100, 4)
