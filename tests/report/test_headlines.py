"""The first lines of a report: sentences and figures."""

from tests.support.report_pages import render, some_trials
from tests.support.report_runs import (
    quickstart,
    ranking_of,
    search,
    trial,
    write_run,
)


def test_the_summary_has_training_winner_speed_and_savings(tmp_path):
    page = render(quickstart(tmp_path / "run", some_trials()))
    assert "10 snapshots of resnet18 were fine-tuned on 3 datasets; the run took 60.0 s" in page.text
    assert "1 trial failed and 1 trial diverged" in page.text
    assert "best of 10 candidates is 000-resnet18-shapes-shape-a-r0, fine-tuned on shapes-shape-a" in page.text
    assert "linear score 0.890 on 20 held-out items; 1 other is tied with it" in page.text
    assert "alsatian, takes 2.02 s (median of 3 runs), 4.0× faster than baseline (8.08 s)" in page.text
    assert "added 10.0 kB to the store; whole copies would have taken 40.0 kB" in page.text


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
