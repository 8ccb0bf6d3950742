"""A search from store to ranking: the laws between methods, counters that are the tree's arithmetic, clear errors."""

import itertools
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision.transforms import v2

from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import open_dataset
from raysnap.datasets.splits import probe_splits
from raysnap.errors import DataError, StoreError, UsageError
from raysnap.models.block_facts import block_shapes
from raysnap.search import search
from raysnap.search.candidates import find_candidates
from raysnap.search.plan.rungs import plan_rungs
from raysnap.search.plan.tree import build_tree, candidates_below, needed_nodes
from raysnap.search.plan.walk import Room, plan_walk
from raysnap.search.probes.proxies import PROXIES
from raysnap.search.probes.score import Score
from raysnap.store.manifest import Preprocessing
from raysnap.store.store import Store
from tests.support.search_stores import PREPROCESSING, one_thread, put, random_blocks, scored, variant

SMALL = "mobilenet_v3_small"
SHAPES = ShapesConfig(image_size=32, num_train=48, num_val=24, num_test=8)
DATA = "shapes-colour-a"
VARIANTS = {"base": (0, 0), "head": (1, 0), "one": (2, 1), "two": (3, 2), "three": (4, 3), "also-three": (5, 3)}
METHODS = ("baseline", "shared", "shift", "alsatian", "nested")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return a folder with one drawn dataset, its pixels decoded."""
    directory = tmp_path_factory.mktemp("data")
    open_dataset(DATA, directory, SHAPES)
    return directory


@pytest.fixture(scope="module")
def resnets(tmp_path_factory):
    """Return a store of a ResNet-18, and of variants whose last blocks are others."""
    store = Store.open(tmp_path_factory.mktemp("resnets") / "store", create=True)
    for name, (seed, retrain_index) in VARIANTS.items():
        put(store, name, variant("resnet18", seed, retrain_index))
    return store


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Return a store of two architectures, of which one snapshot was trained at another image size."""
    store = Store.open(tmp_path_factory.mktemp("mixed") / "store", create=True)
    for name, (seed, retrain_index) in VARIANTS.items():
        put(store, f"small-{name}", variant(SMALL, seed, retrain_index), SMALL)
    large = Preprocessing(resize_size=36, image_size=36)
    put(store, "small-at-36", variant(SMALL, 9, 2), SMALL, preprocessing=large)
    put(store, "resnet", random_blocks("resnet18", 0))
    return store


@pytest.fixture(scope="module")
def find(data_dir):
    """Return a search of the drawn dataset; equal searches run once."""
    found = {}

    def run(store, **arguments):
        arguments = {"proxy": "linear"} | arguments
        key = (store.path, *sorted(arguments.items()))
        if key not in found:
            found[key] = search(store, DATA, data_dir=data_dir, shapes=SHAPES, **arguments)
        return found[key]

    return run


def lines(result):
    """Return the ranking as plain values, everything but the rank."""
    return [(one.snapshot, one.score, one.num_train, one.num_test, one.tied_with_best) for one in result.ranking]


def rungs_of(store, result):
    """For each rung of a halving: the nodes it needed and the items it ran, from the ranking alone."""
    candidates = find_candidates(store, None, None)
    tree = build_tree(candidates, sharing=True)
    number_of = {one.snapshot: number for number, one in enumerate(candidates)}
    for rung in plan_rungs(result.method, len(candidates), SHAPES.num_train, SHAPES.num_val):
        alive = [number_of[one.snapshot] for one in result.ranking if one.num_train >= rung.train_stop]
        num_items = rung.train_stop - rung.train_start + rung.test_stop - rung.test_start
        yield [tree.nodes[index] for index in needed_nodes(tree, alive)], num_items


def flops_of(nodes):
    return sum(block_shapes(n.architecture, n.preprocessing.image_size)[n.block_index].flops for n in nodes)


