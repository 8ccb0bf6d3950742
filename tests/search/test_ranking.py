"""A search from store to ranking: the laws between methods, counters that are the tree's arithmetic, clear errors."""

import itertools
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision.transforms import v2

from raysnap.datasets.dataset import open_dataset
from raysnap.datasets.splits import probe_splits
from raysnap.errors import DataError, StoreError, UsageError
from raysnap.search import search
from raysnap.search.candidates import find_candidates
from raysnap.search.plan.tree import build_tree, candidates_below, needed_nodes
from raysnap.search.plan.walk import Room, plan_walk
from tests.support.search_stores import PREPROCESSING, scored, variant
from tests.support.searches import DATA, METHODS, SHAPES, VARIANTS, flops_of, lines, rungs_of

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.xdist_group("searches")]


@pytest.mark.parametrize(("store_name", "proxy"), [("resnets", "linear"), ("mixed", "linear"), ("mixed", "sgd_linear")])
def test_shared_scores_are_bit_equal_to_baselines(request, find, store_name, proxy):
    store = request.getfixturevalue(store_name)
    assert lines(find(store, method="shared", proxy=proxy)) == lines(find(store, method="baseline", proxy=proxy))


@pytest.mark.parametrize(("store_name", "proxy"), [("resnets", "linear"), ("mixed", "linear"), ("mixed", "sgd_linear")])
def test_alsatian_ranks_exactly_as_shift(request, find, store_name, proxy):
    store = request.getfixturevalue(store_name)
    assert lines(find(store, method="alsatian", proxy=proxy)) == lines(find(store, method="shift", proxy=proxy))


