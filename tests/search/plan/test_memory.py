"""Plans within a bound on memory: never exceeded, every step once on every item, and no more read than has to be."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysnap.errors import UsageError
from raysnap.search.plan import walk as plan
from raysnap.search.plan.costs import block_key
from raysnap.search.plan.memory import Bound, plan_schedule
from raysnap.search.plan.tree import candidates_below
from raysnap.search.plan.walk import Room
from tests.support.search_trees import FakeShape, random_trees, star

ITEM_BYTES = 5000


def sizes_of(tree, num_bytes):
    return {block_key(node): num_bytes for node in tree.nodes}


def tops_of(tree):
    return {root.index: {node.index for node in tree.nodes if root_of(tree, node) == root.index} for root in tree.roots}


def root_of(tree, node):
    while node.parent is not None:
        node = tree.nodes[node.parent]
    return node.index


def play(tree, schedule, bound, num_items, value_bytes, held=()):
    """Run the schedule with plain numbers.

    Returns:
        The bytes of blocks read; those held at the end, by key.
    """
    here, read_bytes = set(held), 0
    outputs = {}  # by walk and item, what it holds: bytes by node
    done = set()

    def held_bytes():
        blocks = sum(bound.block_bytes[key] for key in here)
        return bound.reading_bytes + bound.walking_bytes + blocks + sum(sum(live.values()) for live in outputs.values())

    for stage in schedule.stages:
        here.difference_update(stage.dropped)
        for index in stage.fetched:
            key = block_key(tree.nodes[index])
            read_bytes += bound.block_bytes[key] * (key not in here)
            here.add(key)
        walk = schedule.walks[stage.walk]
        root = tree.nodes[walk.root]
        input_bytes = 12 * root.preprocessing.image_size**2 * value_bytes // 4
        for number in stage.batches:
            for item in schedule.batches[stage.walk][number]:
                if stage.steps.start == 0:
                    assert (stage.walk, item) not in outputs
                    outputs[stage.walk, item] = {root.parent: input_bytes}
            for step in walk.steps[stage.steps.start : stage.steps.stop]:
                node = tree.nodes[step.node]
                assert block_key(node) in here
                for item in schedule.batches[stage.walk][number]:
                    live = outputs[stage.walk, item]
                    assert node.parent in live and (step.node, item) not in done
                    done.add((step.node, item))
                    output = plan.block_shapes(node.architecture, 0)[node.block_index].output_bytes * value_bytes // 4
                    live[step.node] = output
                assert held_bytes() <= stage.peak_bytes <= schedule.peak_bytes
                for item in schedule.batches[stage.walk][number]:
                    live = outputs[stage.walk, item]
                    if not step.keeps_output:
                        del live[step.node]
                    if step.frees_input:
                        del live[node.parent]
    assert not any(outputs.values())
    here.difference_update(schedule.dropped)
    assert bound.resting_bytes + sum(bound.block_bytes[key] for key in here) <= schedule.peak_bytes
    expected = {(step.node, item) for walk in schedule.walks for step in walk.steps for item in range(num_items)}
    assert done == expected, "every step once on every item"
    return read_bytes, here


@settings(max_examples=100)
@given(
    random_trees(),
    st.data(),
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([2, 4]),
    st.booleans(),
    st.floats(0, 2),
)
def test_the_bound_is_never_exceeded(tree_and_shapes, data, num_items, num_streams, value_bytes, is_last, tightness):
    tree, shapes, _ = tree_and_shapes
    keys = sorted(sizes_of(tree, 0))
    sizes = {key: 1000 * data.draw(st.sampled_from((1, 10, 100, 1000))) for key in keys}
    held = data.draw(st.sets(st.sampled_from(keys)))
    others = [1000 * data.draw(st.integers(0, 50)) for _ in range(3)]
    room = Room(value_bytes=value_bytes, num_streams=num_streams)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "block_shapes", lambda architecture, image_size: shapes)
        free = plan_schedule(tree, tops_of(tree), num_items, room, Bound(None, sizes, *others), held, is_last=is_last)
        read_bytes, _ = play(tree, free, Bound(None, sizes, *others), num_items, value_bytes, held)
        assert read_bytes == sum(sizes[key] for key in sizes.keys() - held)
        bound = Bound(int(tightness * free.peak_bytes), sizes, *others)
        try:
            tight = plan_schedule(tree, tops_of(tree), num_items, room, bound, held, is_last=is_last)
        except UsageError:
            assert bound.memory_bytes < free.peak_bytes, "what is planned without a bound fits its own peak"
            return
        _, kept = play(tree, tight, bound, num_items, value_bytes, held)
        assert tight.peak_bytes <= bound.memory_bytes
        assert not (is_last and kept)


def plan_star(memory_bytes, output_bytes=ITEM_BYTES, num_items=64, **options):
    """Plan and play a walk over twenty snapshots of one base, with blocks of a megabyte each."""
    tree = star(20, "uniform")
    bound = Bound(memory_bytes, {block_key(node): 10**6 for node in tree.nodes})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "block_shapes", lambda architecture, image_size: (FakeShape(output_bytes),) * 9)
        patch.setattr(plan, "MAX_BATCH_ITEMS", 8)
        schedule = plan_schedule(tree, tops_of(tree), num_items, Room(), bound, **options)
        read_bytes, kept = play(tree, schedule, bound, num_items, 4)
    return tree, schedule, read_bytes, kept


def test_each_block_is_read_once_where_activations_fit():
    tree, schedule, read_bytes, _ = plan_star(memory_bytes=12 * 10**6)
    assert len(tree.nodes) > 50 and len(schedule.stages) > 10
    assert read_bytes == len(tree.nodes) * 10**6


def test_groups_are_as_large_as_activations_allow():
    tree, schedule, read_bytes, _ = plan_star(memory_bytes=18 * 10**6, output_bytes=100_000)
    num_groups = sum(stage.steps.start == 0 for stage in schedule.stages)
    assert 1 < num_groups < 8 < len(schedule.stages), "neither all items at once nor each batch alone"
    assert read_bytes < num_groups * len(tree.nodes) * 10**6, "some blocks stay"


def test_blocks_of_most_candidates_stay_for_the_next_rung():
    tree, _, _, kept = plan_star(memory_bytes=12 * 10**6)
    num_below = {block_key(node): len(candidates_below(tree, node)) for node in tree.nodes}
    assert {key for key, num in num_below.items() if num > 6} < kept
    assert len(kept) >= 10


def test_a_bound_below_one_item_is_refused_with_the_need():
    with pytest.raises(UsageError, match="memory: resnet18 at 32 px takes [0-9]+ bytes .* found 1000000 ") as refused:
        plan_star(memory_bytes=10**6)
    plan_star(memory_bytes=int(str(refused.value).split(" takes ")[1].split()[0]))