@pytest.mark.parametrize(("store_name", "proxy"), [("resnets", "linear"), ("mixed", "linear"), ("mixed", "sgd_linear")])
def test_shared_scores_are_bit_equal_to_baselines(request, find, store_name, proxy):
    store = request.getfixturevalue(store_name)
    assert lines(find(store, method="shared", proxy=proxy)) == lines(find(store, method="baseline", proxy=proxy))


@pytest.mark.parametrize(("store_name", "proxy"), [("resnets", "linear"), ("mixed", "linear"), ("mixed", "sgd_linear")])
def test_alsatian_ranks_exactly_as_shift(request, find, store_name, proxy):
    store = request.getfixturevalue(store_name)
    assert lines(find(store, method="alsatian", proxy=proxy)) == lines(find(store, method="shift", proxy=proxy))


def test_scores_are_those_of_a_probe_on_torchvisions_own_features(find, resnets, data_dir):
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


@pytest.mark.parametrize("store_name", ["resnets", "mixed"])
def test_whoever_reaches_the_last_rung_has_the_score_that_all_items_give(request, find, store_name):
    store = request.getfixturevalue(store_name)
    full = {one.snapshot: one.score for one in find(store, method="shared").ranking}
    for method in ("alsatian", "nested"):
        last = [one for one in find(store, method=method).ranking if one.num_train == SHAPES.num_train]
        assert last and {one.num_test for one in last} == {SHAPES.num_val}
        for one in last:
            assert one.score == pytest.approx(full[one.snapshot], abs=1e-5)


def test_of_equal_scores_the_smaller_loss_is_ranked_first(resnets, data_dir, monkeypatch):
    losses = iter((0.5, 0.1, 0.4, 0.2, 0.6, 0.3))
    monkeypatch.setitem(
        PROXIES, "linear", lambda *arrays: [Score(0.5, next(losses), np.arange(arrays[2].shape[1]) % 2 == 0)]
    )
    by_id = sorted(manifest.id for manifest in resnets.manifests())
    result = search(resnets, DATA, method="shared", data_dir=data_dir, device="cpu")  # which scores one at a time
    assert [by_id.index(one.snapshot) for one in result.ranking] == [1, 3, 5, 2, 0, 4]
    assert all(one.tied_with_best for one in result.ranking)


@pytest.mark.parametrize("method", METHODS)
def test_every_snapshot_is_ranked_once_and_the_better_first(find, mixed, method):
    result = find(mixed, method=method)
    assert result.skipped == ()
    assert [one.rank for one in result.ranking] == list(range(1, 9)) and result.num_candidates == 8
    assert {one.snapshot for one in result.ranking} == {manifest.id for manifest in mixed.manifests()}
    keys = [(one.num_train, one.score) for one in result.ranking]
    assert keys == sorted(keys, reverse=True)
    assert result.ranking[0].tied_with_best
    slices = {rung.train_stop: rung.test_stop for rung in plan_rungs(method, 8, SHAPES.num_train, SHAPES.num_val)}
    assert all(one.num_test == slices[one.num_train] for one in result.ranking)
    assert result.ranking[0].num_test == SHAPES.num_val


def test_the_ranking_follows_neither_the_order_of_adding_nor_that_of_the_manifests(
    find, resnets, data_dir, tmp_path, monkeypatch
):
    expected = {method: lines(find(resnets, method=method)) for method in ("alsatian", "nested")}
    turned = Store.open(tmp_path / "store", create=True)
    for name in reversed(VARIANTS):
        put(turned, name, variant("resnet18", *VARIANTS[name]))
    assert {method: lines(find(turned, method=method)) for method in expected} == expected
    manifests = turned.manifests()
    np.random.default_rng(3).shuffle(manifests)
    monkeypatch.setattr(Store, "manifests", lambda self, where=None: list(manifests))
    assert lines(search(turned, DATA, data_dir=data_dir)) == expected["nested"], "the default"


