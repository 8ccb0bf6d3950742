"""What records let expect of a start: its standings elsewhere, drawn to its relatives', nothing of the asked set."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from raysnap.search.standings import DATASET_CORRELATION, MAX_SHARE, expect, join, normal_scores, places, share_of
from raysnap.store.records import table_of
from tests.support.start_records import id_of, record

STARTS = ("a", "b", "c", "d")
SNAPSHOTS = [(id_of(name), "resnet18", id_of(name)) for name in STARTS]
ELSEWHERE = [
    record(name, dataset, accuracy)
    for dataset, accuracies in {"pets": (0.9, 0.7, 0.5, 0.3), "birds": (0.8, 0.7, 0.1, 0.2)}.items()
    for name, accuracy in zip(STARTS, accuracies, strict=True)
]
asked = [record(name, "cars", accuracy) for name, accuracy in zip(STARTS, (0.1, 0.2, 0.3, 0.4), strict=True)]


def test_without_records_the_order_of_the_proxy_stays():
    expected = expect(table_of([]), "digest of cars", SNAPSHOTS)
    scores_S = np.array([0.3, 0.9, 0.1, 0.5])
    assert (expected.share, expected.num_records, expected.standing_S.tolist()) == (0.0, 0, [0.5] * 4)
    assert np.argsort(join(scores_S, expected)).tolist() == np.argsort(scores_S).tolist()


@pytest.mark.parametrize("scores_S", [None, np.array([0.1, 0.2, 0.3, 0.4])])
def test_nothing_of_the_asked_dataset_leaks(scores_S):
    without = expect(table_of(ELSEWHERE), "digest of cars", SNAPSHOTS, scores_S)
    beside = expect(table_of([*ELSEWHERE, *asked]), "digest of cars", SNAPSHOTS, scores_S)
    swapped = [record(name, "cars", 1.0 - one.metrics["val_accuracy"]) for name, one in zip(STARTS, asked, strict=True)]
    other = expect(table_of([*ELSEWHERE, *swapped]), "digest of cars", SNAPSHOTS, scores_S)
    for found in (beside, other):
        assert found.standing_S.tolist() == without.standing_S.tolist()
        assert (found.share, found.num_records, found.num_datasets) == (without.share, 8, 2)


def test_a_start_that_stood_well_elsewhere_is_expected_to():
    expected = expect(table_of(ELSEWHERE), "digest of cars", SNAPSHOTS)
    assert np.argsort(-expected.standing_S).tolist()[:2] == [0, 1]
    assert expected.num_datasets_S.tolist() == [2] * 4 and 0 < expected.share < 0.5


def test_relatives_speak_for_a_start_without_records():
    known = [record("a", "pets", 0.9, lineage=("root",)), record("b", "pets", 0.2, architecture="vit_b_16")]
    asked_for = [
        (id_of("sibling"), "resnet18", id_of("root")),
        (id_of("cousin"), "resnet18", id_of("elsewhere")),
        (id_of("stranger"), "alexnet", id_of("nowhere")),
        (id_of("of the loser's kind"), "vit_b_16", id_of("nowhere")),
    ]
    sibling, cousin, stranger, loser = expect(table_of(known), "digest of cars", asked_for).standing_S
    assert sibling > cousin > stranger == 0.5 > loser


def test_of_several_recipes_the_best_counts():
    tried = [record("a", "pets", accuracy, lr=lr) for accuracy, lr in ((0.1, 1.0), (0.8, 0.1))]
    expected = expect(table_of([*tried, record("b", "pets", 0.5)]), "digest of cars", SNAPSHOTS)
    assert expected.standing_S[0] > expected.standing_S[1]


def test_results_in_other_conditions_are_not_compared():
    more_epochs = [record("a", "pets", 0.9, epochs=30), record("b", "pets", 0.5)]
    assert expect(table_of(more_epochs), "digest of cars", SNAPSHOTS).num_datasets == 0


def test_datasets_on_which_the_proxy_stood_well_weigh_more():
    scores_S = np.array([0.4, 0.3, 0.2, 0.1])
    reverse = [record(name, "noise", accuracy) for name, accuracy in zip(STARTS, (0.1, 0.2, 0.3, 0.4), strict=True)]
    table = table_of([*ELSEWHERE[:4], *reverse])
    alone, beside = (expect(table, "digest of cars", SNAPSHOTS, scores) for scores in (None, scores_S))
    assert np.ptp(alone.standing_S) == 0 < beside.standing_S[0] - beside.standing_S[3]


@pytest.mark.parametrize(("num_datasets", "of_proxy"), [(1, 0.6), (3, 0.5), (12, 0.5), (12, 0.7)])
def test_the_share_is_what_least_squares_gives(num_datasets, of_proxy):
    rng = np.random.default_rng(num_datasets)
    common_S, own_DS = rng.standard_normal(200_000), rng.standard_normal((num_datasets + 1, 200_000))
    on_DS = DATASET_CORRELATION**0.5 * common_S + (1 - DATASET_CORRELATION) ** 0.5 * own_DS
    of_own = (
        of_proxy * (1 - DATASET_CORRELATION**0.5) / (1 - DATASET_CORRELATION) ** 0.5
    )  # it knows the asked dataset as it does all
    luck = (1 - of_proxy**2 - of_own**2) ** 0.5
    proxy_S = of_proxy * common_S + of_own * own_DS[0] + luck * rng.standard_normal(200_000)
    mean_S = on_DS[1:].mean(axis=0)
    both_S2 = np.stack([mean_S / mean_S.std(), proxy_S / proxy_S.std()], axis=1)
    of_records, of_proxy = np.linalg.lstsq(both_S2, on_DS[0], rcond=None)[0]
    found = share_of(num_datasets, float(np.corrcoef(both_S2.T)[0, 1]), 200_000)
    assert found == pytest.approx(min(MAX_SHARE, of_records / (of_records + of_proxy)), abs=0.015)


def test_a_proxy_that_agrees_with_records_has_earned_weight():
    names = [f"start {number}" for number in range(30)]
    known = [record(name, dataset, n / 30) for dataset in ("pets", "birds") for n, name in enumerate(names)]
    snapshots, order_S = [(id_of(name), "resnet18", id_of(name)) for name in names], np.arange(30.0)
    unclear_S = order_S + 20 * np.random.default_rng(0).standard_normal(30)
    agrees, unclear, denies = (
        expect(table_of(known), "digest of cars", snapshots, scores_S).share
        for scores_S in (order_S, unclear_S, -order_S)
    )
    assert 0 <= agrees < unclear < denies == MAX_SHARE


def test_records_weigh_more_the_more_datasets_they_are_of():
    shares = [share_of(num_datasets, 0.0, 0) for num_datasets in (0, 0.5, 1, 2, 4, 8, 1000)]
    assert shares == sorted(set(shares)) and shares[0] == 0 and shares[-1] == pytest.approx(0.5, abs=0.001)


@given(st.lists(st.sampled_from([0.1, 0.2, 0.2, 0.5, 0.9]), min_size=1, max_size=12))
def test_normal_scores_are_quantiles_at_mean_ranks(values):
    expected = norm.ppf((rankdata(values) - 0.5) / len(values))
    assert normal_scores(np.array(values)) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.sampled_from([0.1, 0.2, 0.2, 0.5, 0.9]), min_size=2, max_size=12))
def test_places_are_mean_ranks(values):
    expected = (rankdata(values) - 1) / (len(values) - 1)
    assert places(np.array(values)) == pytest.approx(expected)
