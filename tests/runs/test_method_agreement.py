"""How far two search methods agree on one question."""

import pytest

from raysnap.runs.method_agreement import best_of, largest_difference, ranks_alike, regret
from raysnap.runs.run import read_run
from tests.support.report_runs import ranking_of, search, trial, write_run

RANKING = ranking_of([trial(n) for n in range(4)])
REVERSED = ranking_of([trial(n) for n in reversed(range(4))])


@pytest.fixture
def question(tmp_path):
    """Baseline and shared agree, shift gives the reversed ranking."""
    rows = [search("baseline", 0, RANKING), search("shared", 0, RANKING), search("shift", 0, REVERSED)]
    return read_run(write_run(tmp_path / "run", rows)).questions[0]


def test_the_best_snapshot_is_the_first_of_the_reference(question):
    assert best_of(question).snapshot == RANKING[0]["snapshot"]


def test_equal_rankings_are_alike_and_others_are_not(question):
    assert ranks_alike(question, "shared", "baseline") is True
    assert ranks_alike(question, "shift", "baseline") is False


def test_scores_differ_by_their_largest_difference(question):
    assert largest_difference(question, "shared", "baseline") == 0
    assert largest_difference(question, "shift", "baseline") == pytest.approx(0.03)


def test_regret_is_what_the_reference_misses_in_the_winner(question):
    assert regret(question, "shared") == 0
    assert regret(question, "shift") == pytest.approx(0.03)


def test_a_method_that_did_not_run_is_not_compared(question):
    assert ranks_alike(question, "alsatian", "baseline") is None
    assert largest_difference(question, "alsatian", "baseline") is None
    assert regret(question, "alsatian") is None
