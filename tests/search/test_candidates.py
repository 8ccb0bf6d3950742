"""Which snapshots a search ranks, under which name and preprocessing, and the no-search baseline."""

import numpy as np
import pytest

from raysnap.errors import UsageError
from raysnap.search import search
from raysnap.search.candidates import find_candidates
from raysnap.store.store import Store
from tests.support.search_stores import PREPROCESSING, put, random_blocks, variant
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
