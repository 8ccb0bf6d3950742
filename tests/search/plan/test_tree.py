"""The prefix tree: what candidates share is one node, in any order of candidates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysnap.search.plan.tree import build_tree, candidates_below, find_misfit, needed_nodes
from raysnap.store.preprocessing import Preprocessing
from tests.support.search_stores import PREPROCESSING, candidate, digest

NUM_BLOCKS = 9
paths = st.lists(st.lists(st.integers(0, 2), min_size=NUM_BLOCKS, max_size=NUM_BLOCKS), min_size=1, max_size=6)


def candidates_of(all_digits, **fields):
    """Return a candidate per list of digits; the digit at a position chooses the block there."""
    return [
        candidate(str(number), [digest(f"{position}{digit}") for position, digit in enumerate(digits)], **fields)
        for number, digits in enumerate(all_digits)
    ]


def path_to_root(tree, node):
    path = [node]
    while path[-1].parent is not None:
        path.append(tree.nodes[path[-1].parent])
    return path[::-1]


@given(paths, st.booleans())
def test_the_path_to_a_candidates_node_is_its_blocks(all_digits, sharing):
    candidates = candidates_of(all_digits)
    tree = build_tree(candidates, sharing=sharing)
    seen = []
    for node in tree.nodes:
        assert all(tree.nodes[child].parent == node.index for child in node.children)
        assert node.parent is None or node.index in tree.nodes[node.parent].children
        assert all(index > node.index for index in node.children)
        for number in node.candidates:
            seen.append(number)
            path = path_to_root(tree, node)
            assert tuple(step.block for step in path) == candidates[number].blocks
            assert [step.block_index for step in path] == list(range(NUM_BLOCKS))
    assert sorted(seen) == list(range(len(candidates)))


@given(paths)
def test_a_shared_tree_has_one_node_per_prefix(all_digits):
    prefixes = {tuple(digits[:length]) for digits in all_digits for length in range(1, NUM_BLOCKS + 1)}
    candidates = candidates_of(all_digits)
    assert len(build_tree(candidates, sharing=True).nodes) == len(prefixes)
    chains = build_tree(candidates, sharing=False)
    assert len(chains.nodes) == len(candidates) * NUM_BLOCKS
    assert all(len(node.children) <= 1 for node in chains.nodes)


@given(paths, st.randoms())
def test_the_order_of_candidates_changes_no_set_of_nodes(all_digits, random):
    def described(digits):
        tree = build_tree(candidates_of(digits), sharing=True)
        return {tuple(step.block for step in path_to_root(tree, node)) for node in tree.nodes}

    assert described(random.sample(all_digits, len(all_digits))) == described(all_digits)


@settings(max_examples=30)
@given(paths, st.data())
def test_the_kept_nodes_are_those_on_the_ways_to_kept_candidates(all_digits, data):
    tree = build_tree(candidates_of(all_digits), sharing=True)
    kept = data.draw(st.sets(st.integers(0, len(all_digits) - 1)))
    expected = {step.index for node in tree.nodes if kept & set(node.candidates) for step in path_to_root(tree, node)}
    assert needed_nodes(tree, kept) == expected
    for node in tree.nodes:
        ways = (path_to_root(tree, end) for end in tree.nodes if end.candidates)
        below = {number for way in ways if node in way for number in way[-1].candidates}
        assert candidates_below(tree, node) == below


def test_candidates_of_equal_blocks_end_at_one_node():
    tree = build_tree(candidates_of([[0] * NUM_BLOCKS] * 3), sharing=True)
    assert len(tree.nodes) == NUM_BLOCKS and tree.nodes[-1].candidates == (0, 1, 2)


@pytest.mark.parametrize(
    "other",
    [
        {"architecture": "resnet34"},
        {"preprocessing": Preprocessing(resize_size=36, image_size=24)},
        {"preprocessing": PREPROCESSING.model_copy(update={"mean": (0.5, 0.5, 0.5)})},
    ],
)
def test_architectures_and_preprocessings_share_nothing(other):
    same = [0] * NUM_BLOCKS
    tree = build_tree([*candidates_of([same]), *candidates_of([same], **other)], sharing=True)
    assert len(tree.roots) == 2 and len(tree.nodes) == 2 * NUM_BLOCKS
    assert not candidates_below(tree, tree.roots[0]) & candidates_below(tree, tree.roots[1])


def test_equal_blocks_below_different_ones_are_different_nodes():
    tree = build_tree(candidates_of([[0] * 4 + [1] + [0] * 4, [0] * NUM_BLOCKS]), sharing=True)
    assert len(tree.nodes) == 4 + 2 * 5
    fork = next(node for node in tree.nodes if len(node.children) == 2)
    assert fork.block_index == 3


@pytest.mark.parametrize(
    ("fields", "num_blocks", "reason"),
    [
        ({}, NUM_BLOCKS, None),
        ({}, NUM_BLOCKS - 1, "expected resnet18's blocks"),
        ({}, 0, "expected resnet18's blocks"),
        ({"architecture": "vit_b_32"}, NUM_BLOCKS, "224"),
        ({"preprocessing": Preprocessing(resize_size=32, image_size=36)}, NUM_BLOCKS, None),
        ({"preprocessing": Preprocessing(interpolation="lanczos", resize_mode="squash")}, NUM_BLOCKS, None),
    ],
)
def test_a_candidate_that_can_not_run_says_why(fields, num_blocks, reason):
    (one,) = candidates_of([[0] * num_blocks], **fields)
    misfit = find_misfit(one)
    assert misfit is None if reason is None else reason in misfit
    build_tree([one], sharing=True)


def test_an_unknown_architecture_is_a_misfit():
    one = candidates_of([[0] * NUM_BLOCKS])[0]
    stranger = type(one)(one.snapshot, one.name, "resnet_18", one.preprocessing, one.blocks)
    assert "resnet18" in find_misfit(stranger)
