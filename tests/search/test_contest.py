"""The contest: every survivor scored once a rung, ties, and candidates that are skipped."""

import math

import numpy as np
import pytest
import torch

from raysnap.errors import StoreError
from raysnap.models.tensor_bytes import DTYPES
from raysnap.search import search
from raysnap.search.plan.rungs import plan_rungs
from raysnap.search.probes.proxies import PROXIES
from raysnap.search.probes.score import Score
from raysnap.store.store import Store
from tests.support.search_stores import put, random_blocks, variant
from tests.support.searches import DATA, METHODS, SHAPES, SMALL, VARIANTS, copy_store, flip_a_bit, lines

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.xdist_group("searches")]


@pytest.mark.parametrize("store_name", ["resnets", "mixed"])
def test_the_last_rungs_scores_are_those_on_all_items(request, find, store_name):
    store = request.getfixturevalue(store_name)
    full = {one.snapshot: one.score for one in find(store, method="shared").ranking}
    last = [one for one in find(store, method="alsatian").ranking if one.num_train == SHAPES.num_train]
    assert last and {one.num_test for one in last} == {SHAPES.num_val}
    for one in last:
        assert one.score == pytest.approx(full[one.snapshot], abs=1e-5)


def test_of_equal_scores_the_smaller_loss_is_ranked_first(resnets, data_dir, monkeypatch):
    losses = iter((0.5, 0.1, 0.4, 0.2, 0.6, 0.3))
    monkeypatch.setitem(
        PROXIES,
        "linear",
        lambda batch, _seed: [
            Score(0.5, next(losses), *2 * [(np.arange(batch.test_BTD.shape[1]) % 2).astype(float)])
            for _ in batch.train_BND
        ],
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


@pytest.mark.parametrize("method", [method for method in METHODS if method != "nested"])
def test_candidates_are_scored_once_a_rung_on_all_items_so_far(find, resnets, data_dir, monkeypatch, method):
    calls = []

    def proxy(batch, seed):
        train_BND, train_labels_BN, test_BTD, test_labels_BT = batch
        sizes = (train_BND.shape[1], train_labels_BN.shape[1], test_BTD.shape[1], test_labels_BT.shape[1])
        calls.extend([sizes] * len(train_BND))
        zeros_T = np.zeros(test_labels_BT.shape[1])
        return [Score(0.0, train_ND.sum().item(), zeros_T, zeros_T) for train_ND in train_BND]

    monkeypatch.setitem(PROXIES, "linear", proxy)
    search(resnets, DATA, method=method, data_dir=data_dir, device="cpu")  # which scores one at a time
    rungs = plan_rungs(method, len(VARIANTS), SHAPES.num_train, SHAPES.num_val)
    entered = [len(VARIANTS), *(rung.num_kept for rung in rungs)]
    expected = [
        (rung.train_stop, rung.train_stop, rung.test_stop, rung.test_stop)
        for rung, num_candidates in zip(rungs, entered, strict=False)
        for _ in range(num_candidates)
    ]
    assert calls == expected


def test_snapshots_that_differ_in_heads_alone_tie(find, resnets):
    scored = {one.name: one for one in find(resnets, method="shared").ranking}
    assert scored["base"].score == scored["head"].score
    assert scored["base"].tied_with_best == scored["head"].tied_with_best
    assert abs(scored["base"].rank - scored["head"].rank) == 1
    only = find(resnets, method="shared", where="name == 'base' or name == 'head'")
    assert all(one.tied_with_best for one in only.ranking)
    assert only.work["block_item_passes"] == 9 * (SHAPES.num_train + SHAPES.num_val)
    assert [one.snapshot for one in only.ranking] == sorted(one.snapshot for one in only.ranking)


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_block_skips_only_candidates_below_it(find, mixed, data_dir, tmp_path, method):
    store, ids = copy_store(mixed, tmp_path)
    digest = flip_a_bit(store, ids["small-two"], -2)
    broken = {name for name, snapshot in ids.items() if digest in {b.digest for b in store.manifest(snapshot).blocks}}
    result = search(store, DATA, data_dir=data_dir, method=method)
    assert broken == {"small-two"}
    assert {one.name for one in result.skipped} == broken
    assert all(digest in one.error and one.snapshot == ids[one.name] for one in result.skipped)
    assert {one.name for one in result.ranking} == set(ids) - broken
    if method in ("baseline", "shared"):
        assert lines(result) == [line for line in lines(find(mixed, method=method)) if line[0] != ids["small-two"]]


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_shared_block_leaves_the_others_ranked(mixed, data_dir, tmp_path, method):
    store, ids = copy_store(mixed, tmp_path)
    flip_a_bit(store, ids["small-base"], 0)
    result = search(store, DATA, data_dir=data_dir, method=method)
    assert [one.name for one in result.ranking] == ["resnet"]
    assert {one.name for one in result.skipped} == set(ids) - {"resnet"}


@pytest.mark.parametrize("method", METHODS)
def test_if_all_candidates_are_damaged_the_ranking_is_empty(mixed, data_dir, tmp_path, method):
    store, ids = copy_store(mixed, tmp_path)
    flip_a_bit(store, ids["small-base"], 0)
    flip_a_bit(store, ids["resnet"], 0)
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


def test_nested_keeps_snapshots_that_differ_in_heads_alone(data_dir, tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    for seed in range(5):
        put(store, str(seed), variant(SMALL, seed, 0), SMALL)
    result = search(store, DATA, data_dir=data_dir, method="nested")
    assert {(one.score, one.num_train, one.tied_with_best) for one in result.ranking} == {
        (result.ranking[0].score, SHAPES.num_train, True)
    }
    assert all(one.within_tolerance for one in result.ranking) and result.expected_loss == 0


def with_dtype(tensors_by_block, dtype, block_index):
    """Return the blocks with the floats of one of them, or of all where it is None, in another type."""
    return [
        (name, {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()})
        if block_index in (None, index)
        else (name, tensors)
        for index, (name, tensors) in enumerate(tensors_by_block)
    ]


@pytest.mark.parametrize("block_index", [None, 0, 4])
def test_floats_of_any_width_are_searched(tmp_path, data_dir, block_index):
    store = Store.open(tmp_path / "store", create=True)
    one_byte = [dtype for name, dtype in DTYPES.items() if name.startswith("F8")]
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, *one_byte):
        tensors = with_dtype(random_blocks(SMALL, 0), dtype, block_index)
        put(store, str(dtype).removeprefix("torch."), tensors, architecture=SMALL)
    result = search(store, DATA, data_dir=data_dir, method="shared")
    assert result.skipped == () and len(result.ranking) == 9
    scores = {one.name: one.score for one in result.ranking}
    assert scores["float16"] == pytest.approx(scores["float32"], abs=0.1)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint64, torch.bool, torch.complex64])
