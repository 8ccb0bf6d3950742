"""The executor: features are torchvision's own, peaks are the plan's, and counters are the tree's arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torchvision import models

from raysnap.datasets.augmentation import normalise
from raysnap.errors import BlockDamaged
from raysnap.models.block_facts import block_shapes
from raysnap.models.numerics import Numerics
from raysnap.search.engine.block_shelf import Shelf
from raysnap.search.engine.executor import Executor
from raysnap.search.engine.work import Work
from raysnap.search.plan.tree import build_tree
from raysnap.search.plan.walk import Room, plan_walk
from tests.support.search_stores import (
    PREPROCESSING,
    BlockShelf,
    Pixels,
    candidate,
    digest,
    one_thread,
    random_blocks,
    variant,
)

CPU = torch.device("cpu")
SMALL = "mobilenet_v3_small"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


def penultimate(architecture, snapshot_blocks):
    """torchvision's own model up to the input of its last linear layer."""
    model = models.get_model(architecture, weights=None, num_classes=4)
    model.load_state_dict({name: tensor for _, tensors in snapshot_blocks for name, tensor in tensors.items()})
    if architecture == "resnet18":
        model.fc = torch.nn.Identity()
    else:
        model.classifier[-1] = torch.nn.Identity()
    return model.eval()


def shelf_and_candidates(architecture, snapshots):
    """Return the bodies of these snapshots as blocks in memory and the candidates that name them."""
    shelf, candidates = {}, []
    for number, snapshot_blocks in enumerate(snapshots):
        body = snapshot_blocks[:-1]
        digests = [digest(id(tensors)) for _, tensors in body]
        shelf |= dict(zip(digests, (tensors for _, tensors in body), strict=True))
        candidates.append(candidate(str(number), digests, architecture))
    return BlockShelf(shelf), candidates


def executor_of(tree, shelf, pixels, budget_bytes=None, precision="float32", **options):
    """Return an executor over blocks in memory."""
    numerics, work = Numerics.for_inference(precision, CPU), Work()
    return Executor(tree, pixels, Shelf(shelf, numerics, work), work, numerics, budget_bytes=budget_bytes, **options)


def gather_all(executor, positions):
    """Every candidate's features, none of which may fail."""
    found = executor.gather(range(len(executor.tree.candidates)), positions, is_last=False)
    assert found.failed == {}
    return found.features


