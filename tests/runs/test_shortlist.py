"""A finetune's shortlist: read back as written, and what came of each start found among the trials."""

import pytest

from raysnap.errors import DataError
from raysnap.runs.shortlist import (
    SHORTLIST_NAME,
    Shortlist,
    ShortlistedStart,
    TimePlan,
    first_start_text,
    results_of,
    take_starts,
)
from raysnap.runs.trial_rows import TrialRow

STARTS = (
    ShortlistedStart("a" * 64, "first", "resnet18", 32, rank=1, score=0.8, low=0.7, high=0.9, num_scored=50),
    ShortlistedStart("b" * 64, "second", "resnet18", 32, rank=2, score=0.7, is_tied=True),
)
SEARCHED = Shortlist(STARTS, 5, "shared", "linear", 9, 0.01, 0.25, TimePlan(60, 15, 4, 10, 46, 40), "quick")


def row(start: str, status: str, objective: float | None, name: str = "x") -> TrialRow:
    metrics = {"metrics": {"val_accuracy": objective}} if objective is not None else {}
    point = {"base.weights": start}
    facts = {"trial": name, "role": "finetune", "status": status, "point": point, "objective": objective}
    return TrialRow.read(facts | metrics)


@pytest.mark.parametrize("shortlist", [SEARCHED, Shortlist(STARTS[:1], 2)])
def test_a_shortlist_reads_back_as_it_was_written(tmp_path, shortlist):
    assert Shortlist.read(tmp_path) is None
    shortlist.write(tmp_path)
    assert Shortlist.read(tmp_path) == shortlist
    assert shortlist.is_searched == (shortlist is SEARCHED)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"starts": [], "epochs": 3}'])
def test_a_file_that_is_no_shortlist_is_refused(tmp_path, text):
    (tmp_path / SHORTLIST_NAME).write_text(text)
    with pytest.raises(DataError, match="expected a finetune's shortlist"):
        Shortlist.read(tmp_path)


def test_of_each_start_the_best_fine_tune_counts():
    rows = [
        row("first", "stopped", 0.9, "1"),
        row("first", "done", 0.6, "2"),
        row("first", "done", 0.7, "3"),
        row("second", "stopped", 0.4, "4"),
        row("second", "failed", None, "5"),
        row("another", "done", 1.0, "6"),
    ]
    first, second = results_of(SEARCHED, rows)
    assert (first.trial.trial, first.num_trials, first.val_accuracy) == ("3", 3, 0.7)
    assert (second.trial.trial, second.num_trials, second.test_accuracy) == ("4", 2, None)
    assert results_of(SEARCHED, rows, is_max=False)[0].trial.trial == "2"
    assert results_of(SEARCHED, [])[0].trial is None


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ([(1, "a", 0.9, 0.8)], ""),
        (
            [(2, "b", 0.8, 0.9), (1, "a", 0.9, 0.8)],
            "By validation, the search's first start was the best of the shortlist.",
        ),
        (
            [(1, "a", 0.9, 0.8), (2, "b", 0.9, 0.9), (3, "c", 0.9, 0.7)],
            "the shortlist, with 2\u00a0others equally good.",
        ),
        (
            [(1, "a", 0.8, 0.8), (2, "b", 0.9, 0.9)],
            "first start, a, came to a test accuracy 0.100 below that of the best",
        ),
        (
            [(1, "a", 0.8, 0.8), (2, "b", 0.9, 0.7)],
            "came to a test accuracy 0.100 above that of the best by validation.",
        ),
    ],
)
def test_what_came_of_the_first_start_is_said_with_its_ties(starts, said):
    text = first_start_text(starts, None)
    assert said in text and bool(said) == bool(text)


def ranked(*bases: int, num_starts: int = 6) -> list[ShortlistedStart]:
    """Return starts named by their ranks, of which some are bases."""
    ranks = range(1, num_starts + 1)
    return [ShortlistedStart(str(one), str(one), "resnet18", 32, rank=one, is_base=one in bases) for one in ranks]


@pytest.mark.parametrize(
    ("bases", "num_starts", "expected"),
    [((5,), 3, "125"), ((5, 6), 3, "125"), ((2, 5), 3, "123"), ((), 3, "123"), ((5,), 1, "1"), ((6,), 9, "123456")],
)
def test_the_best_base_is_the_last_start_unless_one_is_before(bases, num_starts, expected):
    assert "".join(start.name for start in take_starts(ranked(*bases), num_starts)) == expected


def test_a_shortlist_that_is_cut_keeps_its_base():
    assert [start.name for start in take_starts(take_starts(ranked(6), 5), 2)] == ["1", "6"]