def test_scores_are_those_of_torchvisions_own_features(find, resnets, data_dir):
    train, test = probe_splits(open_dataset(DATA, data_dir), 0)
    to_float = (v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True))
    normalise = v2.Normalize(PREPROCESSING.mean, PREPROCESSING.std)
    transform = v2.Compose([v2.Resize(36), v2.CenterCrop(32), *to_float, normalise])
    inputs = torch.stack([transform(Image.open(item.path).convert("RGB")) for item in (*train, *test)])
    for name, line in {one.name: one for one in find(resnets, method="shared", precision="float32").ranking}.items():
        model = models.resnet18(num_classes=4)
        tensors = variant("resnet18", *VARIANTS[name])
        model.load_state_dict({key: value for _, block in tensors for key, value in block.items()})
        model.fc = torch.nn.Identity()
        with torch.inference_mode():
            features = model.eval()(inputs).numpy()
        labels = np.array([item.label for item in (*train, *test)])
        num_train = len(train)
        expected = scored("linear", features[:num_train], labels[:num_train], features[num_train:], labels[num_train:])
        assert line.score == pytest.approx(expected.value, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_scores_do_not_depend_on_the_budget(find, mixed, method):
    free = find(mixed, method=method)
    tree = build_tree(find_candidates(mixed, None, None), sharing=True)
    needed = [needed_nodes(tree, candidates_below(tree, root)) for root in tree.roots]
    walks = [plan_walk(tree, root, nodes, Room()) for root, nodes in zip(tree.roots, needed, strict=True)]
    item_bytes = max(walk.peak_activation_bytes // walk.batch_items for walk in walks)
    for budget_bytes in (3 * item_bytes, 17 * item_bytes + 5):
        tight = find(mixed, method=method, budget_bytes=budget_bytes)
        assert 0 < tight.peak_activation_bytes <= budget_bytes
        assert [one.snapshot for one in tight.ranking] == [one.snapshot for one in free.ranking]
        assert [one.score for one in tight.ranking] == pytest.approx([one.score for one in free.ranking], abs=1e-5)


@pytest.mark.parametrize("method", ["alsatian", "baseline"])
def test_a_search_tells_its_rungs_and_how_far_each_is(mixed, data_dir, method):
    told = []
    result = search(mixed, DATA, data_dir=data_dir, method=method, on_progress=lambda *call: told.append(call))
    rungs = [(done, num_all) for stage, done, num_all, _ in told if stage == "search"]
    assert rungs == [(number, len(result.rungs)) for number in range(len(result.rungs) + 1)]
    assert told[-1][3].endswith(f"{result.ranking[0].name} first with {result.ranking[0].score:.3f}")
    shares = [done for stage, done, _, _ in told if stage == "search/features"]
    assert shares.count(100) == len(result.rungs) and shares[0] < 100
    assert sum(after < before for before, after in itertools.pairwise(shares)) == len(result.rungs) - 1


def test_a_budget_that_holds_no_item_is_a_usage_error(resnets, data_dir):
    with pytest.raises(UsageError, match="--budget 100: resnet18 at 32 px"):
        search(resnets, DATA, data_dir=data_dir, budget_bytes=100)


@pytest.mark.parametrize("store_name", ["resnets", "mixed"])
def test_counters_of_full_searches_are_the_trees_arithmetic(request, find, store_name):
    store = request.getfixturevalue(store_name)
    candidates = find_candidates(store, None, None)
    num_items = SHAPES.num_train + SHAPES.num_val
    for method, sharing in (("shared", True), ("baseline", False)):
        nodes = build_tree(candidates, sharing=sharing).nodes
        work = find(store, method=method).work
        assert work["block_item_passes"] == num_items * len(nodes)
        assert work["flops"] == num_items * flops_of(nodes)
    unique = {
        (block.digest, one.preprocessing.image_size): block.num_bytes for one in candidates for block in one.blocks
    }
    assert find(store, method="shared").work["block_bytes_read"] == sum(unique.values())
    copied = sum(block.num_bytes for one in candidates for block in one.blocks)
    assert find(store, method="baseline").work["block_bytes_read"] == copied


@pytest.mark.parametrize("method", ["alsatian", "nested"])
@pytest.mark.parametrize("store_name", ["resnets", "mixed"])
def test_halvings_counters_follow_from_the_survivors_trees(request, find, store_name, method):
    store = request.getfixturevalue(store_name)
    result = find(store, method=method)
    rungs = list(rungs_of(store, result))
    assert result.work["block_item_passes"] == sum(num_items * len(nodes) for nodes, num_items in rungs)
    assert result.work["flops"] == sum(num_items * flops_of(nodes) for nodes, num_items in rungs)
    unique = {
        (node.block.digest, node.preprocessing.image_size): node.block.num_bytes for nodes, _ in rungs for node in nodes
    }
    assert result.work["block_bytes_read"] == sum(unique.values()), "read once, whatever the rungs"
    if method == "alsatian":
        unshared = find(store, method="shift").work
        assert all(result.work[key] < unshared[key] for key in ("block_item_passes", "flops", "block_bytes_read"))


@pytest.mark.parametrize("num_candidates", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_few_candidates_are_ranked_all_the_same(find, resnets, method, num_candidates):
    wanted = ["head", "two", "three"][:num_candidates]
    where = " or ".join(f"name == '{name}'" for name in wanted)
    result = find(resnets, method=method, where=where)
    assert sorted(one.name for one in result.ranking) == sorted(wanted)
    assert result.ranking[0].num_train == SHAPES.num_train
    assert result.ranking[0].tied_with_best


def test_equal_searches_give_equal_answers(find, resnets, data_dir):
    arguments = {"method": "alsatian", "num_train": 32, "num_test": 20}
    again = search(resnets.path, DATA, data_dir=data_dir, **arguments)
    assert lines(again) == lines(find(resnets, **arguments))
    assert lines(find(resnets, **arguments, seed=1)) != lines(again)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"where": "architecture == 'vgg16'"}, UsageError, "that match --where \"architecture == 'vgg16'\""),
        ({"where": "colour == 'red'"}, UsageError, "colour"),
        (
            {"method": "nested_loops"},
            UsageError,
            "method: expected 'auto', .* or 'nested', found 'nested_loops'; did you mean 'nested'?",
        ),
        ({"proxy": "guess"}, UsageError, "proxy: expected 'linear', .* or 'logme', found 'guess'"),
        ({"tolerance": 1.5}, UsageError, "tolerance: expected at most 1, found 1.5"),
        ({"tolerance": -0.1}, UsageError, "tolerance: expected at least 0, found -0.1"),
        ({"tolerance": math.nan}, UsageError, "tolerance: expected a finite number, found nan"),
        ({"num_train": 1}, DataError, "at least 2"),
        ({"num_test": 0}, UsageError, "num_test: expected at least 1, found 0"),
        ({"data": "shapes-color-a"}, DataError, "did you mean 'shapes-colour-a'"),
        ({"store": "nowhere"}, StoreError, "nowhere: expected a model store"),
    ],
)
def test_what_can_not_be_searched_is_refused_in_one_line(resnets, data_dir, arguments, error, message):
    arguments = {"store": resnets, "data": DATA, "data_dir": data_dir} | arguments
    with pytest.raises(error, match=message) as caught:
        search(arguments.pop("store"), arguments.pop("data"), **arguments)
    assert "\n" not in str(caught.value)


