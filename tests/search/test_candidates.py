"""Which snapshots a search ranks, under which name and preprocessing, and the no-search baseline."""

from dataclasses import replace

import numpy as np
import pytest

from raysnap.cli.search_tables import search_lines
from raysnap.errors import UsageError
from raysnap.search import search
from raysnap.search.candidates import find_candidates, find_even_image_size, group_inputs, pick_static_baseline
from raysnap.search.result import RankedSnapshot
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from tests.support.search_stores import PREPROCESSING, candidate, digest, put, random_blocks, variant
from tests.support.searches import DATA, SMALL, VARIANTS, copy_store, flip_a_bit, lines

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.xdist_group("searches")]


def test_another_image_size_scales_the_resizing_and_costs_less(find, resnets):
    own, small = find(resnets, method="shared"), find(resnets, method="shared", image_size=16)
    assert small.work["flops"] < own.work["flops"]
    assert find(resnets, method="shared", image_size=32).work == own.work | {"images_decoded": 0}
    (candidate,) = find_candidates(resnets, "name == 'base'", 16)
    assert candidate.preprocessing == PREPROCESSING.model_copy(update={"image_size": 16, "resize_size": 18})


def test_a_snapshot_goes_by_its_first_name_or_by_its_id(data_dir, tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    named = put(store, "zebra", random_blocks(SMALL, 0), SMALL)
    store.set_ref("ant", named)
    nameless = store.put_snapshot(
        architecture=SMALL, blocks=random_blocks(SMALL, 1), num_classes=4, preprocessing=PREPROCESSING
    ).manifest.id
    names = {one.snapshot: one.name for one in search(store, DATA, data_dir=data_dir, method="shared").ranking}
    assert names == {named: "ant", nameless: nameless[:12]}


def test_a_store_without_snapshots_says_what_to_do(data_dir, tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    with pytest.raises(UsageError, match="expected at least one snapshot.*raysnap generate"):
        search(store, DATA, data_dir=data_dir)


def test_the_static_baseline_is_the_largest_without_a_base(find, mixed):
    result = find(mixed, method="shared")
    assert result.static_baseline.name == "resnet"
    assert result.static_baseline == result.ranking[result.static_baseline.rank - 1]


def test_the_ranking_does_not_depend_on_the_stores_order(find, resnets, data_dir, tmp_path, monkeypatch):
    expected = {method: lines(find(resnets, method=method)) for method in ("alsatian", "nested")}
    turned = Store.open(tmp_path / "store", create=True)
    for name in reversed(VARIANTS):
        put(turned, name, variant("resnet18", *VARIANTS[name]))
    assert {method: lines(find(turned, method=method)) for method in expected} == expected
    summaries = turned.summaries()
    np.random.default_rng(3).shuffle(summaries)
    monkeypatch.setattr(Store, "summaries", lambda self, where=None: list(summaries))
    assert lines(search(turned, DATA, data_dir=data_dir, method="nested")) == expected["nested"]


def test_the_head_is_never_read(resnets, data_dir, tmp_path):
    store, ids = copy_store(resnets, tmp_path)
    flip_a_bit(store, ids["one"], -1)
    assert search(store, DATA, data_dir=data_dir, method="shared").skipped == ()


def at(name, image_size, architecture="resnet18", **changes):
    preprocessing = Preprocessing.cropping(image_size).model_copy(update=changes)
    return candidate(name, [digest(name)], architecture, preprocessing)


@pytest.mark.parametrize(
    ("candidates", "sizes", "even"),
    [
        ([at("a", 64), at("b", 64)], [(64, 2)], None),
        ([at("a", 64), at("b", 64), at("c", 224)], [(64, 2), (224, 1)], 64),
        ([at("a", 224), at("b", 64)], [(64, 1), (224, 1)], 64),
        ([at("a", 64), at("b", 224, "vit_b_32")], [(64, 1), (224, 1)], 224),
        ([at("a", 64), at("b", 64, mean=(0.5, 0.5, 0.5))], [(64, 1), (64, 1)], None),
        ([at("a", 64), at("b", 224, resize_size=224)], [(64, 1), (224, 1)], None),
    ],
)
def test_inputs_of_several_kinds_are_told_and_evened(monkeypatch, candidates, sizes, even):
    monkeypatch.setattr("raysnap.search.candidates.find_misfit", fits_by_size)
    assert [(group.image_size, group.num_candidates) for group in group_inputs(candidates)] == sizes
    assert find_even_image_size(candidates) == even


def fits_by_size(one):
    """Judge by the image size alone: these candidates have one block."""
    return "needs 224" if one.architecture.startswith("vit") and one.preprocessing.image_size != 224 else None


def test_the_even_image_size_makes_equal_snapshots_share(data_dir, tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    put(store, "base", random_blocks(SMALL, 0), SMALL, preprocessing=Preprocessing.cropping(48))
    put(store, "tuned", variant(SMALL, 1, 1), SMALL, preprocessing=Preprocessing.cropping(32))
    apart = search(store, DATA, data_dir=data_dir, method="shared")
    assert [group.image_size for group in apart.inputs] == [32, 48]
    even = search(store, DATA, data_dir=data_dir, method="shared", image_size=apart.even_image_size)
    assert (len(even.inputs), even.even_image_size) == (1, None)
    assert even.work["block_item_passes"] < apart.work["block_item_passes"]
    assert f"--image-size {apart.even_image_size} evens them" in search_lines(apart.to_dict())
    assert "different ways" not in search_lines(even.to_dict())


def test_the_largest_pretrained_model_has_the_most_parameters():
    names = ("mobilenet_v3_small", "resnet18", "resnet34")
    candidates = [candidate(name, [digest(name)], name) for name in names]
    heavy = replace(candidates[0], blocks=(replace(candidates[0].blocks[0], num_bytes=10**9),))
    ranking = [RankedSnapshot(n, one, one, 0.5, 1, 1, False, False) for n, one in enumerate(names, start=1)]
    assert pick_static_baseline([heavy, *candidates[1:]], ranking).snapshot == "resnet34"
    assert pick_static_baseline([heavy, candidates[1]], ranking[:2]).snapshot == "resnet18"


def test_a_given_name_comes_before_that_of_the_trial(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    snapshot = put(store, "001-net", random_blocks(SMALL, 0), SMALL, trial="001-net")
    store.set_ref("pets", snapshot)
    [found] = find_candidates(store, None, None)
    assert found.name == "pets"
