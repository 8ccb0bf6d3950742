"""Plans: rungs as published, and walks over random trees whose peak is the least that depth first can do."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysnap.errors import UsageError
from raysnap.models.block_facts import block_shapes
from raysnap.search.plan import walk as plan
from raysnap.search.plan.rungs import NUM_FOLDS, plan_rungs
from raysnap.search.plan.tree import build_tree, needed_nodes
from raysnap.search.plan.walk import Room, plan_walk, usual_batch_items
from tests.support.search_stores import PREPROCESSING, candidate, digest
from tests.support.search_trees import FakeShape, random_trees

INPUT_BYTES = 4 * 3 * PREPROCESSING.image_size**2
EVERY_METHOD = ("baseline", "shift", "alsatian", "shared", "nested")


@pytest.mark.parametrize("method", ["shift", "alsatian"])
@pytest.mark.parametrize(
    ("num_candidates", "num_train", "starts", "num_kept"),
    [
        (16, 320, [0, 20, 60, 140, 320], [8, 4, 2, 1]),
        (36, 800, [0, 13, 39, 91, 195, 403, 800], [18, 9, 4, 2, 1, 1]),
        (8, 80, [0, 10, 30, 80], [4, 2, 1]),
        (1, 100, [0, 100], [1]),
        (2, 100, [0, 100], [1]),
        (3, 100, [0, 25, 100], [1, 1]),
        (16, 3, [0, 1, 3], [8, 4]),
        (1000, 1, [0, 1], [500]),
    ],
)
def test_the_published_ranges_and_survivors(method, num_candidates, num_train, starts, num_kept):
    rungs = plan_rungs(method, num_candidates, num_train, 200)
    assert [(rung.train_start, rung.train_stop) for rung in rungs] == list(itertools.pairwise(starts))
    assert [(rung.test_start, rung.test_stop) for rung in rungs] == [(0, 200)] + [(200, 200)] * (len(rungs) - 1)
    assert [rung.num_kept for rung in rungs] == num_kept


@pytest.mark.parametrize(
    ("num_candidates", "num_train", "num_test", "train_stops", "test_stops"),
    [
        (36, 800, 200, [48, 68, 100, 140, 200, 280, 400, 564, 800], [13, 18, 25, 36, 50, 71, 100, 142, 200]),
        (36, 8000, 10, [500, 704, 1000, 1412, 2000, 2828, 4000, 5656, 8000], [1, 1, 2, 2, 3, 4, 5, 8, 10]),
        (16, 320, 80, [40, 56, 80, 112, 160, 224, 320], [10, 15, 20, 29, 40, 57, 80]),
        (1, 100, 10, [48, 68, 100], [5, 8, 10]),
        (8, 2, 1, [2], [1]),
    ],
)
def test_nested_doubles_items_in_two_rungs(num_candidates, num_train, num_test, train_stops, test_stops):
    rungs = plan_rungs("nested", num_candidates, num_train, num_test)
    assert [rung.train_stop for rung in rungs] == train_stops
    assert [rung.test_stop for rung in rungs] == test_stops
    halved = [max(1, num_candidates >> number) for number in range(1, len(rungs) + 1)]
    assert [rung.num_kept for rung in rungs][1::2] == halved[: len(rungs) // 2]


@given(st.sampled_from(EVERY_METHOD), st.integers(1, 10_000), st.integers(1, 100_000), st.integers(1, 100_000))
def test_rungs_cover_all_items_once_in_doubling_ranges(method, num_candidates, num_train, num_test):
    rungs = plan_rungs(method, num_candidates, num_train, num_test)
    assert (rungs[0].train_start, rungs[-1].train_stop) == (0, num_train)
    assert (rungs[0].test_start, rungs[-1].test_stop) == (0, num_test)
    assert all(one.train_stop == other.train_start for one, other in itertools.pairwise(rungs))
    assert all(one.test_stop == other.test_start for one, other in itertools.pairwise(rungs))
    assert all(rung.test_start <= rung.test_stop and rung.test_stop >= 1 for rung in rungs)
    lengths = [rung.train_stop - rung.train_start for rung in rungs]
    assert min(lengths) >= 1
    early_stops = [rung.train_stop for rung in rungs[:-1]]
    if method == "nested":
        assert all(stop % NUM_FOLDS == 0 for stop in early_stops)
        assert all(0 <= other - 2 * one <= NUM_FOLDS for one, other in zip(early_stops, early_stops[2:], strict=False))
        assert len(rungs) <= 9
    else:
        assert all(other == 2 * one for one, other in itertools.pairwise(lengths[:-1]))
        assert len(rungs) <= max(1, math.ceil(math.log2(num_candidates)))
    kept = [num_candidates, *(rung.num_kept for rung in rungs)]
    assert min(kept) >= 1 and all(other <= one for one, other in itertools.pairwise(kept))
    if method in ("baseline", "shared"):
        assert len(rungs) == 1 and kept == [num_candidates] * 2


def peak_of_order(tree, order, shapes, needed):
    """Return the most bytes live at once when nodes run in `order`, each output until its last child has run."""
    waiting = {index: sum(child in needed for child in tree.nodes[index].children) for index in order}
    live = {None: INPUT_BYTES}
    waiting[None] = 1
    peak = 0
    for index in order:
        node = tree.nodes[index]
        output = shapes[node.block_index].output_bytes
        peak = max(peak, sum(live.values()) + output)
        waiting[node.parent] -= 1
        if waiting[node.parent] == 0:
            del live[node.parent]
        if waiting[index]:
            live[index] = output
    return peak


def depth_first_orders(tree, index, needed):
    """Every depth-first order of the needed nodes from this one down."""
    children = [child for child in tree.nodes[index].children if child in needed]
    below = {child: list(depth_first_orders(tree, child, needed)) for child in children}
    for siblings in itertools.permutations(children):
        for parts in itertools.product(*(below[child] for child in siblings)):
            yield [index, *itertools.chain(*parts)]


@settings(max_examples=150)
@given(random_trees(), st.integers(1, 5_000_000))
def test_a_walks_peak_is_the_least_of_all_orders(tree_and_shapes, budget_bytes):
    tree, shapes, kept = tree_and_shapes
    needed = needed_nodes(tree, kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "block_shapes", lambda architecture, image_size: shapes)
        walk = plan_walk(tree, tree.roots[0], needed, Room())
        least = min(peak_of_order(tree, order, shapes, needed) for order in depth_first_orders(tree, walk.root, needed))
        if budget_bytes < least:
            with pytest.raises(UsageError, match=f"holds {least} bytes"):
                plan_walk(tree, tree.roots[0], needed, Room(budget_bytes))
        else:
            tight = plan_walk(tree, tree.roots[0], needed, Room(budget_bytes))
            assert tight.peak_activation_bytes <= budget_bytes
            assert tight.batch_items == min(walk.batch_items, budget_bytes // least)
            assert tight.steps == walk.steps
    order = [step.node for step in walk.steps]
    assert sorted(order) == sorted(needed), "every needed node once, no other"
    assert peak_of_order(tree, order, shapes, needed) == least
    assert walk.peak_activation_bytes == walk.batch_items * least


def test_the_child_whose_subtree_needs_the_most_goes_last():
    """A fork whose one branch forks again: whichever candidate comes first, the fork's output is let go before that."""
    shapes = tuple(map(FakeShape, (100_000, 100_000, 200_000, 900_000)))
    once, again, twice = ((0, 0, 0, 0), (0, 1, 0, 0), (0, 1, 0, 1))
    for order in itertools.permutations((once, again, twice)):
        candidates = [
            candidate(str(number), [digest(f"{position}{digit}") for position, digit in enumerate(digits)])
            for number, digits in enumerate(order)
        ]
        tree = build_tree(candidates, sharing=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan, "block_shapes", lambda architecture, image_size: shapes)
            walk = plan_walk(tree, tree.roots[0], range(len(tree.nodes)), Room())
        assert walk.peak_activation_bytes == walk.batch_items * (100_000 + 200_000 + 900_000)
        assert peak_of_order(tree, [step.node for step in walk.steps], shapes, range(len(tree.nodes))) == 1_200_000


