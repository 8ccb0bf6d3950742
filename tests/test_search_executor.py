"""The executor: features are torchvision's own, peaks are the plan's, and counters are the tree's arithmetic."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from search_stores import PREPROCESSING, BlockShelf, Pixels, candidate, digest, one_thread, random_blocks, variant
from torchvision import models

from raysnap.anatomy import block_shapes
from raysnap.batches import normalise
from raysnap.errors import BlockDamaged, WeightsError
from raysnap.search.executor import Executor
from raysnap.search.plan import plan_walk
from raysnap.search.tree import build_tree, candidates_below, keep_candidates

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
    """The bodies of these snapshots as blocks in memory and the candidates that name them."""
    shelf, candidates = {}, []
    for number, snapshot_blocks in enumerate(snapshots):
        body = snapshot_blocks[:-1]
        digests = [digest(id(tensors)) for _, tensors in body]
        shelf |= dict(zip(digests, (tensors for _, tensors in body), strict=True))
        candidates.append(candidate(str(number), digests, architecture))
    return BlockShelf(shelf), candidates


def run_all(executor, budget_bytes, pixels, positions):
    """Features by candidate, all roots one after the other."""
    features = {}
    for root in executor.tree.roots:
        nodes = keep_candidates(executor.tree, candidates_below(executor.tree, root))
        assert executor.load_blocks([executor.tree.nodes[index] for index in sorted(nodes)]) == {}
        walk = plan_walk(executor.tree, root, nodes, budget_bytes)
        features |= executor.run(walk, pixels, positions)
    return features


@pytest.fixture(scope="module")
def small_snapshots():
    return [variant(SMALL, seed, r) for seed, r in ((0, 0), (1, 1), (2, 3), (3, 3), (4, 12))]


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("architecture", ["resnet18", SMALL])
def test_features_are_torchvisions_penultimate_features_bit_for_bit(architecture, sharing):
    snapshots = [variant(architecture, seed, r) for seed, r in ((0, 0), (1, 2), (2, 4))]
    shelf, candidates = shelf_and_candidates(architecture, snapshots)
    executor = Executor(build_tree(candidates, sharing=sharing), shelf, CPU)
    pixels = Pixels(6)
    features = run_all(executor, None, pixels, range(1, 6))
    with torch.inference_mode():
        inputs = normalise(pixels.pixels[1:6], PREPROCESSING.mean, PREPROCESSING.std)
        for number, snapshot_blocks in enumerate(snapshots):
            assert torch.equal(features[number], penultimate(architecture, snapshot_blocks)(inputs))


def test_features_do_not_depend_on_the_budget_or_on_where_a_batch_begins(small_snapshots):
    shelf, candidates = shelf_and_candidates(SMALL, small_snapshots)
    tree, pixels = build_tree(candidates, sharing=True), Pixels(11)
    least = plan_walk(tree, tree.roots[0], range(len(tree.nodes)), None)
    item_bytes = least.peak_activation_bytes // least.batch_items
    whole = run_all(Executor(tree, shelf, CPU), None, pixels, range(11))
    for num_items in (1, 2, 4, 10):
        executor = Executor(tree, shelf, CPU)
        pixels.reads.clear()
        features = run_all(executor, num_items * item_bytes + 7, pixels, range(11))
        assert executor.work.peak_activation_bytes == num_items * item_bytes
        assert max(len(read) for read in pixels.reads) == num_items
        assert [position for read in pixels.reads for position in read] == list(range(11))
        for number in whole:
            torch.testing.assert_close(features[number], whole[number], rtol=1e-5, atol=1e-5)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.integers(0, 1), min_size=8, max_size=8), min_size=1, max_size=5), st.integers(1, 5))
def test_the_measured_peak_and_the_counters_are_those_of_the_plan_on_random_trees(all_digits, batch_items):
    tensors = [block for _, block in random_blocks("resnet18", 0)[:-1]]
    names = [[digest(f"{index}{digit}") for index, digit in enumerate([0, *digits])] for digits in all_digits]
    shelf = BlockShelf({name: tensors[index] for row in names for index, name in enumerate(row)})
    tree = build_tree([candidate(str(number), row) for number, row in enumerate(names)], sharing=True)
    free = plan_walk(tree, tree.roots[0], range(len(tree.nodes)), None)
    item_bytes = free.peak_activation_bytes // free.batch_items
    executor = Executor(tree, shelf, CPU)
    features = run_all(executor, batch_items * item_bytes, Pixels(5), range(5))
    shapes = block_shapes("resnet18", 32)
    assert executor.work.peak_activation_bytes == batch_items * item_bytes
    assert executor.work.block_item_passes == 5 * len(tree.nodes)
    assert executor.work.flops == 5 * sum(shapes[node.block_index].flops for node in tree.nodes)
    assert sorted(features) == list(range(len(all_digits)))
    assert all(values.shape == (5, 512) and values.dtype == torch.float32 for values in features.values())


def test_each_unique_block_is_read_once_even_where_it_stands_under_different_parents():
    body = [digest(f"{index}") for index in range(9)]
    other = [*body[:4], digest("f"), *body[5:]]
    tensors = [block for _, block in random_blocks("resnet18", 0)[:-1]]
    shelf = BlockShelf(dict(zip(body, tensors, strict=True)) | {digest("f"): random_blocks("resnet18", 1)[4][1]})
    tree = build_tree([candidate("one", body), candidate("other", other)], sharing=True)
    executor = Executor(tree, shelf, CPU)
    features = run_all(executor, None, Pixels(2), range(2))
    assert sorted(shelf.reads) == sorted({*body, *other})
    assert executor.work.block_bytes_read == 10
    assert not torch.equal(features[0], features[1])


def test_blocks_that_are_kept_are_not_read_again_and_others_are(small_snapshots):
    shelf, candidates = shelf_and_candidates(SMALL, small_snapshots)
    tree = build_tree(candidates, sharing=True)
    executor = Executor(tree, shelf, CPU)
    run_all(executor, None, Pixels(2), range(2))
    executor.keep_blocks(keep_candidates(tree, [0]))
    kept, shelf.reads[:] = set(candidates[0].blocks), []
    run_all(executor, None, Pixels(2), range(2))
    gone = {block.digest for one in candidates for block in one.blocks if block not in kept}
    assert set(shelf.reads) == gone and len(shelf.reads) == len(gone)


def test_blocks_that_can_not_be_used_are_told_by_node_and_the_others_load():
    digests = [digest(index) for index in range(9)]
    tensors = dict(zip(digests, (block for _, block in random_blocks("resnet18", 0)[:-1]), strict=True))
    tensors[digests[3]] = tensors[digests[4]]

    def read(block_digest):
        if block_digest == digests[5]:
            raise BlockDamaged("a flipped bit", block_digest)
        return tensors[block_digest]

    tree = build_tree([candidate("one", digests)], sharing=True)
    executor = Executor(tree, read, CPU)
    faults = executor.load_blocks(list(tree.nodes))
    assert {index: type(error) for index, error in faults.items()} == {3: WeightsError, 5: BlockDamaged}
    assert executor.work.block_bytes_read == 8


def test_half_precision_blocks_run_in_single_precision():
    snapshot = [
        (name, {key: _halved(value) for key, value in block.items()}) for name, block in random_blocks(SMALL, 0)
    ]
    shelf, candidates = shelf_and_candidates(SMALL, [snapshot])
    features = run_all(Executor(build_tree(candidates, sharing=True), shelf, CPU), None, Pixels(3), range(3))
    assert features[0].dtype == torch.float32 and features[0].isfinite().all()


def _halved(value):
    return value.half() if value.is_floating_point() else value


def test_running_leaves_no_gradients_and_the_stored_tensors_alone(small_snapshots):
    before = [tensor.clone() for _, block in small_snapshots[0] for tensor in block.values()]
    shelf, candidates = shelf_and_candidates(SMALL, small_snapshots[:1])
    features = run_all(Executor(build_tree(candidates, sharing=True), shelf, CPU), None, Pixels(3), range(3))
    after = [tensor for _, block in small_snapshots[0] for tensor in block.values()]
    assert not features[0].requires_grad
    assert all(map(torch.equal, before, after))
