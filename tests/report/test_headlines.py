"""The first lines of a report: sentences and figures."""

import pytest
from markupsafe import Markup

from raysnap.report.headlines import faster_text, key_figures, origin_text
from raysnap.runs.run import read_run
from raysnap.runs.store_contents import read_store_contents
from raysnap.runs.trial_rows import TrialRow
from raysnap.store.store import Store
from tests.support.report_pages import render, some_trials
from tests.support.report_runs import (
    everything,
    quickstart,
    ranking_of,
    search,
    trial,
    write_run,
)


@pytest.fixture(scope="module")
def summary(tmp_path_factory) -> str:
    """Return the text of the report of a quickstart."""
    return render(quickstart(tmp_path_factory.mktemp("quickstart") / "run", some_trials())).text


def test_the_summary_says_what_was_trained(summary):
    assert "10 snapshots of resnet18 were fine-tuned on 3 datasets; the run took 60.0 s" in summary


def test_the_summary_counts_trials_that_did_not_finish(summary):
    assert "1 trial failed and 1 trial diverged" in summary


def test_the_summary_names_the_best_start_and_its_score(summary):
    assert "best of 10 candidates is 000-resnet18-shapes-shape-a-r0, fine-tuned on shapes-shape-a" in summary
    assert "linear score 0.890 on 20 held-out items; 1 other is tied with it" in summary


def test_the_summary_names_the_fastest_method(summary):
    assert "alsatian, takes 2.02 s (median of 3 runs), 4.0× faster than baseline (8.08 s)" in summary


def test_the_summary_says_what_sharing_blocks_saved(summary):
    assert "added 10.0 kB to the store; whole copies would have taken 40.0 kB" in summary


def test_a_snapshot_with_only_its_head_retrained_says_so():
    row = TrialRow(trial="a", role="finetune", status="done", dataset="data/pets", retrain_index=0)
    assert origin_text(row) == "fine-tuned on pets (head only)"


def test_there_are_at_most_four_key_figures(tmp_path):
    run = read_run(everything(tmp_path / "run", Store.open(tmp_path / "store", create=True), tmp_path / "data"))
    assert len(key_figures(run, read_store_contents(run)[0])) == 4


def test_the_summary_gives_the_share_of_time_in_training(tmp_path):
    timed = [trial(1, wall_s=4.0, overhead_s=0.5), trial(2, wall_s=6.0, overhead_s=1.5)]
    untimed = [trial(3, wall_s=None, overhead_s=None), trial(4)]
    text = render(write_run(tmp_path / "run", [*timed, *untimed])).text
    assert "Training was 80 % of the fine-tunes' wall time; each had 1.00 s of overhead." in text
    assert "wall time; each had" not in render(write_run(tmp_path / "untimed", untimed)).text


def test_one_candidate_and_one_method_make_a_report(tmp_path):
    trials = [trial(4)]
    run_dir = write_run(tmp_path / "run", trials)
    write_run(run_dir / "bench", [search("shared", 0, ranking_of(trials))])
    page = render(run_dir)
    assert "Start from shapes-shape-a for shapes-shape-b" in page.text
    assert "shared takes 3.00 s (one run)" in page.text


def two_rungs(tied: bool = False) -> list[dict]:
    """Return a ranking whose first was scored on more items than the others, which score higher on theirs."""
    ranking = ranking_of([trial(number) for number in range(1, 5)])
    for line in ranking:
        line |= {"score": 0.5 + line["rank"] / 10, "num_train": 12, "num_test": 9, "tied_with_best": False}
    ranking[0] |= {"num_train": 80, "num_test": 60, "num_scored": 60, "low": 0.4, "high": 0.7}
    if tied:
        ranking[1] |= {"num_train": 80, "num_test": 60, "score": 0.6, "tied_with_best": True}
    return ranking


def test_scores_of_different_rungs_are_never_compared(tmp_path):
    page = render(write_run(tmp_path / "run", [search("nested", 0, two_rungs())])).text
    assert "linear score 0.600 (0.400 to 0.700) on 60 held-out items. All others were dropped on fewer items." in page
    assert "ahead of the next" not in page and "lower" not in page


def test_a_winner_scored_in_another_rung_is_not_called_worse(tmp_path):
    reference, other = two_rungs(), two_rungs()
    other[0], other[1] = other[1] | {"rank": 1}, other[0] | {"rank": 2}
    rows = [search("nested", 0, reference, total_s=4.0), search("alsatian", 0, other, total_s=2.0)]
    page = render(write_run(tmp_path / "run", rows)).text
    assert "alsatian, takes 2.00 s" in page and "but its winner scores" not in page
    assert "equally good winner" not in page


def test_ties_are_headlined_as_ties(tmp_path):
    page = render(write_run(tmp_path / "run", [search("nested", 0, two_rungs(tied=True))])).text
    assert "is among the 2 best starts for shapes-shape-b: they are tied" in page


@pytest.mark.parametrize(("ratio", "text"), [(0.9, "1.1× as long as"), (1.0, "as long as"), (3.0, "3.0× faster than")])
def test_what_is_slower_is_not_called_faster(ratio, text):
    assert Markup(faster_text(ratio)).striptags() == text