@pytest.mark.parametrize("method", METHODS)
def test_each_candidate_is_scored_once_per_rung_on_all_items_so_far(find, resnets, data_dir, monkeypatch, method):
    calls = []

    def proxy(train_BND, train_labels_N, test_BTD, test_labels_T, seed):
        calls.append((train_BND.shape[1], len(train_labels_N), test_BTD.shape[1], len(test_labels_T)))
        return [Score(0.0, train_BND.sum().item(), np.zeros(len(test_labels_T)))]

    monkeypatch.setitem(PROXIES, "linear", proxy)
    search(resnets, DATA, method=method, confidence=0, data_dir=data_dir, device="cpu")  # which scores one at a time
    rungs = plan_rungs(method, len(VARIANTS), SHAPES.num_train, SHAPES.num_val)
    entered = [len(VARIANTS), *(rung.num_kept for rung in rungs)]
    expected = [
        (rung.train_stop, rung.train_stop, rung.test_stop, rung.test_stop)
        for rung, num_candidates in zip(rungs, entered, strict=False)
        for _ in range(num_candidates)
    ]
    assert calls == expected


def test_probes_are_trained_on_the_items_of_probe_splits_in_their_order(resnets, data_dir, monkeypatch):
    seen = []
    monkeypatch.setitem(PROXIES, "linear", lambda *arrays: seen.append(arrays) or PROXIES["sgd_linear"](*arrays))
    search(resnets, DATA, method="shared", data_dir=data_dir, num_train=24, num_test=12, seed=5, where="name == 'base'")
    train, test = probe_splits(open_dataset(DATA, data_dir), 5, 24, 12)
    ((_, train_labels, _, test_labels, seed),) = seen
    assert train_labels.tolist() == [item.label for item in train] and seed == 5
    assert test_labels.tolist() == [item.label for item in test]


@pytest.mark.parametrize("method", METHODS)
def test_scores_do_not_depend_on_the_budget_and_the_peak_stays_within_it(find, mixed, method):
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
    unique = {block.digest: block.num_bytes for one in candidates for block in one.blocks}
    assert find(store, method="shared").work["block_bytes_read"] == sum(unique.values())
    copied = sum(block.num_bytes for one in candidates for block in one.blocks)
    assert find(store, method="baseline").work["block_bytes_read"] == copied


@pytest.mark.parametrize("method", ["alsatian", "nested"])
@pytest.mark.parametrize("store_name", ["resnets", "mixed"])
def test_counters_of_halving_are_the_arithmetic_of_the_survivors_trees(request, find, store_name, method):
    store = request.getfixturevalue(store_name)
    result = find(store, method=method)
    rungs = list(rungs_of(store, result))
    assert result.work["block_item_passes"] == sum(num_items * len(nodes) for nodes, num_items in rungs)
    assert result.work["flops"] == sum(num_items * flops_of(nodes) for nodes, num_items in rungs)
    unique = {node.block.digest: node.block.num_bytes for nodes, _ in rungs for node in nodes}
    assert result.work["block_bytes_read"] == sum(unique.values()), "read once, whatever the rungs"
    if method == "alsatian":
        unshared = find(store, method="shift").work
        assert all(result.work[key] < unshared[key] for key in ("block_item_passes", "flops", "block_bytes_read"))


def test_images_are_decoded_once_and_not_at_all_by_the_next_search(resnets, data_dir, tmp_path):
    shutil.copytree(data_dir / DATA, tmp_path / "photos", ignore=shutil.ignore_patterns(".raysnap"))
    counts = [
        search(resnets, tmp_path / "photos", method=method).work["images_decoded"] for method in ("shift", "alsatian")
    ]
    assert counts == [SHAPES.num_train + SHAPES.num_val, 0]
    more = search(resnets, tmp_path / "photos", where="name == 'base'", image_size=24)
    assert more.work["images_decoded"] == SHAPES.num_train + SHAPES.num_val, "another size is another cache"


