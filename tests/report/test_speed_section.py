"""Times of searches in a report: methods, questions, rungs, noise."""

import pytest

from raysnap.report.speed_section import compared_text
from tests.support.report_pages import render, some_trials, tables
from tests.support.report_runs import (
    bench_row,
    bench_run,
    ranking_of,
    search,
    trial,
    write_run,
)


def test_methods_that_must_agree_are_checked(tmp_path):
    trials = some_trials()
    ranking, other = ranking_of(trials), ranking_of(trials[::-1])
    rows = [search("baseline", 0, ranking), search("shared", 0, ranking), search("shift", 0, ranking)]
    run_dir = write_run(tmp_path / "run", trials)
    write_run(run_dir / "bench", [*rows, search("alsatian", 0, other)])
    page = render(run_dir)
    assert "As expected, shared gives every candidate the same score as baseline." in page.text
    assert "As expected, shared gives the same ranking as baseline." in page.text
    assert "Unexpectedly, alsatian ranks candidates differently from shift." in page.text
    assert "but its winner scores 0.090 lower" in page.text


def test_times_that_vary_are_flagged(tmp_path):
    ranking = ranking_of(some_trials())
    rows = [search("baseline", k, ranking, total_s=s) for k, s in enumerate((5.0, 8.0, 12.0))]
    rows += [search("alsatian", k, ranking, total_s=s) for k, s in enumerate((2.0, 2.01, 2.02))]
    page = render(write_run(tmp_path / "run", rows))
    assert page.text.count("noisy") == 1
    assert "baseline: the middle half of its runs spans 44 % of the median" in page.text


def test_questions_are_titled_by_what_was_varied(tmp_path):
    page = render(bench_run(tmp_path / "run"))
    assert page.text.count("Ranked by method baseline") == 1  # the cache's state and these sizes changed no ranking
    for question in ("80 train items, cache warm", "160 train items, cache cold"):
        assert f"shapes-shape-b, {question}" in page.text
    assert "Over 4 questions, alsatian is 4.0× faster than baseline (geometric mean; 4.0× to 4.0×)" in page.text
    assert "shift: other processes took 34 % of the CPUs" in page.text
    assert sum(value.startswith("mark bound") for value in page.values("class")) == 4 * 4
    assert page.text.count("Rung by rung") == 4
    assert "12 candidates × 10 items, 6 kept" in page.text
    assert "the largest base snapshot, 011-resnet18-shapes-shape-a-r2: rank 12, score 0.780" in page.text


def test_rungs_are_split_by_phase_if_that_was_timed(tmp_path):
    row = bench_row("shift", 0, ranking_of([trial(1), trial(2)]))
    for rung in row["search"]["rungs"]:
        rung["timings_s"] = {"total": 1.0, "inference": 0.7, "proxy": 0.2}
    page = render(write_run(tmp_path / "run", [row]))
    assert "shift, rung 3, inference: 700" in page.text
    assert tables(tmp_path / "run")["rungs_01"][0].count("inference_s") == 1


def test_a_run_meant_to_be_cold_is_only_called_so_if_it_was(tmp_path):
    ranking = ranking_of([trial(1), trial(2)])
    rows = [bench_row("shared", k, ranking, cache="cold") for k in range(2)]
    rows[1]["page_cache"]["state"] = "mixed"
    page = render(write_run(tmp_path / "run", rows))
    assert "cache cold" in page.text
    assert "cache mixed, not cold as asked" in page.text


def test_a_search_without_phases_is_drawn_as_one_piece(tmp_path):
    row = search("shared", 0, ranking_of([trial(1), trial(2)]))
    row["search"]["timings_s"] = {"total": 3.0}
    page = render(write_run(tmp_path / "run", [row]))
    assert "not split by phase: 3.00" in page.text
    assert "mark phase-inference" not in page.values("class")


@pytest.mark.parametrize(("speed_up", "text"), [(2.0, "2.0× faster"), (0.5, "2.0× as long"), (1.02, "")])
def test_a_slower_method_is_not_called_faster(speed_up, text):
    assert compared_text(speed_up) == text
