"""What records let expect of a start: its standings elsewhere, drawn to its relatives', nothing of the asked set."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from raysnap.search.standings import expect, join, places
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


@given(st.lists(st.sampled_from([0.1, 0.2, 0.2, 0.5, 0.9]), min_size=2, max_size=12))
def test_places_are_mean_ranks(values):
    expected = (rankdata(values) - 1) / (len(values) - 1)
    assert places(np.array(values)) == pytest.approx(expected)