@pytest.mark.parametrize("num_candidates", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_few_candidates_are_ranked_all_the_same(find, resnets, method, num_candidates):
    wanted = ["head", "two", "three"][:num_candidates]
    where = " or ".join(f"name == '{name}'" for name in wanted)
    result = find(resnets, method=method, where=where)
    assert sorted(one.name for one in result.ranking) == sorted(wanted)
    assert result.ranking[0].num_train == SHAPES.num_train
    assert result.ranking[0].tied_with_best


def test_fewer_items_than_rungs_and_fewer_items_than_classes_still_give_a_ranking(resnets, data_dir):
    for method, num_train in itertools.product(("alsatian", "nested"), (2, 3)):
        result = search(resnets, DATA, method=method, data_dir=data_dir, num_train=num_train, num_test=3)
        assert len(result.ranking) == len(VARIANTS)
        assert all(1 <= one.num_test <= 3 for one in result.ranking)
        assert (result.ranking[0].num_train, result.ranking[0].num_test) == (num_train, 3)


def test_snapshots_that_share_all_but_the_head_score_the_same_and_tie(find, resnets):
    scored = {one.name: one for one in find(resnets, method="shared").ranking}
    assert scored["base"].score == scored["head"].score
    assert scored["base"].tied_with_best == scored["head"].tied_with_best
    assert abs(scored["base"].rank - scored["head"].rank) == 1
    only = find(resnets, method="shared", where="name == 'base' or name == 'head'")
    assert all(one.tied_with_best for one in only.ranking)
    assert only.work["block_item_passes"] == 9 * (SHAPES.num_train + SHAPES.num_val)
    assert [one.snapshot for one in only.ranking] == sorted(one.snapshot for one in only.ranking)


def test_whom_a_rung_left_out_on_a_part_of_the_test_items_is_not_called_tied(find, resnets):
    left_out = [one for one in find(resnets, method="nested", confidence=0.0).ranking if one.num_test < SHAPES.num_val]
    assert left_out and not any(one.tied_with_best for one in left_out)


def test_the_head_is_never_read(resnets, data_dir, tmp_path):
    store, ids = _copy(resnets, tmp_path)
    _flip_a_bit(store, ids["one"], -1)
    assert search(store, DATA, data_dir=data_dir, method="shared").skipped == ()


def _copy(store, tmp_path):
    """Return a store of the same files, and the ids by name."""
    shutil.copytree(store.path, tmp_path / "copy", copy_function=os.link)
    copy = Store.open(tmp_path / "copy")
    return copy, copy.refs()


def _flip_a_bit(store, snapshot, block_index):
    digest = store.manifest(snapshot).blocks[block_index].digest
    path = store.path / "objects" / digest[:2] / digest
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    return digest


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_block_skips_exactly_the_candidates_below_it_and_names_it(find, mixed, data_dir, tmp_path, method):
    store, ids = _copy(mixed, tmp_path)
    digest = _flip_a_bit(store, ids["small-two"], -2)
    broken = {name for name, snapshot in ids.items() if digest in {b.digest for b in store.manifest(snapshot).blocks}}
    result = search(store, DATA, data_dir=data_dir, method=method)
    assert broken == {"small-two"}
    assert {one.name for one in result.skipped} == broken
    assert all(digest in one.error and one.snapshot == ids[one.name] for one in result.skipped)
    assert {one.name for one in result.ranking} == set(ids) - broken
    if method in ("baseline", "shared"):
        assert lines(result) == [line for line in lines(find(mixed, method=method)) if line[0] != ids["small-two"]]


@pytest.mark.parametrize("method", METHODS)
def test_where_a_shared_block_is_damaged_everyone_below_is_skipped_and_the_others_are_ranked(
    mixed, data_dir, tmp_path, method
):
    store, ids = _copy(mixed, tmp_path)
    _flip_a_bit(store, ids["small-base"], 0)
    result = search(store, DATA, data_dir=data_dir, method=method)
    assert [one.name for one in result.ranking] == ["resnet"]
    assert {one.name for one in result.skipped} == set(ids) - {"resnet"}


@pytest.mark.parametrize("method", METHODS)
def test_where_every_candidate_is_damaged_the_ranking_is_empty_and_all_are_named(mixed, data_dir, tmp_path, method):
    store, ids = _copy(mixed, tmp_path)
    _flip_a_bit(store, ids["small-base"], 0)
    _flip_a_bit(store, ids["resnet"], 0)
    result = search(store, DATA, data_dir=data_dir, method=method)
    assert result.ranking == () and {one.name for one in result.skipped} == set(ids)
    assert result.work["block_item_passes"] == 0 and len(result.to_pandas()) == 0
    assert result.num_candidates == len(ids)


@pytest.mark.parametrize("method", METHODS)
def test_candidates_that_can_not_run_are_skipped_with_the_reason(data_dir, tmp_path, method):
    store = Store.open(tmp_path / "store", create=True)
    good = put(store, "good", random_blocks(SMALL, 0), SMALL)
    broken = [(name, {key: value.clone() for key, value in block.items()}) for name, block in random_blocks(SMALL, 0)]
    next(iter(broken[8][1].values())).view(-1)[0] = math.nan
    put(store, "not-finite", broken, SMALL)
    put(store, "wrong-blocks", random_blocks(SMALL, 0), "mobilenet_v3_large")
    put(store, "short", random_blocks(SMALL, 0)[2:], SMALL)
    swapped = [
        (name, {"other": torch.zeros(3)} if number == 5 else block)
        for number, (name, block) in enumerate(random_blocks(SMALL, 0))
    ]
    put(store, "other-tensors", swapped, SMALL)
    put(store, "unknown", random_blocks(SMALL, 0), "resnet_19")
    result = search(store, DATA, data_dir=data_dir, method=method)
    assert [one.snapshot for one in result.ranking] == [good]
    reasons = {one.name: one.error for one in result.skipped}
    assert set(reasons) == {"not-finite", "wrong-blocks", "short", "other-tensors", "unknown"}
    assert "not finite" in reasons["not-finite"] and "resnet_19" in reasons["unknown"]
    assert "expected mobilenet_v3_small's blocks" in reasons["short"] and "other" in reasons["other-tensors"]


def test_another_image_size_scales_the_resizing_and_costs_less(find, resnets):
    own, small = find(resnets, method="shared"), find(resnets, method="shared", image_size=16)
    assert small.work["flops"] < own.work["flops"]
    assert find(resnets, method="shared", image_size=32).work == own.work | {"images_decoded": 0}
    (candidate,) = find_candidates(resnets, "name == 'base'", 16)
    assert candidate.preprocessing == PREPROCESSING.model_copy(update={"image_size": 16, "resize_size": 18})


def test_equal_searches_give_equal_answers_and_the_seed_draws_the_items(find, resnets, data_dir):
    arguments = {"method": "alsatian", "num_train": 32, "num_test": 20}
    again = search(resnets.path, DATA, data_dir=data_dir, **arguments)
    assert lines(again) == lines(find(resnets, **arguments))
    assert lines(find(resnets, **arguments, seed=1)) != lines(again)


def test_a_snapshot_goes_by_its_first_name_or_by_its_id(data_dir, tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    named = put(store, "zebra", random_blocks(SMALL, 0), SMALL)
    store.set_ref("ant", named)
    nameless = store.put_snapshot(
        architecture=SMALL, blocks=random_blocks(SMALL, 1), num_classes=4, preprocessing=PREPROCESSING
    ).manifest.id
    names = {one.snapshot: one.name for one in search(store, DATA, data_dir=data_dir, method="shared").ranking}
    assert names == {named: "ant", nameless: nameless[:12]}


def test_the_result_has_the_keys_that_scripts_rely_on_and_is_plain_json(find, resnets):
    result = find(resnets, method="alsatian")
    document = result.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))
    assert set(document) - {"dataset"} == {
        "method", "proxy", "num_candidates", "ranking", "timings_s", "work", "bound_s", "precision",
            "peak_activation_bytes", "skipped", "rungs", "static_baseline",
    }  # fmt: skip
    assert set(document["ranking"][0]) == {
        "rank", "snapshot", "name", "score", "num_train", "num_test", "tied_with_best",
    }  # fmt: skip
    assert set(document["timings_s"]) == {"total", "plan", "load_blocks", "decode", "inference", "proxy"}
    assert set(document["work"]) == {"block_item_passes", "flops", "block_bytes_read", "images_decoded"}
    assert (document["method"], document["proxy"], document["dataset"]) == ("alsatian", "linear", DATA)
    parts = sum(seconds for stage, seconds in result.timings_s.items() if stage != "total")
    assert all(seconds >= 0 for seconds in result.timings_s.values()) and parts <= result.timings_s["total"]


