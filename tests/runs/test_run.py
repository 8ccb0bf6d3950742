"""A run directory read back, seen through its report: torn, repeated, missing and planned rows."""

import json

import pytest

from raysnap.errors import DataError, UsageError
from raysnap.report.page import write_report
from tests.support.report_pages import render, some_trials
from tests.support.report_runs import (
    trial,
    write_run,
)


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda run: None, UsageError, "expected a run directory, found nothing there"),
        (lambda run: run.write_text(""), UsageError, "found a file"),
        (lambda run: run.mkdir(), DataError, "expected a run directory with results.jsonl in it"),
        (lambda run: write_run(run, []), DataError, "expected a row per trial or search, found none"),
        (lambda run: write_run(run, [[], 3, {"neither": 1}]), DataError, "found none"),
    ],
)
def test_what_is_no_run_is_refused_and_nothing_is_written(tmp_path, prepare, error, message):
    prepare(tmp_path / "run")
    with pytest.raises(error, match=message) as caught:
        write_report(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.html"))


def test_a_row_cut_off_by_a_crash_is_left_out_with_a_remark(tmp_path):
    run_dir = write_run(tmp_path / "run", some_trials())
    with (run_dir / "results.jsonl").open("a") as file:
        file.write('{"trial": "torn-')
    page = render(run_dir)
    assert "1 line of results.jsonl can't be read and was left out, perhaps cut off by a crash." in page.text
    assert len(page.values("data-trial")) == len(some_trials())


def test_a_repeated_trial_counts_once_with_its_last_row(tmp_path):
    page = render(write_run(tmp_path / "run", [trial(1, status="failed"), trial(2), trial(1)]))
    assert len(page.values("data-trial")) == 2
    assert "Failures" not in page.text


def test_planned_trials_without_a_row_are_counted(tmp_path):
    run_dir = write_run(tmp_path / "run", [trial(0)])
    (run_dir / "trials.jsonl").write_text("".join(json.dumps({"id": trial(n)["trial"]}) + "\n" for n in range(5)))
    page = render(run_dir)
    assert "4 planned trials have not finished" in page.text
    assert "of 5 fine-tunes done" in page.text


def test_a_base_that_is_only_drawn_is_no_unfinished_trial(tmp_path):
    run_dir = write_run(tmp_path / "run", [trial(0)])
    planned = [{"id": "base", "role": "base", "dataset": None}, {"id": trial(0)["trial"], "role": "finetune"}]
    (run_dir / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in planned))
    assert "of 1 fine-tune done" in render(run_dir).text
