"""The laws between methods on each family of architectures: under any budget, in any order, with any cache."""

import pytest

from raysnap.datasets.dataset import open_dataset
from raysnap.models.block_facts import block_shapes
from raysnap.search import search
from raysnap.search.candidates import find_candidates
from raysnap.search.plan.tree import build_tree
from raysnap.store.store import Store
from tests.support.search_families import DATA, NUM_ITEMS, SHAPES, SIZES, family_store, lines
from tests.support.search_stores import one_thread


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    open_dataset(DATA, directory, SHAPES)
    return directory


@pytest.fixture(scope="module", params=SIZES)
def family(request, tmp_path_factory):
    """Return an architecture and its store."""
    return request.param, family_store(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def find(family, data_dir):
    """Return a search of the family's store; equal searches run once."""
    _, store = family
    found = {}

    def run(method, **keywords):
        key = (method, *sorted(keywords.items()))
        if key not in found:
            found[key] = search(store, DATA, data_dir=data_dir, shapes=SHAPES, method=method, **keywords)
        return found[key]

    return run


def test_sharing_changes_no_score(find):
    assert lines(find("shared")) == lines(find("baseline"))


def test_sharing_changes_no_rung(find):
    assert lines(find("alsatian")) == lines(find("shift"))


def test_the_work_of_shared_is_that_of_the_tree(family, find):
    architecture, store = family
    shapes = block_shapes(architecture, SIZES[architecture])[:-1]
    shared = find("shared")
    tree = build_tree(find_candidates(store, None, None), sharing=True)
    assert len(tree.nodes) == len(shapes) + 1 + 2
    assert shared.work["block_item_passes"] == NUM_ITEMS * len(tree.nodes)
    assert shared.work["flops"] == NUM_ITEMS * sum(shapes[node.block_index].flops for node in tree.nodes)
    assert shared.work["block_bytes_read"] == sum(node.block.num_bytes for node in tree.nodes)


def test_baseline_runs_every_block_for_every_candidate(family, find):
    architecture, _ = family
    num_blocks = len(block_shapes(architecture, SIZES[architecture])) - 1
    assert find("baseline").work["block_item_passes"] == NUM_ITEMS * 3 * num_blocks


def test_a_budget_bounds_activations_and_keeps_the_ranking(find):
    shared = find("shared")
    tight = find("shared", budget_bytes=shared.peak_activation_bytes // 2)
    assert tight.peak_activation_bytes <= shared.peak_activation_bytes // 2
    assert [one.snapshot for one in tight.ranking] == [one.snapshot for one in shared.ranking]
    assert [one.score for one in tight.ranking] == pytest.approx([one.score for one in shared.ranking], abs=1e-5)


def test_a_bound_on_memory_changes_no_score(find):
    shared = find("shared")
    tight = find("shared", memory_bytes=int(0.7 * shared.peak_memory_bytes))
    assert tight.peak_memory_bytes <= 0.7 * shared.peak_memory_bytes
    assert lines(tight) == lines(shared)
    assert tight.work["block_item_passes"] == shared.work["block_item_passes"]
    assert tight.work["block_bytes_read"] >= shared.work["block_bytes_read"]


def test_the_order_of_manifests_changes_nothing(family, find, data_dir, monkeypatch):
    _, store = family
    expected = lines(find("shared"))
    manifests = store.manifests()
    monkeypatch.setattr(Store, "manifests", lambda self, where=None: manifests[::-1])
    assert lines(search(store, DATA, data_dir=data_dir, shapes=SHAPES, method="shared")) == expected