def test_what_was_skipped_has_its_keys_too(mixed, data_dir, tmp_path):
    store, ids = _copy(mixed, tmp_path)
    _flip_a_bit(store, ids["resnet"], 3)
    document = search(store, DATA, data_dir=data_dir, method="shared").to_dict()
    (skipped,) = document["skipped"]
    assert skipped.keys() >= {"snapshot", "error"} and skipped["snapshot"] == ids["resnet"]


def test_a_result_is_a_data_frame_with_a_row_per_snapshot_best_first(find, resnets):
    result = find(resnets, method="shared")
    frame = result.to_pandas()
    assert frame["snapshot"].tolist() == [one.snapshot for one in result.ranking]
    assert frame["rank"].tolist() == list(range(1, len(VARIANTS) + 1))
    assert frame["score"].tolist() == [one.score for one in result.ranking]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"where": "architecture == 'vgg16'"}, UsageError, "that match --where \"architecture == 'vgg16'\""),
        ({"where": "colour == 'red'"}, UsageError, "colour"),
        (
            {"method": "nested_loops"},
            UsageError,
            "method: expected 'baseline', .* or 'nested', found 'nested_loops'; did you mean 'nested'?",
        ),
        ({"proxy": "guess"}, UsageError, "proxy: expected 'linear', .* or 'logme', found 'guess'"),
        ({"confidence": 1.0}, UsageError, "confidence: expected less than 1, found 1.0"),
        ({"confidence": -0.1}, UsageError, "confidence: expected at least 0, found -0.1"),
        ({"confidence": math.nan}, UsageError, "confidence: expected a finite number, found nan"),
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


