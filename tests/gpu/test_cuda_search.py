"""Searches on a GPU, where there is one: the laws that hold on a CPU."""

import pytest
import torch

from raysnap.datasets.dataset import open_dataset
from raysnap.models import blocks
from raysnap.models.block_facts import block_shapes
from raysnap.models.numerics import Numerics
from raysnap.search import search
from raysnap.search.candidates import find_candidates
from raysnap.search.engine.calibration import measure_kinds
from raysnap.search.engine.folding import build_inference_block
from raysnap.search.plan.tree import build_tree
from raysnap.store.store import Store
from tests.support.search_families import DATA, NUM_ITEMS, SHAPES, SIZES, family_store, lines
from tests.support.search_stores import body_with_used_batch_norms, put, variant

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch) -> None:
    """Convolutions in float32 as a CPU has it, and not in TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


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
def resnets(tmp_path_factory) -> Store:
    """Return a store of eight ResNet-18 that share more or less of the first."""
    store = Store.open(tmp_path_factory.mktemp("resnets") / "store", create=True)
    for seed, retrain_index in enumerate((0, 0, 1, 2, 3, 3, 5, 8)):
        put(store, f"{seed}", variant("resnet18", seed, retrain_index))
    return store


@pytest.fixture
def find(data_dir):
    def run_search(store: Store, **arguments):
        return search(store, DATA, data_dir=data_dir, shapes=SHAPES, **arguments)

    return run_search


@pytest.mark.parametrize("architecture", ["resnet18", "efficientnet_v2_s", "convnext_tiny", "swin_t", "vit_b_32"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("auto", 0.05)])
def test_folded_blocks_give_torchvisions_features(architecture, precision, tolerance):
    body = body_with_used_batch_norms(architecture)
    numerics = Numerics.for_inference(precision, CUDA)
    folded = [build_inference_block(architecture, *pair, numerics) for pair in enumerate(body)]
    whole = blocks.build_model(architecture, body)
    size = 224 if architecture == "vit_b_32" else 64
    images = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = whole(images)
        found = numerics.lay_out_images(images.to(CUDA, numerics.dtype))
        for block in folded:
            found = block(found)
    assert float((found.float().cpu() - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("deterministic", [True, False])
def test_sharing_changes_no_score(family, find, deterministic):
    _, store = family
    shared, baseline, shift, alsatian = (
        find(store, method=method, deterministic=deterministic)
        for method in ("shared", "baseline", "shift", "alsatian")
    )
    assert lines(shared) == lines(baseline)
    assert lines(alsatian) == lines(shift)


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_work_of_shared_is_that_of_the_tree(family, find, deterministic):
    architecture, store = family
    shapes = block_shapes(architecture, SIZES[architecture])[:-1]
    shared = find(store, method="shared", deterministic=deterministic)
    tree = build_tree(find_candidates(store, None, None), sharing=True)
    assert shared.work["block_item_passes"] == NUM_ITEMS * len(tree.nodes)
    assert shared.work["flops"] == NUM_ITEMS * sum(shapes[node.block_index].flops for node in tree.nodes)
    assert shared.work["block_bytes_read"] == sum(node.block.num_bytes for node in tree.nodes)
    assert shared.bound_s > 0


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_budget_bounds_activations_and_keeps_the_ranking(family, find, deterministic):
    _, store = family
    shared = find(store, method="shared", deterministic=deterministic)
    tight = find(store, method="shared", budget_bytes=shared.peak_activation_bytes // 2)
    assert tight.peak_activation_bytes <= shared.peak_activation_bytes // 2
    assert [one.snapshot for one in tight.ranking] == [one.snapshot for one in shared.ranking]


@pytest.mark.parametrize("proxy", ["linear", "sgd_linear", "knn", "hscore", "logme"])
def test_scores_are_a_cpus(resnets, find, proxy):
    found, expected = (
        find(resnets, method="shared", proxy=proxy, precision="float32", device=device) for device in ("cuda", "cpu")
    )
    scores, wanted = ({one.snapshot: one.score for one in result.ranking} for result in (found, expected))
    tolerance = {"rel": 0.02} if proxy in ("hscore", "logme") else {"abs": 1 / SHAPES.num_val}
    assert scores == pytest.approx(wanted, **tolerance)
    assert {key: found.work[key] for key in ("block_item_passes", "flops", "block_bytes_read")} == {
        key: expected.work[key] for key in ("block_item_passes", "flops", "block_bytes_read")
    }


def test_a_second_search_runs_no_block_and_ranks_alike(resnets, find):
    first, second = (find(resnets, method="shared", feature_cache_bytes=10**9) for _ in range(2))
    assert lines(first) == lines(second)
    assert second.work["block_item_passes"] == second.work["block_bytes_read"] == 0


def test_the_pace_of_a_gpu_is_measured_and_auto_goes_by_it(find, resnets):
    kinds = [("resnet18", 32, index) for index in range(9)]
    speeds = measure_kinds(kinds, Numerics.for_inference("auto", CUDA))
    assert all(speed.call_s > 0 and speed.item_s >= 0 for speed in speeds.values())
    result = find(resnets)
    totals_s = {one.method: one.total_s for one in result.forecast.methods}
    assert result.forecast.asked == "auto" and totals_s[result.method] == min(totals_s.values())