@pytest.mark.parametrize("is_sharing", [True, False])
def test_a_candidate_of_other_numbers_is_skipped(tmp_path, data_dir, dtype, is_sharing):
    store = Store.open(tmp_path / "store", create=True)
    good = put(store, "good", random_blocks(SMALL, 0), architecture=SMALL)
    put(store, "bad", with_dtype(random_blocks(SMALL, 0), dtype, 4), architecture=SMALL)
    result = search(store, DATA, data_dir=data_dir, method="shared" if is_sharing else "baseline")
    assert [one.snapshot for one in result.ranking] == [good]
    assert [(one.name, str(dtype) in one.error) for one in result.skipped] == [("bad", True)]


def test_a_block_that_raises_skips_its_candidates_only(resnets, data_dir, monkeypatch):
    broken = {block.digest for block in resnets.manifest("three").blocks[-4:-1]}
    read = Store.read_block

    def read_block(store, digest, device=None, content=None):
        if digest in broken:
            raise NotImplementedError("a fault\nof two lines")
        return read(store, digest, device, content)

    monkeypatch.setattr(Store, "read_block", read_block)
    result = search(resnets, DATA, data_dir=data_dir, method="shared")
    assert [one.name for one in result.skipped] == ["three"]
    assert result.skipped[0].error.endswith("can't run: NotImplementedError: a fault of two lines")
    assert len(result.ranking) == len(VARIANTS) - 1


@pytest.mark.parametrize("error", [MemoryError("full"), OSError(24, "Too many open files"), StoreError("gone")])
def test_a_fault_of_the_machine_ends_the_search(resnets, data_dir, monkeypatch, error):
    def read_block(store, digest, device=None, content=None):
        raise error

    monkeypatch.setattr(Store, "read_block", read_block)
    with pytest.raises(type(error)):
        search(resnets, DATA, data_dir=data_dir, method="shared")