def test_a_store_without_snapshots_says_what_to_do(data_dir, tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    with pytest.raises(UsageError, match="expected at least one snapshot.*raysnap generate"):
        search(store, DATA, data_dir=data_dir)


def _photos(root, num_by_class, size=(40, 32)):
    rng = np.random.default_rng(0)
    for name, num_images in num_by_class.items():
        (root / "train" / name).mkdir(parents=True)
        for number in range(num_images):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{number}.png")
    return root


def test_a_dataset_with_one_class_is_refused(resnets, tmp_path):
    with pytest.raises(DataError, match="at least 2, found 1"):
        search(resnets, _photos(tmp_path / "photos", {"cat": 5}))


def test_a_folder_without_val_and_test_is_scored_on_a_fifth_of_train(resnets, tmp_path):
    result = search(resnets, _photos(tmp_path / "photos", {"cat": 11, "dog": 9}), where="name == 'base'")
    (line,) = result.ranking
    assert (line.num_train, line.num_test) == (16, 4) and result.dataset == "photos"


def test_a_bad_image_is_left_out_and_too_many_are_an_error(resnets, tmp_path):
    root = _photos(tmp_path / "photos", {"cat": 11, "dog": 9})
    (root / "train" / "cat" / "3.png").write_bytes(b"no image")
    (line,) = search(resnets, root, where="name == 'base'").ranking
    assert line.num_train + line.num_test == 19
    (root / "train" / "dog" / "4.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of 20 images are bad"):
        search(resnets, root, where="name == 'base'")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("store_name", ["resnets", "mixed"])
def test_nested_puts_a_best_of_shared_first(request, find, store_name, seed):
    store = request.getfixturevalue(store_name)
    full = {one.snapshot: one.score for one in find(store, method="shared", seed=seed).ranking}
    winner = find(store, method="nested", seed=seed).ranking[0]
    assert full[winner.snapshot] == max(full.values())


def test_nested_computes_less_than_halving_with_its_confidence_off_and_never_more_than_shared(find, resnets, mixed):
    for store in (resnets, mixed):
        flops = [find(store, method="nested", confidence=level).work["flops"] for level in (0, 0.95, 0.9999)]
        assert flops[0] <= flops[1] <= flops[2] <= find(store, method="shared").work["flops"]
    assert find(resnets, method="nested", confidence=0).work["flops"] < find(resnets, method="alsatian").work["flops"]


def test_confidence_is_for_nested_alone(find, resnets):
    for method in ("shared", "alsatian"):
        assert lines(find(resnets, method=method, confidence=0.5)) == lines(find(resnets, method=method))


def test_snapshots_that_differ_in_their_heads_alone_all_reach_the_last_rung_and_tie(data_dir, tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    for seed in range(5):
        put(store, str(seed), variant(SMALL, seed, 0), SMALL)
    result = search(store, DATA, data_dir=data_dir)
    assert {(one.score, one.num_train, one.tied_with_best) for one in result.ranking} == {
        (result.ranking[0].score, SHAPES.num_train, True)
    }
    bold = search(store, DATA, data_dir=data_dir, confidence=0)
    assert [one.snapshot for one in bold.ranking] == [one.snapshot for one in result.ranking]
    assert sorted(one.num_train for one in bold.ranking)[-2] < SHAPES.num_train


@pytest.mark.parametrize("proxy", ["knn", "hscore", "logme"])
def test_every_proxy_keeps_the_laws_between_methods(find, resnets, proxy):
    assert lines(find(resnets, method="shared", proxy=proxy)) == lines(find(resnets, method="baseline", proxy=proxy))
    assert lines(find(resnets, method="alsatian", proxy=proxy)) == lines(find(resnets, method="shift", proxy=proxy))
    full = {one.snapshot: one.score for one in find(resnets, method="shared", proxy=proxy).ranking}
    result = find(resnets, method="nested", proxy=proxy)
    assert result.proxy == proxy and len(result.ranking) == len(VARIANTS)
    assert result.ranking[0].score == pytest.approx(full[result.ranking[0].snapshot], abs=1e-5)


def test_the_static_baseline_is_the_largest_that_derives_from_none(find, mixed):
    result = find(mixed, method="shared")
    assert result.static_baseline.name == "resnet"
    assert result.static_baseline == result.ranking[result.static_baseline.rank - 1]


def test_rungs_say_what_each_did_and_add_up(find, mixed):
    for method in METHODS:
        result = find(mixed, method=method)
        assert result.rungs[0].num_candidates == result.num_candidates
        assert [rung.num_candidates for rung in result.rungs[1:]] == [rung.num_kept for rung in result.rungs[:-1]]
        for count in ("block_item_passes", "flops", "block_bytes_read"):
            assert sum(getattr(rung, count) for rung in result.rungs) == result.work[count]
        assert (result.rungs[-1].num_train, result.rungs[-1].num_test) == (SHAPES.num_train, SHAPES.num_val)