@pytest.fixture(scope="module")
def small_snapshots():
    return [variant(SMALL, seed, r) for seed, r in ((0, 0), (1, 1), (2, 3), (3, 3), (4, 12))]


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("architecture", ["resnet18", SMALL])
def test_features_are_torchvisions_penultimate_features(architecture, sharing):
    snapshots = [variant(architecture, seed, r) for seed, r in ((0, 0), (1, 2), (2, 4))]
    shelf, candidates = shelf_and_candidates(architecture, snapshots)
    pixels = Pixels(6)
    features = gather_all(executor_of(build_tree(candidates, sharing=sharing), shelf, pixels), range(1, 6))
    with torch.inference_mode():
        inputs = normalise(pixels.pixels[1:6], PREPROCESSING.mean, PREPROCESSING.std)
        for number, snapshot_blocks in enumerate(snapshots):
            expected = penultimate(architecture, snapshot_blocks)(inputs).numpy()
            assert_allclose(features[number], expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("precision", ["fast_float32", "bfloat16"])
def test_features_are_the_same_with_and_without_sharing(precision):
    shelf, candidates = shelf_and_candidates("resnet18", [variant("resnet18", seed, r) for seed, r in ((0, 0), (1, 2))])
    features = [
        gather_all(
            executor_of(build_tree(candidates, sharing=sharing), shelf, Pixels(6), precision=precision), range(6)
        )
        for sharing in (True, False)
    ]
    for number in range(len(candidates)):
        assert np.array_equal(features[0][number], features[1][number])


def test_half_precision_stays_close_and_says_so(small_snapshots):
    shelf, candidates = shelf_and_candidates(SMALL, small_snapshots)
    tree, pixels = build_tree(candidates, sharing=True), Pixels(6)
    exact = gather_all(executor_of(tree, shelf, pixels), range(6))
    rough = gather_all(executor_of(tree, shelf, pixels, precision="bfloat16"), range(6))
    for number in exact:
        assert rough[number].dtype == np.float32
        error = np.linalg.norm(rough[number] - exact[number]) / np.linalg.norm(exact[number])
        assert 1e-5 < error < 0.03


@pytest.mark.parametrize("positions", [[4, 2, 9], [7], list(range(10, -1, -1))])
def test_items_come_in_the_order_asked_for(small_snapshots, positions):
    shelf, candidates = shelf_and_candidates(SMALL, small_snapshots[:2])
    tree, pixels = build_tree(candidates, sharing=True), Pixels(11)
    whole = gather_all(executor_of(tree, shelf, pixels), range(11))
    some = gather_all(executor_of(tree, shelf, pixels), positions)
    for number in whole:
        assert_allclose(some[number], whole[number][positions], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_features_depend_on_neither_budget_nor_batch(small_snapshots, precision):
    shelf, candidates = shelf_and_candidates(SMALL, small_snapshots)
    tree, pixels = build_tree(candidates, sharing=True), Pixels(11)
    room = Room(value_bytes=4 if precision == "float32" else 2)
    least = plan_walk(tree, tree.roots[0], range(len(tree.nodes)), room)
    item_bytes = least.peak_activation_bytes // least.batch_items
    whole = gather_all(executor_of(tree, shelf, pixels, precision=precision), range(11))
    for num_items in (1, 2, 4, 10):
        executor = executor_of(tree, shelf, pixels, num_items * item_bytes + 7, precision)
        pixels.reads.clear()
        features = gather_all(executor, range(11))
        lengths = [len(read) for read in pixels.reads]
        assert len(lengths) == -(-11 // num_items) and max(lengths) <= num_items and max(lengths) - min(lengths) <= 1
        assert executor.work.peak_activation_bytes == max(lengths) * item_bytes
        assert [position for read in pixels.reads for position in read] == list(range(11))
        for number in whole:
            tolerance = 1e-5 if precision == "float32" else 0.02
            assert_allclose(features[number], whole[number], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("budget_items", [None, 1, 2, 5])
def test_several_streams_give_what_one_gives(small_snapshots, budget_items):
    shelf, candidates = shelf_and_candidates(SMALL, small_snapshots)
    tree, pixels = build_tree(candidates, sharing=True), Pixels(11)
    single = executor_of(tree, shelf, pixels)
    expected = gather_all(single, range(11))
    walk = plan_walk(tree, tree.roots[0], range(len(tree.nodes)), Room())
    budget_bytes = budget_items and budget_items * walk.peak_activation_bytes // walk.batch_items
    torch.set_num_threads(3)
    try:
        executor = executor_of(tree, shelf, pixels, budget_bytes)
    finally:
        torch.set_num_threads(1)
    found = gather_all(executor, range(11))
    for number in expected:
        assert_allclose(found[number], expected[number], rtol=1e-5, atol=1e-5)
    assert (executor.work.block_item_passes, executor.work.flops) == (single.work.block_item_passes, single.work.flops)
    assert executor.work.block_bytes_read == single.work.block_bytes_read
    assert 0 < executor.work.peak_activation_bytes <= (budget_bytes or 3 * walk.peak_activation_bytes)
    assert executor.work.bound_s > 0


@pytest.mark.parametrize("sharing", [True, False])
def test_a_bound_on_memory_changes_no_bit(sharing):
    snapshots = [variant("resnet18", seed, r) for seed, r in ((0, 0), (1, 1), (2, 4), (3, 4))]
    shelf, candidates = shelf_and_candidates("resnet18", snapshots)
    tree, num_read = build_tree(candidates, sharing=sharing), []
    torch.set_num_threads(3)
    try:
        free = executor_of(tree, shelf, Pixels(40), is_sharing=sharing)
        expected = gather_all(free, range(40))
        for share in (1, 0.3, 0.23) if sharing else (1, 0.7, 0.6):
            shelf.reads.clear()
            memory_bytes = int(share * free.work.peak_memory_bytes)
            tight = executor_of(tree, shelf, Pixels(40), memory_bytes=memory_bytes, is_sharing=sharing)
            found = gather_all(tight, range(40))
            assert all(np.array_equal(found[number], expected[number]) for number in expected)
            assert 0 < tight.work.peak_activation_bytes < tight.work.peak_memory_bytes <= memory_bytes
            assert tight.work.block_item_passes == free.work.block_item_passes
            num_read.append(len(shelf.reads))
    finally:
        torch.set_num_threads(1)
    assert num_read[0] == (18 if sharing else 36)
    assert num_read[0] <= num_read[1] < num_read[2] or not sharing


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.integers(0, 1), min_size=8, max_size=8), min_size=1, max_size=5), st.integers(1, 5))
def test_peak_and_counters_are_those_of_the_plan(all_digits, batch_items):
    tensors = [block for _, block in random_blocks("resnet18", 0)[:-1]]
    names = [[digest(f"{index}{digit}") for index, digit in enumerate([0, *digits])] for digits in all_digits]
    shelf = BlockShelf({name: tensors[index] for row in names for index, name in enumerate(row)})
    tree = build_tree([candidate(str(number), row) for number, row in enumerate(names)], sharing=True)
    free = plan_walk(tree, tree.roots[0], range(len(tree.nodes)), Room())
    item_bytes = free.peak_activation_bytes // free.batch_items
    executor = executor_of(tree, shelf, Pixels(5), batch_items * item_bytes)
    features = gather_all(executor, range(5))
    shapes = block_shapes("resnet18", 32)
    assert executor.work.peak_activation_bytes == -(-5 // -(-5 // batch_items)) * item_bytes
    assert executor.work.block_item_passes == 5 * len(tree.nodes)
    assert executor.work.flops == 5 * sum(shapes[node.block_index].flops for node in tree.nodes)
    assert sorted(features) == list(range(len(all_digits)))
    assert all(values.shape == (5, 512) and values.dtype == np.float32 for values in features.values())


def test_a_block_under_several_parents_is_read_once():
    body = [digest(f"{index}") for index in range(9)]
    other = [*body[:4], digest("f"), *body[5:]]
    tensors = [block for _, block in random_blocks("resnet18", 0)[:-1]]
    shelf = BlockShelf(dict(zip(body, tensors, strict=True)) | {digest("f"): random_blocks("resnet18", 1)[4][1]})
    tree = build_tree([candidate("one", body), candidate("other", other)], sharing=True)
    executor = executor_of(tree, shelf, Pixels(2))
    features = gather_all(executor, range(2))
    assert sorted(shelf.reads) == sorted({*body, *other})
    assert executor.work.block_bytes_read == 10
    assert not np.array_equal(features[0], features[1])


def test_blocks_that_are_kept_are_not_read_again_and_others_are(small_snapshots):
    shelf, candidates = shelf_and_candidates(SMALL, small_snapshots)
    tree = build_tree(candidates, sharing=True)
    executor = executor_of(tree, shelf, Pixels(2))
    gather_all(executor, range(2))
    executor.keep([0])
    kept, shelf.reads[:] = set(candidates[0].blocks), []
    gather_all(executor, range(2))
    gone = {block.digest for one in candidates for block in one.blocks if block not in kept}
    assert set(shelf.reads) == gone and len(shelf.reads) == len(gone)


@pytest.mark.parametrize("budget_items", [None, 1, 2])
def test_a_faulty_block_fails_only_candidates_below_it(budget_items):
    own, other = [digest(index) for index in range(9)], [digest(f"a{index}") for index in range(9)]
    bodies = {"whole": own, "damaged": [*own[:5], other[5], *own[6:]], "misfit": [*own[:3], other[3], *own[4:]]}
    tensors = [block for _, block in random_blocks("resnet18", 0)[:-1]]
    known = dict(zip(own, tensors, strict=True)) | {other[3]: tensors[4]}

    def read(block_digest):
        if block_digest == other[5]:
            raise BlockDamaged("a flipped bit", block_digest)
        return known[block_digest]

    tree = build_tree([candidate(name, body) for name, body in bodies.items()], sharing=True)
    walk = plan_walk(tree, tree.roots[0], range(len(tree.nodes)), Room())
    budget_bytes = budget_items and budget_items * walk.peak_activation_bytes // walk.batch_items
    executor = executor_of(tree, read, Pixels(5), budget_bytes)
    found = executor.gather([0, 1, 2], range(5), is_last=True)
    assert sorted(found.features) == [0] and found.features[0].shape == (5, 512)
    assert "a flipped bit" in found.failed[1] and "missing" in found.failed[2]
    alone = gather_all(executor_of(build_tree(tree.candidates[:1], sharing=True), read, Pixels(5)), range(5))
    assert_allclose(found.features[0], alone[0], rtol=1e-4, atol=1e-4)
    assert executor.work.block_bytes_read == 9


def test_half_precision_blocks_run_in_single_precision():
    snapshot = [
        (name, {key: _halved(value) for key, value in block.items()}) for name, block in random_blocks(SMALL, 0)
    ]
    shelf, candidates = shelf_and_candidates(SMALL, [snapshot])
    features = gather_all(executor_of(build_tree(candidates, sharing=True), shelf, Pixels(3)), range(3))
    assert features[0].dtype == np.float32 and np.isfinite(features[0]).all()


def _halved(value):
    return value.half() if value.is_floating_point() else value


def test_running_changes_no_stored_tensor(small_snapshots):
    before = [tensor.clone() for _, block in small_snapshots[0] for tensor in block.values()]
    shelf, candidates = shelf_and_candidates(SMALL, small_snapshots[:1])
    gather_all(executor_of(build_tree(candidates, sharing=True), shelf, Pixels(3)), range(3))
    after = [tensor for _, block in small_snapshots[0] for tensor in block.values()]
    assert all(map(torch.equal, before, after))