@settings(max_examples=50)
@given(random_trees())
def test_a_step_frees_its_input_after_the_last_child(tree_and_shapes):
    tree, shapes, kept = tree_and_shapes
    needed = needed_nodes(tree, kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "block_shapes", lambda architecture, image_size: shapes)
        steps = plan_walk(tree, tree.roots[0], needed, Room()).steps
    held = {None}
    for step in steps:
        assert tree.nodes[step.node].parent in held
        if step.frees_input:
            held.remove(tree.nodes[step.node].parent)
        if step.keeps_output:
            held.add(step.node)
    assert held == set()


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small", "vit_b_32"])
def test_batches_hold_between_one_item_and_the_most(architecture):
    sizes = (224,) if architecture == "vit_b_32" else (32, 224, 512)
    items = [usual_batch_items(architecture, size, "cpu") for size in sizes]
    assert all(1 <= num <= plan.MAX_BATCH_ITEMS for num in items)
    assert items == sorted(items, reverse=True)


def test_images_of_the_usual_size_share_the_reading_of_weights():
    for architecture in ("resnet18", "resnet50", "mobilenet_v2", "convnext_tiny", "vit_b_32"):
        assert usual_batch_items(architecture, 224, "cpu") >= plan.ENOUGH_BATCH_ITEMS
    assert usual_batch_items("resnet50", 1024, "cpu") == 1