def test_nested_computes_no_more_than_shared(find, resnets, mixed):
    for store in (resnets, mixed):
        flops = [find(store, method="nested", tolerance=level).work["flops"] for level in (1, 0.01, 0)]
        assert flops == sorted(flops) and flops[-1] <= find(store, method="shared").work["flops"]


def test_tolerance_changes_no_work_of_other_methods(find, resnets):
    for method in ("shared", "alsatian"):
        assert lines(find(resnets, method=method, tolerance=0.5)) == lines(find(resnets, method=method))


def test_methods_that_use_all_items_state_their_loss_too(find, resnets):
    shared, baseline, halving = (find(resnets, method=method) for method in ("shared", "baseline", "alsatian"))
    assert shared.expected_loss == baseline.expected_loss > 0 and shared.stopped == "all_items"
    assert halving.expected_loss is None


@pytest.mark.slow
@pytest.mark.parametrize("proxy", ["knn", "hscore", "logme"])
def test_every_proxy_keeps_the_laws_between_methods(find, resnets, proxy):
    assert lines(find(resnets, method="shared", proxy=proxy)) == lines(find(resnets, method="baseline", proxy=proxy))
    assert lines(find(resnets, method="alsatian", proxy=proxy)) == lines(find(resnets, method="shift", proxy=proxy))
    full = {one.snapshot: one.score for one in find(resnets, method="shared", proxy=proxy).ranking}
    result = find(resnets, method="nested", proxy=proxy)
    assert result.proxy == proxy and len(result.ranking) == len(VARIANTS)
    if proxy != "knn":  # those use all items as they are
        assert result.ranking[0].score == pytest.approx(full[result.ranking[0].snapshot], abs=1e-5)


def test_a_search_says_what_it_did_not_read(resnets, data_dir, tmp_path, caplog):
    root = shutil.copytree(data_dir / DATA, tmp_path / "photos", ignore=shutil.ignore_patterns(".raysnap"))
    (root / "val").rename(root / "valid")
    first = next(iter(sorted((root / "train").iterdir())))
    (first / "IMG_1.HEIC").write_bytes(b"heic")
    (first / "bad.jpg").write_bytes(b"no image")
    shutil.copytree(root / "test" / first.name, root / "test" / "only here")
    account = search(resnets, root, num_train=10**6, where="name == 'base'", method="shared").data
    assert account.num_images["train"] == SHAPES.num_train + 1
    assert [one.path for one in account.left_out] == [f"train/{first.name}/IMG_1.HEIC", "dataset.json"][::-1]
    assert len(account.bad) == 1 and str(first / "bad.jpg") in account.bad[0]
    said = " | ".join(record.getMessage() for record in caplog.records)
    assert "valid/ is read as val" in said and "IMG_1.HEIC" in said and "bad.jpg" in said


def test_a_class_of_the_split_that_is_scored_is_needed(resnets, data_dir, tmp_path):
    root = shutil.copytree(data_dir / DATA, tmp_path / "photos", ignore=shutil.ignore_patterns(".raysnap"))
    first = next(iter(sorted((root / "val").iterdir())))
    first.rename(first.with_name("only here"))
    with pytest.raises(DataError, match="val/only here: expected a class that train/ has too"):
        search(resnets, root, where="name == 'base'")
