"""Narrowing: which of many snapshots a search tries, what it says of the others, and that few are all tried."""

import numpy as np
import pytest

from raysnap.config.search_options import SearchOptions
from raysnap.search import search
from raysnap.search.candidates import find_candidates
from raysnap.search.narrowing import Field
from raysnap.store.manifest import DatasetRecord
from raysnap.store.store import Store
from tests.support.search_stores import put, random_blocks, variant
from tests.support.searches import DATA, SHAPES, SMALL, lines

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.xdist_group("searches")]

NUM_BODIES = 14


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Return a store of two bases, snapshots of both on two datasets, and two that differ from a base in the head."""
    store = Store.open(tmp_path_factory.mktemp("many") / "store", create=True)
    for base_seed in (0, 1):
        base = put(store, f"base-{base_seed}", random_blocks(SMALL, base_seed), SMALL)
        for number in range(6):
            put(
                store,
                f"{base_seed}-{number}",
                variant(SMALL, 10 + number, 1 + number % 3, base_seed),
                SMALL,
                base=base,
                retrain_index=1 + number % 3,
                dataset=DatasetRecord(name=f"set-{number % 2}"),
                metrics={"val_accuracy": 0.5 + 0.05 * number},
            )
    for seed in (20, 21):
        put(store, f"head-{seed}", variant(SMALL, seed, 0), SMALL, base="base-0", retrain_index=0)
    return store


def test_two_rounds_try_no_more_than_asked_and_rank_twins(find, many):
    full = find(many, method="shared", max_candidates=None)
    result = find(many, method="shared", max_candidates=8)
    narrowing = result.narrowing
    assert full.narrowing is None and len(full.ranking) == NUM_BODIES + 2
    assert narrowing.num_candidates == NUM_BODIES + 2 and narrowing.num_tried == result.num_candidates == 7
    assert len(result.ranking) + narrowing.num_left_out == NUM_BODIES + 2
    assert sum(group.num_candidates for group in narrowing.groups) == NUM_BODIES + 2
    assert 0 < narrowing.expected_loss < 0.5
    assert len(result.rungs) == 2 and sum(rung.num_candidates for rung in result.rungs) == 8
    score_of = {line.snapshot: line.score for line in full.ranking}
    assert [line.score for line in result.ranking] == [score_of[line.snapshot] for line in result.ranking]
    assert [line.rank for line in result.ranking] == list(range(1, len(result.ranking) + 1))
    twins = [line for line in result.ranking if line.name in ("base-0", "head-20", "head-21")]
    assert len({line.score for line in twins}) == 1 and len(twins) == 3
    assert max(twin.rank for twin in twins) - min(twin.rank for twin in twins) == 2
    assert result.static_baseline.name in ("base-0", "base-1")


@pytest.mark.parametrize("method", ["alsatian", "nested"])
def test_a_narrowed_halving_names_one_that_it_tried(find, many, method):
    result = find(many, method=method, max_candidates=12)
    assert result.num_candidates <= 12 and result.skipped == ()
    assert result.ranking[0].tied_with_best
    assert len({line.snapshot for line in result.ranking}) == len(result.ranking)


def test_as_many_snapshots_as_may_be_tried_are_all_tried(find, many):
    for method in ("shared", "nested"):
        unlimited, enough = (find(many, method=method, max_candidates=limit) for limit in (None, NUM_BODIES + 2))
        assert lines(enough) == lines(unlimited) and enough.narrowing is None
        assert enough.work | {"images_decoded": 0} == unlimited.work | {"images_decoded": 0}


def test_twins_beyond_the_limit_leave_nothing_out(find, many):
    result = find(many, method="shared", max_candidates=NUM_BODIES)
    assert (result.narrowing.num_left_out, result.narrowing.expected_loss) == (0, 0.0)
    assert lines(result) == lines(find(many, method="shared", max_candidates=None))


def test_kinds_are_covered_before_any_is_tried_twice(many):
    field = Field(many, SearchOptions(max_candidates=4), many.summaries())
    names = {candidate.name for candidate in field.first_round()}
    assert len(names & {"base-0", "base-1"}) >= 1
    assert any(name.startswith("0-") for name in names) and any(name.startswith("1-") for name in names)


def test_misfits_take_no_ones_place(many, data_dir, tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    for seed in range(4):
        put(store, f"misfit-{seed}", variant(SMALL, seed, 1)[1:], SMALL)
    for seed in range(2):
        put(store, f"fit-{seed}", variant(SMALL, seed + 5, 1), SMALL)
    result = search(store, DATA, data_dir=data_dir, shapes=SHAPES, method="shared", max_candidates=2)
    assert len(result.ranking) == 2 and {line.name[:3] for line in result.ranking} == {"fit"}
    assert result.skipped and all("blocks" in skipped.error for skipped in result.skipped)


def test_only_manifests_of_what_is_tried_are_read(many, monkeypatch):
    read = []
    own = Store.manifests_of
    monkeypatch.setattr(Store, "manifests_of", lambda self, ids: own(self, (read.append(one) or one for one in ids)))
    candidates = Field(many, SearchOptions(max_candidates=5), many.summaries()).first_round()
    assert len(read) == len(candidates) == 5
    assert [candidate.snapshot for candidate in candidates] == sorted(read)
    assert set(read) <= {candidate.snapshot for candidate in find_candidates(many, None, None)}
    assert np.all([many.manifest(one).id == one for one in read])