def test_a_chain_peaks_at_its_largest_input_and_output():
    one = candidate("one", [digest(index) for index in range(9)])
    tree = build_tree([one], sharing=True)
    outputs = [INPUT_BYTES, *(shape.output_bytes for shape in block_shapes("resnet18", 32)[:-1])]
    walk = plan_walk(tree, tree.roots[0], range(9), Room())
    assert walk.peak_activation_bytes == walk.batch_items * max(a + b for a, b in itertools.pairwise(outputs))


@given(st.integers(0, 200), st.integers(1, 20), st.integers(1, 8))
def test_items_are_split_into_even_batches_for_all_streams(num_items, batch_items, num_streams):
    walk = plan.Walk(0, (), batch_items, num_streams, 0)
    batches = walk.split(range(num_items))
    assert [position for batch in batches for position in batch] == list(range(num_items))
    lengths = [len(batch) for batch in batches]
    assert not lengths or (max(lengths) <= batch_items and max(lengths) - min(lengths) <= 1 <= min(lengths))
    assert len(lengths) % num_streams == 0 or len(lengths) == num_items


@pytest.mark.parametrize(
    ("budget_items", "expected"), [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (7, (4, 1)), (9, (4, 2)), (None, (4, None))]
)
def test_batches_that_run_at_once_share_the_budget(budget_items, expected):
    tree = build_tree([candidate("one", [digest(index) for index in range(9)])], sharing=True)
    free = plan_walk(tree, tree.roots[0], range(9), Room())
    item_bytes = free.peak_activation_bytes // free.batch_items
    budget_bytes = budget_items and budget_items * item_bytes
    walk = plan_walk(tree, tree.roots[0], range(9), Room(budget_bytes, num_streams=4))
    assert (walk.num_streams, walk.batch_items) == (expected[0], expected[1] or free.batch_items)
    assert walk.peak_activation_bytes == walk.num_streams * walk.batch_items * item_bytes


def test_a_budget_below_one_item_is_refused_with_the_need():
    tree = build_tree([candidate("one", [digest(index) for index in range(9)])], sharing=True)
    with pytest.raises(UsageError, match="--budget 1000: resnet18 at 32 px holds [0-9]+ bytes"):
        plan_walk(tree, tree.roots[0], range(9), Room(1000))
